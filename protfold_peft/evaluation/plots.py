"""Pictures of a pair: lDDT and distance along the reference; and pLDDT against lDDT of all pairs.

Drawn on a bare Figure: pyplot keeps global state and every figure it ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from protfold_peft.files import replacing

_DPI = 110
_INK, _SECOND, _ABSENT = "#1f4e79", "#d1711c", "#bbbbbb"
# Distances beyond this are drawn at the edge: a domain apart would flatten everything else.
_MAX_DISTANCE = 20.0
# The degrees of strictness of GDT.
_CUTOFFS = (1, 2, 4, 8)


def plot_pair(
    path: Path,
    lddt: np.ndarray,
    distances: np.ndarray,
    chain_lengths: Sequence[int],
    *,
    title: str,
    plddt: np.ndarray | None = None,
) -> None:
    """CA lDDT (0..100) above, CA distance (angstrom) at the superposition of the TM-score below, PNG.

    Residues that the model lacks are grey bands.

    Args:
        path: The file.
        lddt: `(n,)` 0..1, NaN where undefined.
        distances: `(n,)` angstrom, NaN for residues that the model lacks.
        chain_lengths: Residues of every chain of the reference, which follow one another.
        title: Above the picture.
        plddt: `(n,)` 0..100, NaN where unknown; drawn beside the lDDT.
    """
    figure = Figure(figsize=(7.5, 4.6), dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.11, top=0.93, hspace=0.12)
    upper, lower = figure.subplots(2, 1, sharex=True)
    n = len(lddt)
    places = np.arange(1, n + 1)
    marker = "." if n < 60 else None
    shown = np.where(np.isnan(distances), np.nan, 100 * lddt)
    upper.plot(places, shown, color=_INK, linewidth=1.2, marker=marker, label="lDDT")
    if plddt is not None:
        upper.plot(places, plddt, color=_SECOND, linewidth=1.0, linestyle="--", label="pLDDT")
        upper.legend(loc="lower right", fontsize=7, framealpha=0.7)
    upper.set(ylim=(0, 102), ylabel="CA lDDT")
    upper.set_title(title if len(title) <= 90 else f"{title[:87]}...", fontsize=9, parse_math=False)

    for cutoff in _CUTOFFS:
        lower.axhline(cutoff, color="#dddddd", linewidth=0.7, zorder=0)
    lower.plot(places, np.minimum(distances, _MAX_DISTANCE), color=_INK, linewidth=1.2, marker=marker)
    top = min(_MAX_DISTANCE, max(8.0, float(np.nanmax(distances)))) if np.isfinite(distances).any() else 8.0
    beyond = " (20 Å and more at the edge)" if np.nanmax(distances, initial=0.0) > _MAX_DISTANCE else ""
    lower.set(xlim=(0.5, n + 0.5), ylim=(0, 1.02 * top), xlabel="residue of the reference", ylabel="CA distance (Å)")
    lower.set_xlabel(f"residue of the reference{beyond}")
    lower.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    for axes in (upper, lower):
        _shade_absent(axes, np.isnan(distances))
        for end in list(accumulate(chain_lengths))[:-1]:
            axes.axvline(end + 0.5, color="#222222", linewidth=0.8, linestyle="--")
    _save(figure, path)


def plot_calibration(path: Path, plddt: np.ndarray, lddt: np.ndarray, *, title: str) -> None:
    """pLDDT against CA lDDT, both 0..100, a point for every residue `(n,)`, PNG."""
    figure = Figure(figsize=(4.6, 4.6), dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.13, right=0.96, bottom=0.11, top=0.92)
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color=_ABSENT, linewidth=1.0, zorder=0)
    # Few points are dots, many are a cloud.
    axes.plot(plddt, lddt, ".", color=_INK, markersize=4, alpha=float(np.clip(300 / max(len(lddt), 1), 0.08, 0.8)))
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="pLDDT", ylabel="CA lDDT", aspect="equal")
    axes.set_title(title, fontsize=9, parse_math=False)
    _save(figure, path)


def _shade_absent(axes: Axes, absent: np.ndarray) -> None:
    """Grey bands over runs of residues that are not there."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], absent.astype(int), [0]])))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        axes.axvspan(start + 0.5, end + 0.5, color=_ABSENT, alpha=0.35, linewidth=0)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")

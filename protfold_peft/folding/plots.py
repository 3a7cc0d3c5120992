"""The two pictures of a record: pLDDT along the sequence, and the matrix of predicted aligned errors.

Drawn on a bare Figure: pyplot keeps global state and every figure it ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from protfold_peft.files import replacing

# The four bands and colours of the AlphaFold database: lower bound, name, colour.
PLDDT_BANDS = (
    (90.0, "very high (above 90)", "#0053d6"),
    (70.0, "confident (70 to 90)", "#65cbf3"),
    (50.0, "low (50 to 70)", "#ffdb13"),
    (0.0, "very low (below 50)", "#ff7d45"),
)

_DPI = 110


def plot_plddt(
    path: Path, plddt: Sequence[float], chain_lengths: Sequence[int], *, title: str, warning: str = ""
) -> None:
    """pLDDT (0..100) of every residue, all chains one after another, on the bands of the AlphaFold database."""
    figure, axes = _figure((7.0, 3.2), title, warning)
    upper = 100.0
    for lower, name, color in PLDDT_BANDS:
        axes.axhspan(lower, upper, color=color, alpha=0.18, linewidth=0, label=name)
        upper = lower
    positions = np.arange(1, len(plddt) + 1)
    axes.plot(positions, plddt, color="#222222", linewidth=1.2, marker="." if len(plddt) < 60 else None)
    for end in _inner_ends(chain_lengths):
        axes.axvline(end + 0.5, color="#222222", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0.5, len(plddt) + 0.5), ylim=(0, 100), xlabel="residue", ylabel="pLDDT")
    axes.legend(loc="lower right", fontsize=6, framealpha=0.7)
    _whole_numbers(axes.xaxis)
    _save(figure, path)


def plot_pae(
    path: Path,
    pae: Sequence[Sequence[float]],
    chain_lengths: Sequence[int],
    *,
    max_pae: float,
    title: str,
    warning: str = "",
) -> None:
    """Predicted aligned error in angstrom, `(n, n)`: row = the residue aligned on, column = the residue scored."""
    figure, axes = _figure((4.8, 4.2), title, warning)
    n = len(pae)
    image = axes.imshow(
        np.asarray(pae), vmin=0, vmax=max_pae, cmap="Greens_r", extent=(0.5, n + 0.5, n + 0.5, 0.5), aspect="equal"
    )
    for end in _inner_ends(chain_lengths):
        axes.axvline(end + 0.5, color="black", linewidth=0.8)
        axes.axhline(end + 0.5, color="black", linewidth=0.8)
    axes.set(xlabel="scored residue", ylabel="aligned residue")
    _whole_numbers(axes.xaxis, axes.yaxis)
    figure.colorbar(image, ax=axes, label="expected position error (Å)", shrink=0.85)
    _save(figure, path)


def _figure(size: tuple[float, float], title: str, warning: str) -> tuple[Figure, Axes]:
    # Fixed margins: fitting them to the labels takes as long as all the rest of the drawing.
    figure = Figure(figsize=size, dpi=_DPI)
    figure.subplots_adjust(left=0.7 / size[0], right=1 - 0.2 / size[0], bottom=0.5 / size[1], top=1 - 0.5 / size[1])
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title if len(title) <= 60 else f"{title[:57]}...", fontsize=9, parse_math=False)
    if warning:
        figure.suptitle(warning.split(":")[0], color="#b00020", fontsize=9, fontweight="bold", y=0.985)
    return figure, axes


def _whole_numbers(*all_axis: Axis) -> None:
    """Residues are counted: no ticks between them."""
    for axis in all_axis:
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _inner_ends(chain_lengths: Sequence[int]) -> list[int]:
    """The last residue of every chain but the last, counted through all chains."""
    return list(accumulate(chain_lengths))[:-1]


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")

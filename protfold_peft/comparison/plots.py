"""The plots of a comparison as PNG and PDF files: score against parameters, differences per target, classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from protfold_peft.comparison.analysis import Analysis, ArmScores
from protfold_peft.comparison.summary import TITLES
from protfold_peft.files import replacing

# Okabe & Ito's colours, apart from each other for the colour-blind, and a mark of its own for each method.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c00")
_MARKS = "osD^vP*"
# As many names as stand beside the axes, below a stamp of two lines.
_LEGEND_ROWS = 20


def colours(analysis: Analysis) -> dict[str, tuple[str, str]]:
    """A colour and a mark of every method."""
    methods = list(dict.fromkeys(one.arm.method for one in analysis.arms))
    return {method: (COLORS[place % len(COLORS)], _MARKS[place % len(_MARKS)]) for place, method in enumerate(methods)}


def write_plots(analysis: Analysis, folder: Path, stamp: str = "") -> list[Path]:
    """Draw all plots of a set of targets.

    Args:
        analysis: What is drawn.
        folder: Where to.
        stamp: What has to be said on every picture.

    Returns:
        The PNG files; each has a PDF beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, draw in (("parameters", _parameters), ("differences", _differences), ("classes", _classes)):
        if name == "classes" and not analysis.classes():
            continue
        for suffix in (".png", ".pdf"):
            path = folder / f"{analysis.group}_{name}{suffix}"
            with _figure(path, stamp) as axes:
                draw(analysis, axes)
            if suffix == ".png":
                found.append(path)
    return found


@contextmanager
def _figure(path: Path, stamp: str) -> Iterator[Any]:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    if stamp:
        figure.suptitle(stamp, color="#b00020", fontsize=8, wrap=True)
    FigureCanvasAgg(figure)
    yield figure.subplots()
    # Without dates and versions the same results give the same bytes.
    metadata = {"Software": None} if path.suffix == ".png" else {"CreationDate": None, "Producer": None}
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata=metadata)


def _ends(analysis: Analysis, one: ArmScores) -> tuple[float, float]:
    """How far the interval of the difference from the base reaches below and above its mean."""
    found = analysis.of(one.label)
    if found is None:
        return 0.0, 0.0
    return max(0.0, found.interval.mean - found.interval.low), max(0.0, found.interval.high - found.interval.mean)


def _parameters(analysis: Analysis, axes: Any) -> None:
    """Mean score against trained parameters, a line for each method."""
    base = analysis.base.mean(analysis.score)
    axes.axhline(base, color="0.5", linestyle="--", label=f"base model, {base:.3f}")
    for method, (colour, mark) in colours(analysis).items():
        own = sorted((one for one in analysis.arms if one.arm.method == method), key=lambda one: one.parameters)
        means = [one.mean(analysis.score) for one in own]
        ends = np.transpose([_ends(analysis, one) for one in own])
        sizes = [one.parameters for one in own]
        axes.errorbar(sizes, means, yerr=ends, color=colour, marker=mark, capsize=2, linewidth=1, label=method)
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters")
    axes.set_ylabel(f"mean {TITLES[analysis.score]}")
    # Targets differ more from each other than methods do: an interval of the score itself would show the targets.
    axes.set_title(
        f"{analysis.group}: {len(analysis.targets)} targets; 95 % intervals of the difference from the base", fontsize=9
    )
    _legend(axes, fontsize=8)


def _differences(analysis: Analysis, axes: Any) -> None:
    """What each target gains over the base model, arm by arm."""
    base = analysis.base.values[analysis.score][0]
    jitter = np.random.default_rng(0).uniform(-0.18, 0.18, size=len(base))
    styles = colours(analysis)
    for place, one in enumerate(analysis.arms):
        colour, _ = styles[one.arm.method]
        # Not every target has a score of every seed.
        known = ~np.isnan(one.values[analysis.score]).all(axis=0)
        changes = np.nanmean(one.values[analysis.score][:, known], axis=0) - base[known]
        axes.scatter(place + jitter[known], changes, s=9, color=colour, alpha=0.55, linewidths=0)
        ends = np.transpose([_ends(analysis, one)])
        axes.errorbar([place], [changes.mean()], yerr=ends, color="black", marker="_", capsize=4)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_xticks(
        range(len(analysis.arms)), [one.label for one in analysis.arms], rotation=45, ha="right", fontsize=8
    )
    axes.set_ylabel(f"{TITLES[analysis.score]}, less the base model's")
    axes.set_title(f"{analysis.group}: a point for each target, the mean and its 95 % interval", fontsize=10)


def _classes(analysis: Analysis, axes: Any) -> None:
    """Mean scores within each class of targets, as bars."""
    masks = analysis.classes()
    width = 0.8 / (len(analysis.arms) + 1)
    styles = colours(analysis)
    of_method: dict[str, int] = {}
    for place, one in enumerate((analysis.base, *analysis.arms)):
        nth = of_method.get(one.arm.method, 0)
        of_method[one.arm.method] = nth + 1
        colour = "0.6" if place == 0 else styles[one.arm.method][0]
        heights = [one.mean(analysis.score, mask) for mask in masks.values()]
        places = np.arange(len(masks)) + place * width
        # Higher ranks of a method are paler.
        axes.bar(places, heights, width, color=colour, alpha=0.72**nth, edgecolor="white", label=one.label)
    ticks = np.arange(len(masks)) + 0.4 - width / 2
    axes.set_xticks(ticks, [f"{kind}\n(n = {int(mask.sum())})" for kind, mask in masks.items()], fontsize=8)
    axes.set_ylabel(TITLES[analysis.score])
    axes.set_title(f"{analysis.group}: means by class and length", fontsize=10)
    _legend(axes, fontsize=7)


def _legend(axes: Any, fontsize: int) -> None:
    """Names on the right of the axes and no higher than these, so that the stamp above has the figure's whole width."""
    columns = -(-len(axes.get_legend_handles_labels()[1]) // _LEGEND_ROWS)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, fontsize=fontsize, ncols=columns)

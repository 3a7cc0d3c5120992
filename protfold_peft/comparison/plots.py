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
from protfold_peft.comparison.statistics import bootstrap_interval
from protfold_peft.comparison.summary import TITLES
from protfold_peft.files import replacing

# Okabe & Ito's colours, apart from each other for the colour-blind, and a mark of its own for each method.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c00", "#000000")
_MARKS = "osD^vP*X"


def colours(analysis: Analysis) -> dict[str, tuple[str, str]]:
    """A colour and a mark of every method."""
    methods = list(dict.fromkeys(one.arm.method for one in analysis.arms))
    return {method: (COLORS[place % len(COLORS)], _MARKS[place % len(_MARKS)]) for place, method in enumerate(methods)}


def write_plots(analysis: Analysis, folder: Path, draws: int) -> list[Path]:
    """Draw all plots of a set of targets.

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
            with _figure(path) as axes:
                draw(analysis, axes, draws)
            if suffix == ".png":
                found.append(path)
    return found


@contextmanager
def _figure(path: Path) -> Iterator[Any]:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots()
    # Without dates and versions the same results give the same bytes.
    metadata = {"Software": None} if path.suffix == ".png" else {"CreationDate": None, "Producer": None}
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata=metadata)


def _interval(one: ArmScores, score: str, draws: int) -> tuple[float, float, float]:
    found = bootstrap_interval(one.values[score], draws=draws)
    return found.mean, found.low, found.high


def _parameters(analysis: Analysis, axes: Any, draws: int) -> None:
    base = analysis.base.mean(analysis.score)
    axes.axhline(base, color="0.5", linestyle="--", label=f"base model, {base:.3f}")
    for method, (colour, mark) in colours(analysis).items():
        own = sorted((one for one in analysis.arms if one.arm.method == method), key=lambda one: one.parameters)
        values = np.array([_interval(one, analysis.score, draws) for one in own])
        sizes = [one.parameters for one in own]
        ends = np.abs(values[:, 1:].T - values[:, 0])
        axes.errorbar(sizes, values[:, 0], yerr=ends, color=colour, marker=mark, capsize=2, linewidth=1, label=method)
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters")
    axes.set_ylabel(f"{TITLES[analysis.score]}, mean and 95 % interval over targets")
    axes.set_title(f"{analysis.group}: {len(analysis.targets)} targets", fontsize=10)
    axes.legend(fontsize=8)


def _differences(analysis: Analysis, axes: Any, draws: int) -> None:
    base = analysis.base.values[analysis.score][0]
    jitter = np.random.default_rng(0).uniform(-0.18, 0.18, size=len(base))
    styles = colours(analysis)
    for place, one in enumerate(analysis.arms):
        colour, _ = styles[one.arm.method]
        # Not every target has a score of every seed.
        known = ~np.isnan(one.values[analysis.score]).all(axis=0)
        changes = np.nanmean(one.values[analysis.score][:, known], axis=0) - base[known]
        axes.scatter(place + jitter[known], changes, s=9, color=colour, alpha=0.55, linewidths=0)
        found = analysis.of(one.label)
        if found is not None:
            low, mean, high = found.interval.low, found.interval.mean, found.interval.high
            axes.errorbar([place], [mean], yerr=[[mean - low], [high - mean]], color="black", marker="_", capsize=4)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_xticks(
        range(len(analysis.arms)), [one.label for one in analysis.arms], rotation=45, ha="right", fontsize=8
    )
    axes.set_ylabel(f"{TITLES[analysis.score]}, less the base model's")
    axes.set_title(f"{analysis.group}: a point for each target, the mean and its 95 % interval", fontsize=10)


def _classes(analysis: Analysis, axes: Any, draws: int) -> None:
    masks = analysis.classes()
    width = 0.8 / (len(analysis.arms) + 1)
    styles = colours(analysis)
    for place, one in enumerate((analysis.base, *analysis.arms)):
        colour = "0.6" if place == 0 else styles[one.arm.method][0]
        heights = [one.mean(analysis.score, mask) for mask in masks.values()]
        axes.bar(
            np.arange(len(masks)) + place * width, heights, width, color=colour, edgecolor="white", label=one.label
        )
    ticks = np.arange(len(masks)) + 0.4 - width / 2
    axes.set_xticks(ticks, [f"{kind}\n(n = {int(mask.sum())})" for kind, mask in masks.items()], fontsize=8)
    axes.set_ylabel(TITLES[analysis.score])
    axes.set_title(f"{analysis.group}: means by class and length", fontsize=10)
    axes.legend(fontsize=7, ncols=3)

"""From the table of scores to what can be said: every arm beside the base and beside LoRA, with what chance explains.

An arm is a method at a rank, over all its seeds. Per target the seeds are averaged for the test, and kept apart for the
interval. P-values are adjusted over all comparisons of one kind (with the base; with LoRA at equal rank; with LoRA at
equal parameters) within a set of targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from protfold_peft.comparison.cells import BASE, Arm
from protfold_peft.comparison.results import Results
from protfold_peft.comparison.scoring import MEASURES
from protfold_peft.comparison.statistics import (
    Interval,
    bootstrap_interval,
    holm,
    paired_differences,
    pareto_front,
    signed_rank,
    verdict,
)

TO_BASE, EQUAL_RANK, EQUAL_PARAMETERS = "base", "LoRA at equal rank", "LoRA nearest in parameters"
# Numbers of parameters within this ratio are called equal.
EQUAL_RATIO = 2.0


@dataclass(frozen=True, eq=False)
class ArmScores:
    """An arm on a set of targets.

    Attributes:
        arm: What it is; the base has the method `base`.
        learning_rate: That was chosen.
        facts: Means over its runs: `parameters`, `file_bytes`, `step_seconds`, `train_seconds`, `peak_memory_bytes`.
        seeds: In order.
        values: `(s, t)` of every measure; NaN where there is none.
    """

    arm: Arm
    learning_rate: float | None
    facts: Mapping[str, float | None]
    seeds: tuple[int, ...]
    values: Mapping[str, np.ndarray]

    @property
    def label(self) -> str:
        """Of the arm, as in tables and plots."""
        return self.arm.label

    @property
    def parameters(self) -> int:
        """Trained parameters; 0 for the base."""
        return int(self.facts["parameters"] or 0)

    def mean(self, measure: str, where: np.ndarray | None = None) -> float:
        """Over targets (those of `where`), each the mean over its seeds; NaN without any."""
        values = self.values[measure] if where is None else self.values[measure][:, where]
        known = values[:, ~np.isnan(values).all(axis=0)]
        return float(np.nanmean(known, axis=0).mean()) if known.size else math.nan

    def spread(self, measure: str) -> float:
        """Standard deviation of the seeds' means; NaN for one seed."""
        if len(self.seeds) < 2:
            return math.nan
        return float(np.nanmean(self.values[measure], axis=1).std(ddof=1))


@dataclass(frozen=True)
class Comparison:
    """An arm beside another.

    Attributes:
        arm: Label of the arm.
        other: Label of what it is compared with.
        kind: `TO_BASE`, `EQUAL_RANK` or `EQUAL_PARAMETERS`.
        ratio: Parameters of the other for one of the arm; NaN beside the base.
        interval: Of the mean difference, seeds drawn within targets.
        shared: The same, seeds drawn once for all targets.
        better: Targets on which the arm's mean over seeds is higher.
        n: Targets with both.
        p_value: Of the signed-rank test.
        p_adjusted: By Holm.
        verdict: `higher`, `lower` or `no difference was shown`.
    """

    arm: str
    other: str
    kind: str
    ratio: float
    interval: Interval
    shared: Interval
    better: int
    n: int
    p_value: float
    p_adjusted: float
    verdict: str


@dataclass(frozen=True, eq=False)
class Analysis:
    """A set of targets.

    Attributes:
        group: Its name.
        score: What is compared.
        targets: Names, `t` of them.
        kinds: Their classes.
        lengths: Their lengths.
        base: The base model.
        arms: In the order of the configuration.
        comparisons: All of them.
        front: Labels of the arms (and base) on the Pareto front, by parameters.
    """

    group: str
    score: str
    targets: tuple[str, ...]
    kinds: tuple[str, ...]
    lengths: tuple[int, ...]
    base: ArmScores
    arms: tuple[ArmScores, ...]
    comparisons: tuple[Comparison, ...]
    front: tuple[str, ...]

    def of(self, label: str, kind: str = TO_BASE) -> Comparison | None:
        """The comparison of an arm, if it was made."""
        return next((one for one in self.comparisons if one.arm == label and one.kind == kind), None)

    def classes(self) -> dict[str, np.ndarray]:
        """`(t,)` masks of the classes, where there are several, and of short and long targets."""
        kinds = np.array(self.kinds)
        found = {kind: kinds == kind for kind in dict.fromkeys(self.kinds)}
        found = found if len(found) > 1 else {}
        lengths = np.array(self.lengths)
        middle = int(np.median(lengths))
        if (lengths > middle).any():
            found |= {f"up to {middle} residues": lengths <= middle, f"over {middle} residues": lengths > middle}
        return found


def analyse(results: Results, group: str) -> Analysis:
    """All comparisons on one set of targets."""
    config = results.facts["config"]
    score, draws = config["report"]["score"], config["report"]["draws"]
    rows = [row for row in results.rows if row["set"] == group]
    targets = {row["target"]: row for row in rows}
    names = tuple(sorted(targets))
    arms: dict[Arm, list[Mapping[str, Any]]] = {}
    for row in rows:
        arms.setdefault(Arm(row["method"], row["rank"]), []).append(row)
    scored = {arm: _arm(arm, own, names) for arm, own in arms.items()}
    base = scored.pop(Arm(BASE, None))
    places = {method: place for place, method in enumerate(config["methods"])}
    ordered = tuple(sorted(scored.values(), key=lambda one: (places[one.arm.method], one.arm.rank or 0)))
    loras = [one for one in ordered if one.arm.method == config["lora"]]
    pairs: list[tuple[ArmScores, ArmScores, str]] = [(one, base, TO_BASE) for one in ordered]
    others = [one for one in ordered if one.arm.method != config["lora"]]
    for one in others:
        pairs += [(one, lora, EQUAL_RANK) for lora in loras if lora.arm.rank == one.arm.rank]
    if loras:
        pairs += [(one, nearest(one, loras), EQUAL_PARAMETERS) for one in others]
    compared = [_compared(one, other, kind, score, draws) for one, other, kind in pairs]
    every = (base, *ordered)
    front = pareto_front([one.parameters for one in every], [one.mean(score) for one in every])
    return Analysis(
        group=group,
        score=score,
        targets=names,
        kinds=tuple(targets[name]["class"] for name in names),
        lengths=tuple(targets[name]["length"] for name in names),
        base=base,
        arms=ordered,
        comparisons=tuple(_adjusted(compared)),
        front=tuple(every[place].label for place in front),
    )


def nearest(one: ArmScores, loras: Sequence[ArmScores]) -> ArmScores:
    """The LoRA whose number of parameters has the ratio nearest to 1."""
    return min(loras, key=lambda lora: (abs(math.log(lora.parameters / one.parameters)), lora.arm.rank or 0))


def _arm(arm: Arm, rows: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> ArmScores:
    """The rows of an arm on a set of targets, laid out by seed and target."""
    seeds = sorted({row["seed"] for row in rows}, key=lambda seed: -1 if seed is None else seed)
    places = {name: place for place, name in enumerate(targets)}
    values = {measure: np.full((len(seeds), len(targets)), np.nan) for measure in MEASURES}
    for row in rows:
        for measure in MEASURES:
            if row[measure] is not None:
                values[measure][seeds.index(row["seed"]), places[row["target"]]] = row[measure]
    firsts = {row["seed"]: row for row in rows}.values()

    def mean(name: str) -> float | None:
        known = [row[name] for row in firsts if row[name] is not None]
        return sum(known) / len(known) if known else None

    names = ("parameters", "file_bytes", "step_seconds", "train_seconds", "peak_memory_bytes")
    return ArmScores(arm, rows[0]["learning_rate"], {name: mean(name) for name in names}, tuple(seeds), values)


def _compared(one: ArmScores, other: ArmScores, kind: str, score: str, draws: int) -> Comparison:
    """One arm beside another; p-values are adjusted later."""
    if len(other.values[score]) == 1:
        differences = paired_differences(one.values[score], other.values[score])
    else:
        # The same seed means the same order of the data: what both saw under one seed is compared.
        shared = [seed for seed in one.seeds if seed in other.seeds]
        mine, theirs = ([arm.seeds.index(seed) for seed in shared] for arm in (one, other))
        differences = paired_differences(one.values[score][mine], other.values[score][theirs])
    known = differences[:, ~np.isnan(differences).all(axis=0)]
    if not known.size:
        nothing = Interval(math.nan, math.nan, math.nan)
        return Comparison(one.label, other.label, kind, math.nan, nothing, nothing, 0, 0, 1.0, 1.0, verdict(nothing, 1))
    means = np.nanmean(known, axis=0)
    test = signed_rank(means)
    return Comparison(
        arm=one.label,
        other=other.label,
        kind=kind,
        ratio=math.nan if kind == TO_BASE else other.parameters / one.parameters,
        interval=bootstrap_interval(known, draws=draws),
        shared=bootstrap_interval(known, draws=draws, shared_seeds=True),
        better=int((means > 0).sum()),
        n=len(means),
        p_value=test.p_value,
        p_adjusted=test.p_value,
        verdict="",
    )


def _adjusted(found: Sequence[Comparison]) -> list[Comparison]:
    adjusted: dict[int, float] = {}
    for kind in (TO_BASE, EQUAL_RANK, EQUAL_PARAMETERS):
        places = [place for place, one in enumerate(found) if one.kind == kind]
        adjusted |= dict(zip(places, holm([found[place].p_value for place in places])))
    return [
        replace(one, p_adjusted=adjusted[place], verdict=verdict(one.interval, adjusted[place]))
        for place, one in enumerate(found)
    ]

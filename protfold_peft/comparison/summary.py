"""What a comparison shows, in sentences: only what interval and test both support, and what was not shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from protfold_peft.comparison.analysis import (
    EQUAL_PARAMETERS,
    EQUAL_RANK,
    EQUAL_RATIO,
    TO_BASE,
    Analysis,
    ArmScores,
    Comparison,
)

TITLES = {
    "tm_score": "TM-score",
    "gdt_ts": "GDT-TS",
    "gdt_ha": "GDT-HA",
    "lddt_ca": "lDDT-CA",
    "lddt": "lDDT, all atoms",
    "rmsd_ca": "RMSD of CA, A",
    "plddt": "pLDDT",
    "plddt_error": "error of pLDDT",
    "plddt_bias": "bias of pLDDT",
    "plddt_pearson": "correlation of pLDDT",
    "clashes": "clashes",
}
NOTHING_SHOWN = "no difference was shown"


def summary(analyses: Sequence[Analysis], lora: str | None) -> list[str]:
    """Paragraphs: of the first set conclusions, of the others what was seen."""
    first, *others = analyses
    found = [_setting(first), *(_arm(first, one) for one in first.arms)]
    if lora is not None:
        found += [_beside_lora(first, one) for one in first.arms if one.arm.method != lora]
    found.append(_front(first))
    found.append(
        "That no difference was shown does not mean that there is none: the interval says how large it may still be."
    )
    for other in others:
        found.append(_described(other))
    return found


def _setting(analysis: Analysis) -> str:
    seeds = sorted({len(one.seeds) for one in analysis.arms})
    n = " or ".join(map(str, seeds)) + (" seed" if seeds == [1] else " seeds")
    text = (
        f"Conclusions are drawn from the set {analysis.group}, {len(analysis.targets)} targets, {n} for each method "
        f"and rank, by {TITLES[analysis.score]}. The base model has {analysis.base.mean(analysis.score):.4f}."
    )
    if 1 in seeds:
        text += " One seed tells nothing of how much luck there is in a training."
    # All differences of one sign are the most extreme there can be: two of all 2^n.
    count, made = len(analysis.targets), sum(one.kind == TO_BASE for one in analysis.comparisons)
    least = min(1.0, math.ldexp(made, 1 - count))
    if least >= 0.05:
        text += (
            f" With {count} targets and {made} comparisons with the base no adjusted p can be below {least:.2g}: "
            "whatever the scores, nothing can be shown here."
        )
    return text


def _arm(analysis: Analysis, one: ArmScores) -> str:
    found = analysis.of(one.label)
    head = f"{name(one)} ({one.parameters:,} parameters): {one.mean(analysis.score):.4f}; "
    return head + ("nothing to compare." if found is None else f"beside the base model {told(found)}.")


def _beside_lora(analysis: Analysis, one: ArmScores) -> str:
    arms = {arm.label: arm for arm in analysis.arms}
    parts = []
    equal = analysis.of(one.label, EQUAL_RANK)
    if equal is not None:
        parts.append(f"beside {name(arms[equal.other])}, which has {ratio(equal.ratio)} parameters, {told(equal)}")
    near = analysis.of(one.label, EQUAL_PARAMETERS)
    if near is not None and (equal is None or near.other != equal.other):
        size = "about as many" if 1 / EQUAL_RATIO <= near.ratio <= EQUAL_RATIO else ratio(near.ratio)
        what = f"beside {name(arms[near.other])}, the nearest in parameters ({size})"
        parts.append(f"{what}, {told(near)}")
    return f"{name(one)}: " + "; ".join(parts) + "." if parts else f"{name(one)}: there is no LoRA to compare with."


def told(found: Comparison) -> str:
    """A comparison in words, to stand after "beside ..."."""
    where = (
        f"mean difference {found.interval.mean:+.4f}, 95 % interval {found.interval.low:+.4f} to "
        f"{found.interval.high:+.4f}, adjusted p {p_text(found.p_adjusted)}, "
        f"higher on {found.better} of {found.n} targets"
    )
    if math.isnan(found.interval.low):
        where = f"{found.n} target{'' if found.n == 1 else 's'}, too few for an interval"
    if found.verdict == NOTHING_SHOWN:
        return f"{NOTHING_SHOWN} ({where})"
    return f"it is {found.verdict} ({where})"


def _front(analysis: Analysis) -> str:
    return (
        "No other has both fewer parameters and a higher mean score than these, as far as means tell: "
        + ", ".join(analysis.front)
        + "."
    )


def _described(analysis: Analysis) -> str:
    best = max(analysis.arms, key=lambda one: one.mean(analysis.score), default=None)
    text = (
        f"The set {analysis.group} ({len(analysis.targets)} targets) is described only, no conclusion rests on it: the "
        f"base model has {TITLES[analysis.score]} {analysis.base.mean(analysis.score):.4f}"
    )
    if best is None:
        return text + "."
    found = analysis.of(best.label, TO_BASE)
    tail = "" if found is None else f" ({found.interval.mean:+.4f}, higher on {found.better} of {found.n})"
    return f"{text}, the highest mean is {name(best)}'s: {best.mean(analysis.score):.4f}{tail}."


def name(one: ArmScores) -> str:
    """`lorta at rank 4`."""
    return one.arm.method if one.arm.rank is None else f"{one.arm.method} at rank {one.arm.rank}"


def ratio(value: float) -> str:
    """How many times as many: `64 times as many`, `0.31 times as many`."""
    return f"{value:.3g} times as many"


def p_text(value: float) -> str:
    """`0.03`, `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"

"""The tables of a comparison, as Markdown, LaTeX (booktabs) and, in the report, HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protfold_peft.comparison.analysis import Analysis, ArmScores
from protfold_peft.comparison.summary import TITLES, p_text

MISSING = "\N{EN DASH}"
_DIGITS = {"rmsd_ca": 2, "plddt": 1, "plddt_error": 1, "plddt_bias": 1, "clashes": 1}


@dataclass(frozen=True)
class Value:
    """A cell of a table: its text, and what it is sorted by (None: nothing is known)."""

    text: str
    key: float | str | None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: For files and anchors.
        title: Above it.
        columns: Their titles; the first is text.
        rows: As many values each.
        note: Below it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""


def tables_of(analysis: Analysis) -> list[Table]:
    """All tables of a set of targets."""
    found = [_scores(analysis), _comparisons(analysis), _costs(analysis)]
    if analysis.classes():
        found.append(_classes(analysis))
    return found


def rates_table(rates: Sequence[Mapping[str, Any]]) -> Table:
    """The grid of learning rates and what was chosen."""
    rows = tuple(
        (
            text(one["method"]),
            whole(one["rank"]),
            number(one["learning_rate"], "g"),
            number(one["validation_lddt_ca"], ".4f"),
            text("chosen, at the end of the grid" if one["at_end"] else "chosen" if one["chosen"] else ""),
        )
        for one in rates
    )
    columns = ("method", "rank", "learning rate", "validation lDDT-CA", "choice")
    note = "Chosen on validation chains alone; where one learning rate was given, nothing was chosen."
    return Table("learning_rates", "Learning rates", columns, rows, note)


def _scores(analysis: Analysis) -> Table:
    rows = []
    for one in (analysis.base, *analysis.arms):
        found = analysis.of(one.label)
        spread = one.spread(analysis.score)
        rows.append(
            (
                text(one.arm.method),
                whole(one.arm.rank),
                whole(one.parameters),
                *(
                    number(one.mean(measure), f".{_DIGITS.get(measure, 3)}f")
                    for measure in (analysis.score, *(m for m in TITLES if m != analysis.score))
                ),
                number(spread, ".4f"),
                Value(MISSING, None)
                if found is None
                else Value(
                    f"{found.interval.mean:+.4f} ({found.interval.low:+.4f}, {found.interval.high:+.4f})",
                    found.interval.mean,
                ),
            )
        )
    titles = (TITLES[analysis.score], *(title for measure, title in TITLES.items() if measure != analysis.score))
    columns = ("method", "rank", "parameters", *titles, "SD of seeds", "beside the base (95 % interval)")
    note = (
        f"Means over {len(analysis.targets)} targets, each the mean over its seeds. Scores are 0..1, pLDDT and its "
        "error 0..100; clashes are counted within a domain."
    )
    return Table("scores", f"Scores on {analysis.group}", columns, tuple(rows), note)


def _comparisons(analysis: Analysis) -> Table:
    rows = tuple(
        (
            text(one.arm),
            text(one.other),
            text(one.kind),
            number(one.ratio, ".3g"),
            number(one.interval.mean, "+.4f"),
            Value(f"{one.interval.low:+.4f} to {one.interval.high:+.4f}", one.interval.low),
            Value(f"{one.shared.low:+.4f} to {one.shared.high:+.4f}", one.shared.low),
            Value(f"{one.better} of {one.n}", one.better),
            Value(p_text(one.p_value), one.p_value),
            Value(p_text(one.p_adjusted), one.p_adjusted),
            text(one.verdict),
        )
        for one in analysis.comparisons
    )
    columns = (
        "method", "compared with", "why", "its parameters, times", f"difference of {TITLES[analysis.score]}",
        "95 % interval", "with shared seeds", "higher on", "p", "adjusted p", "verdict",
    )  # fmt: skip
    note = (
        "Intervals: percentile bootstrap over targets, seeds drawn within targets; in the second column seeds are "
        "drawn once for all targets. Wilcoxon signed-rank tests of means over seeds, adjusted by Holm among "
        "comparisons of one kind. A verdict needs both the first interval and the adjusted p below 0.05."
    )
    return Table("comparisons", f"Comparisons on {analysis.group}", columns, rows, note)


def _costs(analysis: Analysis) -> Table:
    def row(one: ArmScores) -> tuple[Value, ...]:
        facts = one.facts
        memory, size = facts["peak_memory_bytes"], facts["file_bytes"]
        return (
            text(one.arm.method),
            whole(one.arm.rank),
            number(one.learning_rate, "g"),
            whole(one.parameters),
            number(None if size is None else size / 1024, ",.1f"),
            number(facts["step_seconds"], ".3f"),
            number(None if memory is None else memory / 2**30, ".2f"),
            number(facts["train_seconds"], ".0f"),
            text("yes" if one.label in analysis.front else ""),
        )

    columns = (
        "method", "rank", "learning rate", "parameters", "file, KiB", "step, s", "peak memory, GiB", "training, s",
        "on the front",
    )  # fmt: skip
    note = (
        "Parameters that are trained; file of the weights; median step; most memory of the GPU, or of the process on "
        "a CPU. Times of runs that shared a machine are longer than alone. On the front: no other has fewer parameters "
        f"and a higher mean {TITLES[analysis.score]}."
    )
    return Table("costs", "Costs", columns, tuple(map(row, (analysis.base, *analysis.arms))), note)


def _classes(analysis: Analysis) -> Table:
    masks = analysis.classes()
    rows = tuple(
        (
            text(one.arm.method),
            whole(one.arm.rank),
            *(number(one.mean(analysis.score, mask), ".3f") for mask in masks.values()),
        )
        for one in (analysis.base, *analysis.arms)
    )
    columns = ("method", "rank", *(f"{kind} (n = {int(mask.sum())})" for kind, mask in masks.items()))
    note = f"Mean {TITLES[analysis.score]}, for description: the classes are too small for tests."
    return Table("classes", f"By class and length on {analysis.group}", columns, rows, note)


def text(value: str) -> Value:
    """A text; nothing last when sorted."""
    return Value(value, value or None)


def whole(value: float | None) -> Value:
    """A whole number with separators."""
    return Value(MISSING, None) if value is None else Value(f"{value:,.0f}", value)


def number(value: float | None, style: str) -> Value:
    """A number in a format; missing for None and NaN."""
    if value is None or math.isnan(value):
        return Value(MISSING, None)
    return Value(format(value, style), value)


def markdown(table: Table) -> str:
    """GitHub's Markdown; figures to the right."""
    lines = [f"## {table.title}", "", "| " + " | ".join(map(_bar, table.columns)) + " |"]
    lines.append("|" + "|".join("---:" if right else "---" for right in numeric(table)) + "|")
    lines += ["| " + " | ".join(_bar(value.text) for value in row) + " |" for row in table.rows]
    return "\n".join([*lines, "", *([table.note, ""] if table.note else [])])


def latex(table: Table) -> str:
    """A `table` environment for the package booktabs."""
    align = "".join("r" if right else "l" for right in numeric(table))
    rows = [" & ".join(tex(value.text) for value in row) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{tex(table.title)}. {tex(table.note)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(map(tex, table.columns)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", MISSING: "--",
    }
)  # fmt: skip


def tex(value: str) -> str:
    """Text with LaTeX's own characters escaped."""
    return value.translate(_TEX)


def numeric(table: Table) -> list[bool]:
    """Which columns hold numbers, and stand to the right."""
    return [
        any(isinstance(row[column].key, int | float) for row in table.rows)
        and not any(isinstance(row[column].key, str) for row in table.rows)
        for column in range(len(table.columns))
    ]


def _bar(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")

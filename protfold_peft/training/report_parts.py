"""Tables and charts of the report of a fine-tuning run, as HTML. All text from outside is escaped here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from protfold_peft.pages import scrolled
from protfold_peft.pages.charts import Point, finite, line_chart, scatter_chart

if TYPE_CHECKING:
    from protfold_peft.training.report import TargetReport

Scores = Mapping[str, float | None]


class Measure(NamedTuple):
    """A score as the page shows it.

    Attributes:
        key: Its name in the data.
        title: Its name on the page.
        digits: After the point.
        better: 1: larger is better; -1: smaller; 0: nearer to zero; None: neither.
    """

    key: str
    title: str
    digits: int
    better: int | None


SCORES = (
    Measure("lddt_ca", "lDDT-CA", 3, 1),
    Measure("lddt", "lDDT, all atoms", 3, 1),
    Measure("tm_score", "TM-score", 3, 1),
    Measure("gdt_ts", "GDT-TS", 3, 1),
    Measure("plddt", "pLDDT", 1, None),
)
CONFIDENCE = (
    Measure("pearson", "Pearson correlation", 3, 1),
    Measure("spearman", "Spearman correlation", 3, 1),
    Measure("error", "mean absolute error, points of pLDDT", 1, -1),
    Measure("bias", "bias (pLDDT above the truth), points of pLDDT", 1, 0),
)

_MISSING = '<span title="not known">&#8211;</span>'
_OPTIMIZATION = {"learning_rate": "learning rate", "grad_norm": "gradient norm"}
_NO_CURVE = {"step", "seconds", *_OPTIMIZATION}


def facts_table(facts: Mapping[str, str]) -> str:
    """A table of two columns; nothing without facts."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f'<table class="facts"><caption>The run</caption>{rows}</table>' if rows else ""


def training_charts(rows: Sequence[Mapping[str, float]]) -> str:
    """A chart per column: the loss, every term of it, the learning rate and the norm of the gradient."""
    columns = dict.fromkeys(column for row in rows for column in row)
    terms = [column for column in columns if column not in _NO_CURVE and column != "loss"]
    curves = {"loss": "loss (total)", **{term: f"{term} (unweighted)" for term in terms}, **_OPTIMIZATION}
    return _charts([_curve(rows, column, title) for column, title in curves.items()])


def validation_charts(rows: Sequence[Mapping[str, float]], base: Scores) -> str:
    """A chart per score; the base model is a line, from the row of step 0 or else from its mean scores."""
    start = next((row for row in rows if row.get("step") == 0), {})
    drawn = []
    for measure in SCORES:
        height = finite(start.get(measure.key))
        if height is None:
            height = finite(base.get(measure.key))
        reference = None if height is None else ("base model", height)
        drawn.append(_curve(rows, measure.key, measure.title, reference))
    return _charts(drawn)


def _curve(
    rows: Sequence[Mapping[str, float]], column: str, title: str, reference: tuple[str, float] | None = None
) -> str:
    placed = [(step, finite(row.get(column))) for row in rows if (step := finite(row.get("step"))) is not None]
    steps, values = [step for step, _ in placed], [value for _, value in placed]
    return line_chart(title, steps, values, x_label="step", reference=reference)


def _charts(drawn: Sequence[str]) -> str:
    found = "".join(drawn)
    return f'<div class="charts">{found}</div>' if found else ""


def comparison(
    caption: str, measures: Sequence[Measure], base: Scores, adapted: Scores, targets: Sequence[TargetReport] = ()
) -> str:
    """A table of measures: base, adapted, difference, and in how many of the targets the value rose."""
    head = ["measure", "base", "adapted", "difference"] + (["higher in"] if targets else [])
    rows = []
    for measure in measures:
        cells = [_cell(value) for value in _compared(measure, base, adapted)]
        if targets:
            cells.append(f"<td>{_higher(measure, targets)}</td>")
        rows.append(
            f'<tr data-measure="{measure.key}"><th scope="row">{escape(measure.title)}</th>{"".join(cells)}</tr>'
        )
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    return scrolled(
        f'<table class="compared"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
        caption,
    )


def targets_table(targets: Sequence[TargetReport], shown: Collection[int]) -> str:
    """A row per target with every score before and after; a script sorts it by any column.

    Args:
        targets: In their order.
        shown: Places in `targets` of those whose structures are in the page.
    """
    measures = [
        measure
        for measure in SCORES
        if any(finite(scores.get(measure.key)) is not None for t in targets for scores in (t.base, t.adapted))
    ]
    groups = "".join(f'<th scope="colgroup" colspan="3">{escape(measure.title)}</th>' for measure in measures)
    titles = ["protein", "residues"] + ["base", "adapted", "difference"] * len(measures)
    heads = "".join(
        f'<th scope="col" class="{"" if place else "text"}">'
        f'<button type="button" data-column="{place}">{title}</button></th>'
        for place, title in enumerate(titles)
    )
    rows = []
    for place, target in enumerate(targets):
        name = escape(target.name)
        if place in shown:
            name = f'<button type="button" title="show the structures">{name}</button>'
        cells = [_cell(value) for measure in measures for value in _compared(measure, target.base, target.adapted)]
        rows.append(
            f'<tr data-target="{place}"><th scope="row" class="text" data-value="{escape(target.name)}">{name}</th>'
            f'<td data-value="{target.residues}">{target.residues}</td>{"".join(cells)}</tr>'
        )
    return scrolled(
        '<table id="targets"><caption>Every protein; a title sorts</caption>'
        f'<thead><tr><td colspan="2"></td>{groups}</tr><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
        "Every protein",
    )


def scatter(targets: Sequence[TargetReport]) -> str:
    """lDDT-CA of every target before and after; empty without any."""
    points = []
    for place, target in enumerate(targets):
        before, after = finite(target.base.get("lddt_ca")), finite(target.adapted.get("lddt_ca"))
        if before is not None and after is not None:
            label = f"{target.name}: {before:.3f} before, {after:.3f} after"
            points.append(Point(before, after, label, place))
    title = "lDDT-CA: above the line, the adapter helped"
    return _charts([scatter_chart(title, points, x_label="base model", y_label="adapted model")])


def score_text(base: Scores, adapted: Scores) -> str:
    """All known scores of a target in a line."""
    parts = []
    for measure in SCORES:
        before, after = finite(base.get(measure.key)), finite(adapted.get(measure.key))
        if before is not None and after is not None:
            parts.append(f"{measure.title} {before:.{measure.digits}f} before, {after:.{measure.digits}f} after")
    return "; ".join(parts)


class _Value(NamedTuple):
    """What a cell holds: the number, its text and the class that colours it."""

    number: float | None
    text: str = _MISSING
    kind: str = ""


def _compared(measure: Measure, base: Scores, adapted: Scores) -> tuple[_Value, _Value, _Value]:
    before, after = finite(base.get(measure.key)), finite(adapted.get(measure.key))
    values = [_Value(None) if v is None else _Value(v, f"{v:.{measure.digits}f}") for v in (before, after)]
    if before is None or after is None:
        return values[0], values[1], _Value(None)
    change = after - before
    # Rounded first, so that a difference shown as 0 has no sign and no colour.
    rounded = round(change, measure.digits)
    text = f"{rounded:+.{measure.digits}f}" if rounded else f"{0:.{measure.digits}f}"
    gain = {1: rounded, -1: -rounded, 0: abs(before) - abs(after) if rounded else 0.0, None: 0.0}[measure.better]
    return values[0], values[1], _Value(change, text, "better" if gain > 0 else "worse" if gain < 0 else "")


def _cell(value: _Value) -> str:
    kind = f' class="{value.kind}"' if value.kind else ""
    return f'<td{kind} data-value="{"" if value.number is None else repr(value.number)}">{value.text}</td>'


def _higher(measure: Measure, targets: Sequence[TargetReport]) -> str:
    pairs = [(finite(target.base.get(measure.key)), finite(target.adapted.get(measure.key))) for target in targets]
    known = [(before, after) for before, after in pairs if before is not None and after is not None]
    return f"{sum(after > before for before, after in known)} of {len(known)}" if known else _MISSING

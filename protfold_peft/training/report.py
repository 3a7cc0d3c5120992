"""`report.html` of a fine-tuning run: what was trained, how it went, and what it changed, in one file.

All figures and tables are in the page as text and SVG; a script sorts the table of targets and shows their structures.
`finetune_report_page.html` is the page without its data; what it shares with other reports is in `protfold_peft.pages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from protfold_peft.files import write_text
from protfold_peft.pages import NO_VIEWER, fill, json_for_script, molstar, pack
from protfold_peft.pages.charts import finite
from protfold_peft.training.report_parts import (
    CONFIDENCE,
    SCORES,
    comparison,
    facts_table,
    scatter,
    score_text,
    targets_table,
    training_charts,
    validation_charts,
)

# Bounds that keep the page one that a browser opens at once; what is left out is said on the page.
MAX_STRUCTURES = 100
MAX_STRUCTURE_BYTES = 40_000_000
MAX_TARGETS = 2_000

# Colour-blind safe, and apart from each other on white: name of the structure, name of the colour, the colour.
_COLORS = (
    ("experiment", "grey", "#8c8c8c"),
    ("base", "orange", "#e69f00"),
    ("adapted", "blue", "#0072b2"),
)
# A cartoon of two or three residues draws nothing.
_SHORTEST_CARTOON = 4


@dataclass(frozen=True)
class TargetReport:
    """One protein on which both models were judged.

    Attributes:
        name: Of the target; any text.
        residues: Its length.
        base: Scores of the base model: `lddt_ca`, `lddt` (all atoms), `tm_score`, `gdt_ts` 0..1, `plddt` 0..100. A
            score that is None, NaN or absent is shown as missing.
        adapted: The same of the adapted model.
        structures: PDB texts of the experiment, the base model's and the adapted model's prediction, both predictions
            superposed on the experiment; None: the target is not among those shown.
    """

    name: str
    residues: int
    base: Mapping[str, float | None]
    adapted: Mapping[str, float | None]
    structures: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class RunReport:
    """All that the page tells.

    Attributes:
        title: Such as "lorta adapter of facebook/esmfold_v1".
        facts: Shown as a table: method, rank, trained parameters, steps, time, peak memory, versions.
        warnings: Shown on top.
        judged_on: What the scores are of: "validation chains", or the training chains and what that is worth.
        training: Rows of `metrics.csv`: step, loss, learning_rate, grad_norm, seconds, and every loss term.
        validation: Rows of `validation.csv`: step and the scores; step 0 is the base model.
        base: Mean scores of the base model.
        adapted: Mean scores of the adapted model.
        targets: What the means are of.
        outside: Mean scores of the base and of the adapted model on proteins unlike the trained ones.
        confidence: `pearson` and `spearman` (-1..1) of pLDDT and lDDT-CA, `error` and `bias` in points of pLDDT
            0..100, of the base and of the adapted model.
    """

    title: str
    facts: Mapping[str, str]
    warnings: tuple[str, ...]
    judged_on: str
    training: Sequence[Mapping[str, float]]
    validation: Sequence[Mapping[str, float]]
    base: Mapping[str, float | None]
    adapted: Mapping[str, float | None]
    targets: Sequence[TargetReport]
    outside: tuple[Mapping[str, float | None], Mapping[str, float | None]] | None = None
    confidence: tuple[Mapping[str, float | None], Mapping[str, float | None]] | None = None


def write_report(path: Path, report: RunReport) -> None:
    """Write the page; the same report gives the same bytes.

    Of a large run the structures whose lDDT-CA changed most are embedded, `MAX_STRUCTURES` at most.
    """
    structures, notes = _structures(report.targets)
    # Without a structure the page does without the viewer, which is most of its size.
    script, style = molstar() if structures else ("", "")
    if structures and not script:
        notes.append(NO_VIEWER)
    shown = report.targets[:MAX_TARGETS]
    if len(shown) < len(report.targets):
        notes.append(f"The table shows the first {len(shown)} of {len(report.targets)} proteins.")
    content = {
        "structures": structures,
        "colors": [{"name": name, "color": color} for name, _, color in _COLORS],
        "viewer": bool(script),
    }
    page = resources.files("protfold_peft.training").joinpath("finetune_report_page.html").read_text(encoding="utf-8")
    values = {
        "TITLE": escape(report.title),
        "WARNINGS": _paragraphs(report.warnings, "warning"),
        "NOTES": _paragraphs(notes, "note"),
        "FACTS": facts_table(report.facts),
        "TRAINING": training_charts(report.training) or _absent("No step was logged."),
        "VALIDATION": validation_charts(report.validation, report.base)
        or _absent("The model was not validated during this run."),
        "JUDGED_ON": escape(report.judged_on),
        "SCORES": comparison("Mean scores", SCORES, report.base, report.adapted, report.targets),
        "SCATTER": scatter(report.targets) or _absent("No protein has an lDDT-CA of both models."),
        "TARGETS": targets_table(shown, set(structures)) if shown else _absent("No protein was judged."),
        "CHOICE": _choice(),
        "OUTSIDE": comparison("Mean scores on proteins unlike the trained ones", SCORES, *report.outside)
        if report.outside
        else _absent("Not measured in this run."),
        "CONFIDENCE": comparison("pLDDT beside lDDT-CA", CONFIDENCE, *report.confidence)
        if report.confidence
        else _absent("Not measured in this run."),
        "MOLSTAR_CSS": style,
        "MOLSTAR_JS": script,
        "DATA": json_for_script(content),
    }
    write_text(path, fill(page, values))


def _structures(targets: Sequence[TargetReport]) -> tuple[dict[int, Any], list[str]]:
    """What the viewer needs, by place in `targets`, and a note on what is left out."""
    given = [(place, target.structures) for place, target in enumerate(targets) if target.structures]
    by_change = sorted(given, key=lambda pair: -abs(_change(targets[pair[0]])))
    found: dict[int, Any] = {}
    size = 0
    for place, texts in by_change[:MAX_STRUCTURES]:
        target = targets[place]
        packed = [pack(text.encode()) for text in texts]
        size += sum(map(len, packed))
        if size > MAX_STRUCTURE_BYTES and found:
            break
        found[place] = {
            "name": target.name,
            "packed": packed,
            "style": "cartoon" if target.residues >= _SHORTEST_CARTOON else "ball_and_stick",
            "scores": score_text(target.base, target.adapted),
        }
    if len(found) == len(given):
        return dict(sorted(found.items())), []
    note = f"{len(found)} of {len(given)} structures are shown, those whose lDDT-CA changed most."
    return dict(sorted(found.items())), [note]


def _change(target: TargetReport) -> float:
    """By how much the adapter changed lDDT-CA; 0 where that is not known."""
    before, after = (finite(scores.get("lddt_ca")) for scores in (target.base, target.adapted))
    return after - before if before is not None and after is not None else 0.0


def _choice() -> str:
    """A box to tick for each of the three structures, named by its colour."""
    return "".join(
        f'<label><input type="checkbox" data-structure="{place}" checked> '
        f'<i style="background: {color}"></i> {name} ({color_name})</label>'
        for place, (name, color_name, color) in enumerate(_COLORS)
    )


def _paragraphs(texts: Sequence[str], kind: str) -> str:
    return "".join(f'<p class="{kind}">{escape(text)}</p>' for text in texts)


def _absent(text: str) -> str:
    return f'<p class="muted">{escape(text)}</p>'

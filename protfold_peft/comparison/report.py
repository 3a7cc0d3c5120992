"""`report.html` of a comparison: what it shows, in one file, with sortable tables and the structures of some targets.

`comparison_report_page.html` is the page without its data; what it shares with other reports is in
`protfold_peft.pages`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from protfold_peft.comparison.analysis import Analysis
from protfold_peft.comparison.cells import BASE
from protfold_peft.comparison.plots import COLORS
from protfold_peft.comparison.results import EXPERIMENT, Results
from protfold_peft.comparison.summary import TITLES
from protfold_peft.comparison.tables import Table, Value, number, numeric, text, whole
from protfold_peft.files import write_text
from protfold_peft.pages import NO_VIEWER, fill, json_for_script, molstar, pack, scrolled

# More rows make a table that a browser sorts slowly; the CSV has them all.
MAX_ROWS = 3_000
# Of the experiment and the base model, which no arm has.
_GREY, _BLACK = "#8c8c8c", "#000000"


def write_report(
    path: Path,
    results: Results,
    analyses: Sequence[Analysis],
    paragraphs: Sequence[str],
    tables: Sequence[Table],
    plots: Sequence[Path],
) -> None:
    """Write the page; the same results give the same bytes.

    Args:
        path: The file.
        results: Whose structures and warnings are shown.
        analyses: Of every set of targets.
        paragraphs: The summary.
        tables: In their order.
        plots: PNG files, embedded.
    """
    script, style = molstar() if results.structures else ("", "")
    notes = [NO_VIEWER] if results.structures and not script else []
    labels = [EXPERIMENT, BASE, *(one.label for one in analyses[0].arms)]
    colours = [_GREY, _BLACK, *(COLORS[place % len(COLORS)] for place in range(len(labels) - 2))]
    content = {
        "viewer": bool(script),
        "labels": [{"name": name, "color": colour} for name, colour in zip(labels, colours)],
        "targets": [
            {"name": name, "models": {label: pack(model.encode()) for label, model in texts.items()}}
            for name, texts in results.structures.items()
        ],
    }
    every, left = _targets(results)
    if left:
        notes.append(f"The table of targets shows the first {MAX_ROWS:,} rows; results.csv has {left:,} more.")
    page = resources.files("protfold_peft.comparison").joinpath("comparison_report_page.html").read_text("utf-8")
    values = {
        "TITLE": escape(f"Comparison on {', '.join(one.group for one in analyses)}"),
        "WARNINGS": _paragraphs(warnings_of(results), "warning"),
        "NOTES": _paragraphs([*notes, results.facts["leakage"]], "note"),
        "SUMMARY": _paragraphs(paragraphs, "said"),
        "PLOTS": "".join(_image(plot) for plot in plots),
        "TABLES": "".join(_section(table) for table in tables),
        "TARGETS": table_html(every),
        "CONFIG": escape(yaml.safe_dump(results.facts["config"], sort_keys=False)),
        "FACTS": escape(facts_line(results)),
        "MOLSTAR_CSS": style,
        "MOLSTAR_JS": script,
        "DATA": json_for_script(content),
    }
    write_text(path, fill(page, values))


def warnings_of(results: Results) -> list[str]:
    """What has to stand on top of every output."""
    facts = results.facts
    found = [facts["stamp"]] if facts["stamp"] else []
    if facts["failed"]:
        listed = "; ".join(f"{name}: {why}" for name, why in list(facts["failed"].items())[:5])
        found.append(f"{len(facts['failed'])} runs failed and are not in the results ({listed})")
    if facts["missing"]:
        listed = ", ".join(facts["missing"][:5])
        found.append(f"{len(facts['missing'])} runs are not done yet and are not in the results ({listed})")
    ends = [f"{one['method']} at rank {one['rank']}" for one in facts["learning_rates"] if one["at_end"]]
    if ends:
        found.append(
            f"The best learning rate lies at the end of its grid, and may lie beyond it, for {', '.join(ends)}"
        )
    return found


def facts_line(results: Results) -> str:
    """Program and time."""
    hours = results.facts["seconds"] / 3600
    return (
        f"protfold-peft {results.facts['version']}; {results.facts['trainings']} trainings and their judgement took "
        f"{hours:.2f} hours, added up over processes."
    )


def _targets(results: Results) -> tuple[Table, int]:
    measures = list(TITLES)
    rows = sorted(results.rows, key=lambda row: (row["set"], row["target"]))
    shown = tuple(
        (
            text(row["target"]),
            text(row["set"]),
            text(row["class"]),
            whole(row["length"]),
            text(row["method"]),
            whole(row["rank"]),
            number(row["seed"], "d"),
            *(number(None if row[m] is None else row[m], ".3f") for m in measures),
        )
        for row in rows[:MAX_ROWS]
    )
    columns = ("target", "set", "class", "residues", "method", "rank", "seed", *(TITLES[m] for m in measures))
    return Table("targets", "Every run and target", columns, shown), max(0, len(rows) - MAX_ROWS)


def table_html(table: Table) -> str:
    """A table whose titles sort it."""
    heads = "".join(
        f'<th scope="col" class="{"" if right else "text"}">'
        f'<button type="button" data-column="{place}">{escape(title) or "&nbsp;"}</button></th>'
        for place, (title, right) in enumerate(zip(table.columns, numeric(table)))
    )
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    note = f'<p class="muted">{escape(table.note)}</p>' if table.note else ""
    element = (
        f'<table class="sortable" id="{table.name}"><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )
    return scrolled(element, table.title) + note


def _cell(value: Value) -> str:
    key = value.key
    if key is None or (isinstance(key, float) and math.isnan(key)):
        return f'<td data-value="">{escape(value.text)}</td>'
    if isinstance(key, str):
        return f'<td class="text" data-value="{escape(key)}">{escape(value.text)}</td>'
    return f'<td data-number="" data-value="{key!r}">{escape(value.text)}</td>'


def _section(table: Table) -> str:
    return f'<section aria-label="{escape(table.title)}">{table_html(table)}</section>'


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    group, _, kind = path.stem.rpartition("_")
    what = {
        "parameters": "score against trained parameters",
        "differences": "differences from the base model, target by target",
        "classes": "means by class and length",
    }[kind]
    described = escape(f"{group}: {what}; the tables have the values")
    return f'<img src="data:image/png;base64,{data}" alt="{described}">'


def _paragraphs(texts: Sequence[Any], kind: str) -> str:
    return "".join(f'<p class="{kind}">{escape(str(one))}</p>' for one in texts if one)

"""The results of a comparison: one tidy table, a row for every run and target, and what has to be known about it.

`results.parquet` holds all of it, the facts and the structures to show as metadata of the file, so that every other
output can be made from it alone. `results.csv` is the table.
"""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from protfold_peft.comparison.cells import BASE, TRAIN, Cell
from protfold_peft.comparison.scoring import MEASURES
from protfold_peft.comparison.sweep import DONE, FAILED, Sweep, failure, learning_rates
from protfold_peft.comparison.targets import Target
from protfold_peft.comparison.workplace import MODELS, done
from protfold_peft.errors import DataError
from protfold_peft.files import replacing, write_text
from protfold_peft.structure import write_pdb
from protfold_peft.version import __version__

TABLE, CSV, RATES = "results.parquet", "results.csv", "learning_rates.csv"
_KEY = b"protfold_comparison"
EXPERIMENT = "experiment"

# The columns, in order: of the run, of the target, of both.
_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
COLUMNS: dict[str, Any] = {
    "method": _TEXT, "rank": _WHOLE, "learning_rate": _REAL, "seed": _WHOLE, "parameters": _WHOLE,
    "file_bytes": _WHOLE, "step_seconds": _REAL, "train_seconds": _REAL, "peak_memory_bytes": _WHOLE,
    "set": _TEXT, "target": _TEXT, "class": _TEXT, "length": _WHOLE, "folded": _WHOLE, "leaked": pa.bool_(),
    **dict.fromkeys(MEASURES, _REAL), "clashes": _WHOLE,
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """What a comparison came to.

    Attributes:
        rows: By `COLUMNS`; the base model has the method `base` and neither rank nor seed. `leaked`: the target
            resembles a chain that was learnt from or chosen by.
        facts: The rest: `config`, `learning_rates`, `leakage` and its `stamp`, `missing` and `failed` cells, `seconds`,
            `version`.
        structures: PDB texts by target (`SET/NAME`) and by label (`experiment`, `base`, `lorta_r4`), laid over the
            experiment.
    """

    rows: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    structures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def collect(sweep: Sweep) -> Results:
    """Gather what is done; what is not is named among the facts.

    Raises:
        DataError: Not even the base model was judged.
    """
    rows: list[dict[str, Any]] = []
    leaked = {(one.set, one.target) for one in sweep.leakage.offenders}
    seconds = 0.0
    for cell in sweep.cells:
        content = done(sweep.place, cell)
        if content is None:
            continue
        facts, described = content["facts"], content["cell"]
        seconds += facts.get("judge_seconds", 0.0)
        shared = {name: {**facts, **described}.get(name) for name in COLUMNS}
        rows += [{**shared, **row, "leaked": (row["set"], row["target"]) in leaked} for row in content.get("rows", ())]
    if not any(row["method"] == BASE for row in rows):
        first = sweep.cells[0]
        why = failure(sweep.place, first) or "it was not run yet"
        raise DataError(f"{sweep.place.out}: the base model was not judged: {why}; run cell 0 first")
    trainings: dict[str, float] = {}
    for path in sorted((sweep.place.out / "trainings").glob("*/results.json")):
        trainings[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))["seconds"]
    states = {cell: sweep.state(cell) for cell in sweep.cells}
    facts = {
        "config": sweep.place.config.model_dump(),
        "learning_rates": learning_rates(sweep),
        "leakage": sweep.leakage.note,
        "stamp": sweep.leakage.stamp,
        "failed": {cell.name: failure(sweep.place, cell) for cell, state in states.items() if state == FAILED},
        "missing": [cell.name for cell, state in states.items() if state not in (DONE, FAILED)],
        "seconds": seconds + sum(trainings.values()),
        "trainings": len(trainings),
        "version": __version__,
    }
    return Results(rows, facts, _structures(sweep, rows))


def _structures(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The experiment, and the models of the base and of every arm's first seed, of the targets that changed most."""
    score = sweep.place.config.report.score
    base = {(row["set"], row["target"]): row[score] for row in rows if row["method"] == BASE}
    change: dict[tuple[str, str], float] = {}
    for row in rows:
        key = row["set"], row["target"]
        if row[score] is not None and base.get(key) is not None:
            change[key] = max(change.get(key, 0.0), abs(row[score] - base[key]))
    chosen = sorted(change, key=lambda key: (-change[key], key))[: sweep.place.config.report.shown]
    targets = {(target.group, target.name): target for target in sweep.place.targets}
    shown: list[tuple[str, Cell]] = []
    for cell in sweep.cells:
        label = BASE if cell.arm is None else cell.arm.label
        first = cell.arm is None or cell.seed == sweep.place.config.seeds[0]
        if cell.kind in (BASE, TRAIN) and first and sweep.state(cell) == DONE:
            shown.append((label, cell))
    found: dict[str, dict[str, str]] = {}
    for key in sorted(chosen):
        texts = {EXPERIMENT: _experiment(targets[key])}
        for label, cell in shown:
            path = sweep.place.out / MODELS / cell.name / key[0] / f"{key[1]}.pdb.gz"
            if path.is_file():
                texts[label] = gzip.decompress(path.read_bytes()).decode()
        found["/".join(key)] = texts
    return found


def _experiment(target: Target) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "target.pdb"
        write_pdb(target.reference, path)
        return path.read_text(encoding="utf-8")


def save(results: Results, out: Path) -> None:
    """Write the results file and the table as CSV."""
    columns = {name: [row.get(name) for row in results.rows] for name in COLUMNS}
    schema = pa.schema([pa.field(name, kind) for name, kind in COLUMNS.items()])
    content = json.dumps({"facts": results.facts, "structures": results.structures})
    packed = base64.b64encode(gzip.compress(content.encode(), mtime=0))
    table = pa.Table.from_pydict(columns, schema=schema).replace_schema_metadata({_KEY: packed})
    with replacing(out / TABLE) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    write_text(out / CSV, csv_text(results.rows, list(COLUMNS)))
    write_text(out / RATES, csv_text(results.facts["learning_rates"], list(results.facts["learning_rates"][0])))


def load(path: Path) -> Results:
    """Read a results file.

    Raises:
        DataError: It is not there, or not one of ours.
    """
    try:
        table = pq.read_table(path)
        content = json.loads(gzip.decompress(base64.b64decode(table.schema.metadata[_KEY])))
        rows = table.select(list(COLUMNS)).to_pylist()
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no results file of protfold compare"
        raise DataError(f"{path}: cannot be read: {reason}; make it with --collect") from error
    return Results(rows, content["facts"], content["structures"])


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A CSV table; nothing where a value is None."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if row.get(name) is None else row[name] for name in columns} for row in rows)
    return file.getvalue()

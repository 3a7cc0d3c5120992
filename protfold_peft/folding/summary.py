"""The table of a run, `summary.csv`: one row per record, rebuilt from the markers on disk.

Rows come from `NAME.done.txt` and `NAME.failed.txt`, so a run that was killed and started again, or was split into
shards, ends with the table of an uninterrupted one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from protfold_peft.files import write_text
from protfold_peft.folding.inputs import Rejected
from protfold_peft.folding.markers import DONE_SUFFIX, FAILED_SUFFIX, read_done, read_failed
from protfold_peft.folding.types import Record

DONE = "done"
FAILED = "failed"
INVALID = "invalid"
PENDING = "pending"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: The record's name; for an input that cannot be read, the file's.
        length: Residues, all chains together.
        plddt: Mean pLDDT, 0..100; None unless done.
        ptm: Predicted TM-score, 0..1; None unless done.
        iptm: Predicted interface TM-score, 0..1; None unless done and a complex.
        status: `done`, `failed` (folding it failed), `invalid` (cannot be folded as given) or `pending`.
        error: Why it failed or is invalid.
        seconds: Time in the model.
        warning: What has to be said of the result, such as untrained weights.
    """

    name: str
    length: int
    plddt: float | None = None
    ptm: float | None = None
    iptm: float | None = None
    status: str = PENDING
    error: str = ""
    seconds: float | None = None
    warning: str = ""


def collect_rows(
    folder: Path, records: Sequence[Record], rejected: Sequence[Rejected], *, others: bool = True
) -> list[Row]:
    """The rows of these records in their order, then of rejected inputs, then of other records found in the folder.

    Args:
        folder: Where the outputs are.
        records: The records of the run.
        rejected: What could not be read.
        others: Whether records of earlier runs with other inputs are listed too, by name.
    """
    rows = [read_row(folder, record.name) or Row(record.name, len(record)) for record in records]
    rows += [Row(each.name, each.length, status=INVALID, error=each.error) for each in rejected]
    if others:
        known = {row.name.lower() for row in rows}
        found = {
            path.name.removesuffix(suffix)
            for suffix in (DONE_SUFFIX, FAILED_SUFFIX)
            for path in folder.glob(f"*{suffix}")
        }
        earlier = (read_row(folder, name) for name in sorted(found) if name.lower() not in known)
        rows += [row for row in earlier if row is not None]
    return rows


def read_row(folder: Path, name: str) -> Row | None:
    """The row of one record as its marker tells it, None where it has none."""
    done = read_done(folder / f"{name}{DONE_SUFFIX}")
    if done is not None:
        return Row(name, done.length, done.plddt, done.ptm, done.iptm, DONE, seconds=done.seconds, warning=done.warning)
    failed = read_failed(folder / f"{name}{FAILED_SUFFIX}")
    if failed is not None:
        return Row(name, failed.length, status=FAILED, error=failed.error, seconds=failed.seconds)
    return None


def write_summary(path: Path, rows: Sequence[Row]) -> None:
    """Write the table as CSV with a header line; a value that does not exist is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in fields(Row)]
    writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow(["" if value is None else value for value in values])
    write_text(path, buffer.getvalue())

"""The table on the screen: a line per row, and the mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from protfold_peft.evaluation.matching import PART
from protfold_peft.evaluation.rows import Row

# Lines shown; the files have all of them.
_MAX_LINES = 100
# Of output that is no terminal: wide enough for all columns.
_WIDTH = 140
# On a narrow terminal these columns give way, one after the other, until names have this room.
_EXPENDABLE = ("matched_by", "gdt_ha", "clashes", "coverage", "gdt_ts", "rmsd_ca", "plddt_error", "lddt")
_NAME_WIDTH = 16
_GAP = 2

_COLUMNS = (
    ("tm_score", "TM-score", 4),
    ("gdt_ts", "GDT-TS", 4),
    ("gdt_ha", "GDT-HA", 4),
    ("lddt_ca", "lDDT-CA", 4),
    ("lddt", "lDDT", 4),
    ("rmsd_ca", "RMSD Å", 3),
    ("coverage", "coverage", 3),
    ("matched_by", "matched by", 0),
)
_COMPLEX_COLUMNS = (("dockq", "DockQ", 4), ("qs_score", "QS", 4))
_STEREOCHEMISTRY_COLUMNS = (("lddt_stereo", "lDDT stereo", 4), ("clashes", "clashes", 0))
_CALIBRATION_COLUMNS = (("plddt", "pLDDT", 1), ("plddt_pearson", "r", 3), ("plddt_error", "error", 1))


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows to standard output; the mean is that of the whole pairs, chains of a complex left out."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDTH))
    columns = list(_COLUMNS[:-1])
    for extra in (_COMPLEX_COLUMNS, _STEREOCHEMISTRY_COLUMNS, _CALIBRATION_COLUMNS):
        columns += [column for column in extra if any(getattr(row, column[0]) is not None for row in rows)]
    columns.append(_COLUMNS[-1])
    left_out = _make_room(columns, rows, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    table.add_column("reference", overflow="fold")
    for name, title, _ in columns:
        table.add_column(title, justify="left" if name == "matched_by" else "right", no_wrap=True)
    for row in rows[:_MAX_LINES]:
        cells: list[str | Text] = [_cell(getattr(row, name), digits) for name, _, digits in columns]
        if row.error:
            # At the end, or in the first column where there is no room for the last.
            cells[-1 if columns[-1][0] == "matched_by" else 0] = Text("error", style="red")
        table.add_row(*_names(row), *cells)
    if len(rows) > _MAX_LINES:
        table.add_row(f"... and {len(rows) - _MAX_LINES} more")
    whole = [row for row in rows if is_whole(row) and row.error is None]
    if len(whole) > 1:
        table.add_section()
        scores = [column for column in columns if column[0] != "matched_by"]
        means = [_cell(mean([getattr(row, name) for row in whole]), digits) for name, _, digits in scores]
        table.add_row(f"mean of {len(whole)}", "", *means, style="bold")
    console.print(table)
    if left_out:
        console.print(f"no room here for {', '.join(left_out)}: --csv and --json have all", style="dim", markup=False)


def _make_room(columns: list[tuple[str, str, int]], rows: Sequence[Row], width: int) -> list[str]:
    """Take expendable columns out, in place, until the table fits; their titles."""
    names = zip(*(_names(row) for row in rows[:_MAX_LINES]), strict=True)
    needed = sum(min(_NAME_WIDTH, max(len(name) for name in side)) for side in names)
    left_out = []
    for expendable in _EXPENDABLE:
        if needed + sum(_GAP + len(title) for _, title, _ in columns) + _GAP <= width:
            break
        for column in [column for column in columns if column[0] == expendable]:
            columns.remove(column)
            left_out.append(column[1])
    return left_out


def is_whole(row: Row) -> bool:
    """The row is a pair's own, not that of one chain of a complex with a row above it."""
    return row.level != PART


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that exist, None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _names(row: Row) -> tuple[Text, Text]:
    return _name(row.model, row.model_number, row, 1), _name(row.reference, row.reference_number, row, 0)


def _name(path: str, number: int | None, row: Row, side: int) -> Text:
    name = Path(path).name or path
    if number is not None:
        name += f" #{number}"
    if row.level == PART and row.chains:
        name = f"  chain {row.chains.split(':')[side]}"
    return Text(name)


def _cell(value: float | str | None, digits: int) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else f"{value:.{digits}f}"

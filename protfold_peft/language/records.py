"""Reading tables and texts: TSV, CSV, JSON, JSONL, Parquet, plain lines, and data sets of the hub.

Every record remembers where it stands, so that whatever turns out to be wrong with it can be found. Nothing that is
read is ever executed: no pickles, no loading scripts.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protfold_peft.errors import DataError

HUB = "hub:"
SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt")
# Column of the lines of a .txt file.
LINE = "text"
# What a headerless table's columns are called, by their number.
Layouts = Mapping[int, Sequence[str]]


@dataclass(frozen=True)
class Record:
    """One record of a data set.

    Attributes:
        values: Column name to value.
        place: `train.tsv, line 12`.
    """

    values: Mapping[str, Any]
    place: str

    def __getitem__(self, column: str) -> Any:
        """The value of a column.

        Raises:
            DataError: The record does not have it.
        """
        if column not in self.values:
            there = ", ".join(str(name) for name in self.values) or "none"
            raise DataError(f"{self.place}: no column '{column}'; there are: {there}")
        return self.values[column]

    def text(self, column: str) -> str:
        """The value of a column that must be a text with something in it.

        Raises:
            DataError: It is missing, empty, or no text.
        """
        value = self[column]
        if isinstance(value, str) and value.strip():
            return value
        what = "is empty" if value is None or value == "" or isinstance(value, str) else f"is no text ({value!r:.40})"
        raise DataError(f"{self.place}: '{column}' {what}; give it a text, or leave the record out")


def read_records(
    source: str | Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    wanted: Sequence[str] = (),
    layouts: Layouts | None = None,
    aliases: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[Record]:
    """Read all records of one or more files or hub data sets.

    Args:
        source: Paths, or `hub:OWNER/NAME[:CONFIG][:SPLIT]`.
        columns: Names for a .tsv or .csv file that has no line of names.
        wanted: Columns that are needed; a first line without them is taken for a record if `layouts` allows.
        layouts: Column names of headerless tables that are known, by number of columns.
        aliases: Other names of columns.
        limit: Read no more than this many of each source.

    Raises:
        DataError: A source is missing, empty or damaged, of an unknown kind, or lacks a wanted column; the message
            names file and line.
    """
    records: list[Record] = []
    for each in [source] if isinstance(source, str) else source:
        before = len(records)
        rows = _hub(each) if each.startswith(HUB) else _file(Path(each), columns, wanted, layouts or {}, aliases or {})
        for values, place in rows:
            if limit is not None and len(records) - before >= limit:
                break
            renamed = {(aliases or {}).get(name, name): value for name, value in values.items()}
            records.append(Record(renamed, place))
        if len(records) == before:
            raise DataError(f"{each}: there is no record in it")
        for column in wanted:
            records[before][column]
    return records


Rows = Iterator[tuple[dict[str, Any], str]]


def _file(
    path: Path, columns: Sequence[str] | None, wanted: Sequence[str], layouts: Layouts, aliases: Mapping[str, str]
) -> Rows:
    """The rows of a file, by its suffix."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: files of kind '{suffix}' are not read; use one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: {'it is a folder' if path.is_dir() else 'no such file'}; name a file with records")
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    text = _text(path)
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    if suffix in (".tsv", ".csv"):
        yield from _table(path, _lines_of_table(path, text), columns, wanted, layouts, aliases)
    elif suffix == ".txt":
        for number, line in enumerate(_split_lines(text), start=1):
            if line.strip():
                yield {LINE: line}, f"{path}, line {number}"
    elif suffix == ".json":
        yield from _json(path, text)
    else:
        yield from _json_lines(path, text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _split_lines(text: str) -> list[str]:
    # Not splitlines(): that also breaks at form feeds and Unicode separators, which stand inside texts.
    return text.replace("\r\n", "\n").split("\n")


def _lines_of_table(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line of a row, and its fields. Quotes mean nothing in TSV, as in GLUE's files."""
    if path.suffix.lower() == ".tsv":
        for number, line in enumerate(_split_lines(text), start=1):
            if line:
                yield number, line.split("\t")
        return
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    first = 1
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {first}: not valid CSV: {error}") from error
        if row:
            yield first, row
        first = rows.line_num + 1


def _table(
    path: Path,
    lines: Iterator[tuple[int, list[str]]],
    columns: Sequence[str] | None,
    wanted: Sequence[str],
    layouts: Layouts,
    aliases: Mapping[str, str],
) -> Rows:
    """The rows of a CSV or TSV file, whose columns the first line, the caller or the number of cells names."""
    number, first = next(lines)
    has_names = set(wanted) <= {aliases.get(name, name) for name in first}
    if columns is None and not has_names:
        columns = layouts.get(len(first))
    if columns is None:
        names = list(first)
        if len(set(names)) < len(names):
            raise DataError(f"{path}, line {number}: a column name stands there twice")
        missing = [name for name in wanted if name not in {aliases.get(each, each) for each in names}]
        if missing:
            raise DataError(
                f"{path}, line {number}: no column '{missing[0]}'; the first line names {', '.join(names)[:200]} "
                "(data.columns gives the names of a file without such a line)"
            )
    else:
        names = list(columns)
        yield _row(path, number, names, first)
    for number, row in lines:
        yield _row(path, number, names, row)


def _row(path: Path, number: int, names: Sequence[str], row: Sequence[str]) -> tuple[dict[str, Any], str]:
    if len(row) != len(names):
        raise DataError(f"{path}, line {number}: {len(row)} columns where {len(names)} are expected")
    return dict(zip(names, row, strict=True)), f"{path}, line {number}"


def _json(path: Path, text: str) -> Rows:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from error
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise DataError(f"{path}: a list of records is expected, this is one {type(content).__name__}")
    for number, item in enumerate(content, start=1):
        yield _object(item, f"{path}, record {number}")


def _json_lines(path: Path, text: str) -> Rows:
    for number, line in enumerate(_split_lines(text), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: not valid JSON: {error.msg} (column {error.colno})") from error
        yield _object(item, place)


def _object(item: Any, place: str) -> tuple[dict[str, Any], str]:
    if not isinstance(item, dict):
        raise DataError(f"{place}: a record is an object with named values, this is a {type(item).__name__}")
    return item, place


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())[:200]}") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield row, f"{path}, row {number}"


def _hub(source: str) -> Rows:
    """The rows of a data set on the hub, `hub:OWNER/NAME:CONFIG:SPLIT`."""
    from datasets import load_dataset

    name, *rest = source.removeprefix(HUB).split(":")
    if len(rest) > 2 or name.count("/") != 1:
        raise DataError(f"{source}: write it as hub:OWNER/NAME, hub:OWNER/NAME:SPLIT or hub:OWNER/NAME:CONFIG:SPLIT")
    split = rest[-1] if rest else "train"
    config = rest[0] if len(rest) == 2 else None
    try:
        # This library runs no code of a data set: it reads their files alone.
        dataset = load_dataset(name, config, split=split)
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{source}: could not be loaded: {reason}") from error
    for number, row in enumerate(dataset, start=1):
        yield dict(row), f"{source}, row {number}"


def convert(records: Sequence[Record], to: Callable[[Record], Any]) -> list[Any]:
    """`to` of every record, with errors that a careless function raises turned into ones that name the record.

    Raises:
        DataError: A record cannot be used.
    """
    found = []
    for record in records:
        try:
            found.append(to(record))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{record.place}: cannot be understood: {type(error).__name__} {error}") from error
    return found

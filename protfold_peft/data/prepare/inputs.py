"""What is to be read: the files of folders, files named one by one, and the rows of tables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protfold_peft.errors import ConfigError, ProtfoldError, SequenceError
from protfold_peft.files import named_in
from protfold_peft.structure import find_structure_files
from protfold_peft.structure.fasta import clean_sequence, is_fasta_name

TABLE_SUFFIXES = (".csv", ".tsv")
COLUMNS = ("file", "chain", "sequence", "name", "resolution", "date")


@dataclass(frozen=True)
class Source:
    """A structure file, or one chain of it, and what a table or a FASTA file says of it.

    Attributes:
        path: The file as the user would name it.
        chain: The one chain to read; None: all.
        sequence: The full sequence, which replaces the file's, with `:` between the chains; None: as in the file.
        chain_sequences: Chain ids and the full sequences of these chains, which come before `sequence`.
        name: Of the record; None: the file's.
        resolution: In angstrom, instead of the file's.
        date: ISO date, instead of the file's.
    """

    path: Path
    chain: str | None = None
    sequence: str | None = None
    chain_sequences: tuple[tuple[str, str], ...] = ()
    name: str | None = None
    resolution: float | None = None
    date: str | None = None


def find_sources(structures: Sequence[Path]) -> list[Source]:
    """The files and chains to read: folders with all below them, files and the rows of tables, as they are named.

    A file that is reached twice is read once; rows of a table are taken as they stand. FASTA files are no matter of
    this function: see `sequences`.

    Raises:
        ProtfoldError: Something is not there, a folder holds no structure, or a table cannot be used.
    """
    sources: list[Source] = []
    seen: set[Path] = set()
    for path in structures:
        if is_named_fasta(path):
            continue
        if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
            sources += read_table(path)
            continue
        if not path.exists():
            raise ProtfoldError(f"{path}: there is no such file or folder")
        for file in find_structure_files(path, recursive=True) if path.is_dir() else [path]:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                sources.append(Source(file))
    return sources


def is_named_fasta(path: Path) -> bool:
    """What the user named is a FASTA file, by its suffix."""
    return is_fasta_name(path) and not path.is_dir()


def read_table(path: Path) -> list[Source]:
    """The rows of a CSV or TSV file: `file`, and if wanted `chain`, `sequence`, `name`, `resolution`, `date`.

    A file is looked for from the table's folder and, if it is not there, from the current one. Other columns are left
    out, as are lines that start with `#`.

    Raises:
        ConfigError: The table cannot be read, has no column `file`, no row, or a row with a wrong value.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: the table cannot be read: {what}") from None
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not numbered:
        raise ConfigError(f"{path}: the table is empty; its first line names the columns: file,chain,sequence")
    delimiter = "\t" if "\t" in numbered[0][1] else ";" if ";" in numbered[0][1] else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader([line for _, line in numbered], delimiter=delimiter)]
    header = [name.lower() for name in rows[0]]
    if "file" not in header:
        raise ConfigError(f"{path}: the table has no column 'file'; its columns are {', '.join(rows[0])}")
    if len(rows) == 1:
        raise ConfigError(f"{path}: the table has a header and no row")
    sources = []
    for (number, _), row in zip(numbered[1:], rows[1:]):
        place = f"{path}: line {number}"
        if len(row) > len(header):
            raise ConfigError(f"{place}: has {len(row)} cells under {len(header)} columns")
        cells = {name: cell for name, cell in zip(header, row) if name in COLUMNS and cell}
        if "file" not in cells:
            raise ConfigError(f"{place}: names no file")
        sources.append(_source(path, place, cells))
    return sources


def _source(table: Path, place: str, cells: dict[str, str]) -> Source:
    try:
        sequence = clean_sequence(cells["sequence"])[0] if "sequence" in cells else None
    except SequenceError as error:
        raise ConfigError(f"{place}: {error}") from None
    if sequence is not None and ":" in sequence:
        raise ConfigError(f"{place}: the sequence holds several chains: give each a row of its own")
    resolution = None
    if "resolution" in cells:
        try:
            resolution = float(cells["resolution"])
        except ValueError:
            resolution = 0.0
        if not 0 < resolution < 1000:
            raise ConfigError(f"{place}: '{cells['resolution']}' is no resolution in angstrom")
    date = cells.get("date")
    if date is not None and not _is_date(date):
        raise ConfigError(f"{place}: '{date}' is no date: write YYYY-MM-DD")
    return Source(
        path=named_in(table, cells["file"]),
        chain=cells.get("chain"),
        sequence=sequence,
        name=cells.get("name"),
        resolution=resolution,
        date=date,
    )


def _is_date(text: str) -> bool:
    import datetime

    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False

"""The targets: which structures, which sequence is folded for each, and which of its residues are judged.

A domain is part of a target. Where the whole target's sequence is at hand, that is folded, as predictors of CASP did,
and the domain's residues are cut out by their official range; else the domain's own sequence is folded. Numbers in the
files are never trusted: residues are matched by alignment when scores are computed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protfold_peft.comparison.config import TargetsConfig
from protfold_peft.errors import ConfigError, SequenceError, StructureError
from protfold_peft.runtime import LOGGER
from protfold_peft.structure import Structure, find_structure_files, read_structure
from protfold_peft.structure.fasta import clean_sequence, read_fasta

Span = tuple[tuple[int, int], ...]
UNCLASSIFIED = "unclassified"


@dataclass(frozen=True, eq=False)
class Target:
    """One domain or chain to judge by.

    Attributes:
        name: As in the table, or the file's name.
        group: The set it is of.
        kind: Its class, such as FM or TBM-hard.
        sequence: What is folded.
        span: Which residues of `sequence` are judged, pieces of first and last place from 1; None: all.
        reference: The experiment; one chain.
        pdb_id: Of the entry, empty where unknown.
        release_date: ISO date, empty where unknown.
    """

    name: str
    group: str
    kind: str
    sequence: str
    span: Span | None
    reference: Structure
    pdb_id: str = ""
    release_date: str = ""

    @property
    def length(self) -> int:
        """Residues of the experiment."""
        return len(self.reference.chains[0])

    @property
    def judged_sequence(self) -> str:
        """The part of the sequence that is judged."""
        if self.span is None:
            return self.sequence
        return "".join(self.sequence[first - 1 : last] for first, last in self.span)


def read_targets(group: str, config: TargetsConfig) -> list[Target]:
    """The targets of a set, by name.

    Raises:
        ConfigError: The table is damaged or chooses nothing, or a range or sequence does not fit its domain.
        StructureError: A structure cannot be read, or has more than one chain.
        SequenceError: The FASTA file cannot be read.
    """
    folder = Path(config.folder)
    table = Path(config.table) if config.table is not None else folder / "manifest.tsv"
    rows = _rows(table) if config.table is not None or table.is_file() else None
    if rows is None and config.where:
        raise ConfigError(f"{folder}: 'where' chooses rows of a table: name it as 'table'")
    fasta = Path(config.sequences) if config.sequences is not None else folder / "targets.fasta"
    sequences = _sequences(fasta) if config.sequences is not None or fasta.is_file() else {}
    found = []
    for path in find_structure_files(folder):
        name = path.name.removesuffix(".gz").rpartition(".")[0]
        row = None if rows is None else rows.get(name)
        if name in config.leave_out or (rows is not None and row is None):
            continue
        row = row or {}
        for column in config.where:
            if column not in row:
                raise ConfigError(f"{table}: there is no column '{column}'; it has {', '.join(row)}")
        if any(row[column] != value for column, value in config.where.items()):
            continue
        target = _target(name, group, path, row, sequences, table)
        if config.max_length is not None and len(target.sequence) > config.max_length:
            LOGGER.info("%s: %d residues are more than max_length: left out", name, len(target.sequence))
            continue
        found.append(target)
    if not found:
        raise ConfigError(f"targets.{group}: {folder} has no target that the settings let through")
    found.sort(key=lambda target: target.name)
    return found[: config.limit]


def _target(
    name: str, group: str, path: Path, row: Mapping[str, str], sequences: Mapping[str, str], table: Path
) -> Target:
    """A target, with the sequence that is folded for it and the part of it that is judged.

    Raises:
        StructureError: Its file holds several chains.
        ConfigError: Its sequence or range cannot be used.
    """
    structure = read_structure(path)
    if len(structure.chains) != 1:
        raise StructureError(f"{path}: a target is one chain, this file has {len(structure.chains)}; split it")
    chain = structure.chains[0]
    span_text = row.get("range") or _range_of_header(row.get("header", ""))
    whole = sequences.get(name.rpartition("-D")[0] or name)
    span: Span | None = None
    if whole is not None and name not in sequences and span_text:
        span = parse_span(span_text, f"{table}: {name}")
        sequence = whole
        if max(last for _, last in span) > len(whole):
            raise ConfigError(
                f"{table}: {name} ends at residue {max(last for _, last in span)}, "
                f"and its target's sequence has {len(whole)}: mend the range"
            )
    else:
        sequence = sequences.get(name) or row.get("sequence") or chain.seqres or chain.sequence
    try:
        sequence, _ = clean_sequence(sequence)
    except SequenceError as error:
        raise ConfigError(f"{table}: the sequence of {name}: {error}") from error
    return Target(
        name=name,
        group=group,
        kind=row.get("class") or UNCLASSIFIED,
        sequence=sequence,
        span=span,
        reference=structure,
        pdb_id=row.get("pdb_id", ""),
        release_date=row.get("release_date") or structure.release_date or "",
    )


def parse_span(text: str, where: str) -> Span:
    """`2-50,100-150` as pairs of first and last place.

    Raises:
        ConfigError: Anything else, with `where`.
    """
    pieces = []
    for piece in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last:
            raise ConfigError(f"{where}: the range '{text}' is not as 2-50,100-150")
        pieces.append((first, last))
    return tuple(pieces)


def _range_of_header(header: str) -> str:
    """The range in a header of the Prediction Center: `T1024-D1 T1024:2-194 TBM-easy length=193`."""
    match = re.search(r"\bT\w+:([\d,-]+)", header)
    return match[1] if match else ""


def _rows(table: Path) -> dict[str, dict[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
            columns = reader.fieldnames or []
            key = next((name for name in ("target", "name") if name in columns), None)
            if key is None:
                raise ConfigError(f"{table}: there is no column 'target' or 'name'; it has {', '.join(columns)}")
            return {row[key]: {name: value or "" for name, value in row.items() if name} for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{table}: the table cannot be read: {reason}") from error


def _sequences(path: Path) -> dict[str, str]:
    return {entry.header.split()[0]: entry.sequence for entry in read_fasta(path) if entry.header.split()}

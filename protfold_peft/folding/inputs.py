"""From what the user named (files, folders, standard input) to records with unique names, and what was wrong.

Naming happens over the complete input and in its order, so that every shard of a job array, and every later run of
the same command, gives the same record the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protfold_peft.errors import SequenceError
from protfold_peft.folding.types import Record
from protfold_peft.structure.fasta import STANDARD_INPUT, FastaEntry, clean_sequence, is_fasta_name, read_fasta

# File systems allow 255 bytes; the longest suffix of an output and a temporary name's prefix need about 50.
MAX_NAME_LENGTH = 100

# Windows refuses these names with any suffix; outputs get copied there.
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"com{digit}" for digit in range(10)), *(f"lpt{digit}" for digit in range(10))]
)


@dataclass(frozen=True)
class Rejected:
    """An input that cannot be folded: a whole file, or one record of it.

    Attributes:
        name: A name for the summary, unique among records and rejected inputs.
        length: Residues, 0 where that means nothing.
        error: One line that names file, record and position.
    """

    name: str
    length: int
    error: str


@dataclass(frozen=True)
class InputSet:
    """Everything the inputs hold.

    Attributes:
        records: What can be folded, in input order.
        rejected: What cannot.
        notes: One line for everything that was changed, merged or renamed.
        n_files: Files (and standard input) that were read as FASTA.
    """

    records: tuple[Record, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]
    n_files: int


def gather(inputs: Sequence[str], *, max_length: int | None = None) -> InputSet:
    """Read every input and name its records.

    A record with the name and the sequence of an earlier one is folded once, with a note; one with the name of an
    earlier one and another sequence is called `NAME_2`, `NAME_3`, ... Names are compared without case.

    Args:
        inputs: FASTA files, folders of them, or `-` for standard input.
        max_length: Records with more residues (all chains together) are rejected.
    """
    entries: list[FastaEntry] = []
    failed_files: list[tuple[str, str]] = []
    notes: list[str] = []
    n_files = 0
    seen: set[Path] = set()
    for source in inputs:
        try:
            for path in _expand(source):
                if Path(path).resolve() in seen:
                    notes.append(f"{path}: named twice, read once")
                    continue
                seen.add(Path(path).resolve())
                try:
                    entries.extend(read_fasta(path))
                    n_files += 1
                except SequenceError as error:
                    failed_files.append((path, str(error)))
        except SequenceError as error:
            failed_files.append((source, str(error)))

    good: list[tuple[FastaEntry, str]] = []
    bad: list[tuple[FastaEntry, str]] = []
    for entry in entries:
        try:
            sequence, changes = clean_sequence(entry.sequence)
            if not entry.header:
                raise SequenceError("the header is empty: give it a name after '>'")
            length = len(sequence) - sequence.count(":")
            if max_length is not None and length > max_length:
                raise SequenceError(f"{length} residues, more than --max-length {max_length}")
        except SequenceError as error:
            bad.append((entry, str(error)))
        else:
            good.append((entry, sequence))
            notes.extend(f"{_where(entry)}: {change}" for change in changes)

    records, used = _name_records(good, notes)
    rejected = []
    for path, error_text in failed_files:
        name = _unused(safe_name(Path(path).name) or "input", used)
        rejected.append(Rejected(name, 0, error_text))
    for entry, error_text in bad:
        name = _unused(safe_name(entry.header) or f"record_{entry.position}", used)
        length = len(entry.sequence) - entry.sequence.count(":")
        rejected.append(Rejected(name, length, f"{_where(entry)}: {error_text}"))
    return InputSet(tuple(records), tuple(rejected), tuple(notes), n_files)


def safe_name(header: str) -> str:
    """The first word of a header as a file name: letters, digits, `_`, `-`, `.`; empty if nothing of it is left.

    No leading dot or dash (hidden files, options) and no name that Windows reserves; at most `MAX_NAME_LENGTH` long.
    """
    token = header.split(maxsplit=1)[0] if header.strip() else ""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", token)[:MAX_NAME_LENGTH].lstrip(".-").rstrip(".")
    if not name.strip("_"):
        return ""
    stem, dot, rest = name.partition(".")
    return f"{stem}_{dot}{rest}" if stem.lower() in _RESERVED else name


def _expand(source: str) -> Iterator[str]:
    """The FASTA files that one input stands for: itself, or the files directly in a folder, by name."""
    path = Path(source)
    if source == STANDARD_INPUT or not path.is_dir():
        yield source
        return
    try:
        files = sorted(child for child in path.iterdir() if is_fasta_name(child) and child.is_file())
    except OSError as error:
        raise SequenceError(f"{source}: the folder cannot be read: {error.strerror or error}") from None
    if not files:
        raise SequenceError(f"{source}: no .fa, .fasta or .faa file (also .gz) in this folder")
    yield from map(str, files)


def _name_records(good: Sequence[tuple[FastaEntry, str]], notes: list[str]) -> tuple[list[Record], set[str]]:
    """Records with unique names, and the names used (lower case)."""
    natural = [safe_name(entry.header) or f"record_{entry.position}" for entry, _ in good]
    # Natural names are taken before any suffix is given, so that ">a >a >a_2" leaves the third its own name.
    used = {name.lower() for name in natural}
    first: dict[str, list[tuple[str, str]]] = {}
    records: list[Record] = []
    for (entry, sequence), name in zip(good, natural):
        earlier = first.setdefault(name.lower(), [])
        same = next((known for known, known_sequence in earlier if known_sequence == sequence), None)
        if same is not None:
            notes.append(f"{_where(entry)}: same name and sequence as '{same}', folded once")
            continue
        unique = name
        if earlier:
            unique = _unused(name, used)
            notes.append(f"{_where(entry)}: '{earlier[0][0]}' has this name and another sequence; named '{unique}'")
        earlier.append((unique, sequence))
        records.append(Record(unique, sequence, entry.header))
    return records, used


def _unused(name: str, used: set[str]) -> str:
    """`name`, or `name_2`, `name_3`, ... : the first not in `used` (lower case), to which it is added."""
    candidate, number = name, 2
    while candidate.lower() in used:
        suffix = f"_{number}"
        candidate, number = name[: MAX_NAME_LENGTH - len(suffix)] + suffix, number + 1
    used.add(candidate.lower())
    return candidate


def _where(entry: FastaEntry) -> str:
    name = safe_name(entry.header)
    label = f"'{name}', " if name else ""
    return f"{entry.source}: record {entry.position} ({label}line {entry.line})"

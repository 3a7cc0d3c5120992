"""The files of a record by name, and the two markers that say how a record stands.

`NAME.done.txt` is written after all other files. It holds what the summary needs, the settings the record was folded
with, and the list of its files, so that a later run can tell finished from unfinished and same from different.
`NAME.failed.txt` stands in its place where folding failed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protfold_peft.files import write_text
from protfold_peft.folding.types import Record

FORMATS = ("pdb", "cif")

DONE_SUFFIX = ".done.txt"
FAILED_SUFFIX = ".failed.txt"
SCORES_SUFFIX = "_scores.json"
PAE_SUFFIX = "_predicted_aligned_error_v1.json"
PLDDT_PLOT_SUFFIX = "_plddt.png"
PAE_PLOT_SUFFIX = "_pae.png"
PLOT_SUFFIXES = (PLDDT_PLOT_SUFFIX, PAE_PLOT_SUFFIX)

# `protfold_peft.files.replacing` names its temporary files so.
_TEMPORARY = re.compile(r"^\.[0-9a-f]{8}\.tmp\.(?P<target>.+)$")


@dataclass(frozen=True)
class Done:
    """What `NAME.done.txt` says.

    Attributes:
        name: The record's name.
        length: Residues, all chains together.
        sequence_sha256: Of the sequence with its colons.
        settings: What decides the result: model, adapter, recycles, precision.
        files: Names of the record's other files.
        plddt: Mean pLDDT, 0..100.
        ptm: Predicted TM-score, 0..1.
        iptm: Predicted interface TM-score, None for one chain.
        warning: To be shown with the result; empty if there is none.
        seconds: Time in the model; of a batch, the record's share by length.
        finished: Date and time, ISO 8601, UTC.
    """

    name: str
    length: int
    sequence_sha256: str
    settings: Mapping[str, str]
    files: tuple[str, ...]
    plddt: float
    ptm: float
    iptm: float | None
    warning: str
    seconds: float
    finished: str


@dataclass(frozen=True)
class Failed:
    """What `NAME.failed.txt` says."""

    name: str
    length: int
    error: str
    seconds: float


def sequence_hash(record: Record) -> str:
    """SHA-256 of the sequence, colons included."""
    return hashlib.sha256(record.sequence.encode()).hexdigest()


def wanted_suffixes(formats: Sequence[str], plots: bool) -> tuple[str, ...]:
    """Suffixes of a record's files in the order of writing, without the marker."""
    structures = tuple(f".{name}" for name in FORMATS if name in formats)
    return (*structures, SCORES_SUFFIX, PAE_SUFFIX, *(PLOT_SUFFIXES if plots else ()))


def all_suffixes() -> tuple[str, ...]:
    """Every suffix that a record's files may have, the marker that says `done` first."""
    return (DONE_SUFFIX, FAILED_SUFFIX, *wanted_suffixes(FORMATS, plots=True))


def write_done(folder: Path, done: Done) -> None:
    """Vouch for a record: to be called after all its files are on disk."""
    write_text(folder / f"{done.name}{DONE_SUFFIX}", json.dumps(asdict(done), indent=1) + "\n")


def write_failed(folder: Path, failed: Failed) -> None:
    """Mark a record as failed; files of an earlier attempt are removed, so that none is taken for this one's."""
    discard(folder, failed.name)
    write_text(folder / f"{failed.name}{FAILED_SUFFIX}", json.dumps(asdict(failed), indent=1) + "\n")


def remove_markers(folder: Path, name: str) -> None:
    """Take back what was said of a record; its files stay until they are replaced."""
    for suffix in (DONE_SUFFIX, FAILED_SUFFIX):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)


def discard(folder: Path, name: str) -> None:
    """Remove every file of a record, the marker first: no moment leaves a marker with files of another run."""
    for suffix in all_suffixes():
        (folder / f"{name}{suffix}").unlink(missing_ok=True)


def read_done(path: Path) -> Done | None:
    """The content of a `.done.txt`, None where it is absent, empty (as other programs write it) or damaged."""
    values = _read_object(path)
    try:
        return Done(**{**values, "files": tuple(values["files"])}) if values else None
    except (TypeError, KeyError):
        return None


def read_failed(path: Path) -> Failed | None:
    """The content of a `.failed.txt`, None where it is absent or damaged."""
    values = _read_object(path)
    try:
        return Failed(**values) if values else None
    except TypeError:
        return None


def why_unfinished(
    folder: Path, record: Record, done: Done | None, settings: Mapping[str, str], suffixes: Iterable[str]
) -> str | None:
    """Why a record must be folded (again); None when what is on disk is what this run would write.

    The empty string stands for a record that has not been finished before, so that only surprises are told.
    """
    if done is None:
        return ""
    if done.sequence_sha256 != sequence_hash(record):
        return "the sequence differs"
    for key, value in settings.items():
        if (earlier := done.settings.get(key)) != value:
            return f"{key} was {earlier or 'not recorded'}, is {value}"
    missing = [suffix for suffix in suffixes if not (folder / f"{record.name}{suffix}").is_file()]
    return f"{record.name}{missing[0]} is missing" if missing else None


def remove_stale_temporaries(folder: Path, names: Iterable[str], extra: Iterable[str] = ()) -> int:
    """Remove what a killed run left half-written, for these records and these files only; returns how many.

    Other names are left alone: another shard may be writing them at this moment.
    """
    targets = {f"{name}{suffix}" for name in names for suffix in all_suffixes()} | set(extra)
    removed = 0
    for path in folder.iterdir():
        match = _TEMPORARY.match(path.name)
        if match and match["target"] in targets:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}

"""From a file to the records of its chains, and the reasons why a chain is none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protfold_peft.data.chains import TrainingChain, training_chain
from protfold_peft.data.prepare.inputs import Source
from protfold_peft.data.prepare.settings import Filters
from protfold_peft.errors import StructureError
from protfold_peft.structure import read_structure
from protfold_peft.structure.reader import bonded_to_previous
from protfold_peft.structure.seqres import place_in_sequence
from protfold_peft.structure.types import Chain, Structure

# Reasons of a rejection, in the order in which a chain meets them. The first says that a file could not be read.
UNREADABLE = "unreadable"
SHORT = "too short"
LONG = "too long"
MISSING = "missing residues"
UNKNOWN = "unknown residues"
RESOLUTION = "resolution"
NO_RESOLUTION = "no resolution"
TOO_NEW = "too new"
UNDATED = "undated"
DUPLICATE = "duplicate"
EXCLUDED = "resembles excluded"
REASONS = (
    UNREADABLE,
    SHORT,
    LONG,
    MISSING,
    UNKNOWN,
    RESOLUTION,
    NO_RESOLUTION,
    TOO_NEW,
    UNDATED,
    DUPLICATE,
    EXCLUDED,
)


@dataclass(frozen=True)
class Rejection:
    """A chain, or a file, that is not in the dataset.

    Attributes:
        name: Of the chain; the file's where none could be read.
        file: The file as the user would name it.
        chain: Chain id in the file.
        length: Residues of the sequence; None where it is not known.
        reason: One of `REASONS`.
        detail: The numbers, or the other chain, or the error.
    """

    name: str
    file: str
    chain: str
    length: int | None
    reason: str
    detail: str


@dataclass(frozen=True, eq=False)
class Record:
    """A chain with what its file says of it.

    Attributes:
        chain: Sequence, coordinates and mask.
        file: The file as the user would name it.
        chain_id: Chain id in the file.
        resolution: In angstrom; None where unknown.
        date: ISO date of release; None where unknown.
    """

    chain: TrainingChain
    file: str
    chain_id: str
    resolution: float | None
    date: str | None


def read_source(source: Source, filters: Filters) -> list[Record | Rejection]:
    """Every chain of a source, as a record or with the reason why not. Never raises for a fault of the file."""
    try:
        structure = read_structure(source.path, chains=None if source.chain is None else [source.chain])
        if source.sequence is not None:
            structure = _with_sequence(structure, source.sequence, source.path)
    except StructureError as error:
        name = source.name or source.path.name
        return [Rejection(name, str(source.path), source.chain or "", None, UNREADABLE, str(error))]
    results: list[Record | Rejection] = []
    for chain in structure.chains:
        name = source.name or structure.name
        if len(structure.chains) > 1 or (source.chain is not None and source.name is None):
            name = f"{name}_{chain.id}"
        record = Record(
            chain=training_chain(chain, name),
            file=str(source.path),
            chain_id=chain.id,
            resolution=source.resolution or structure.resolution,
            date=source.date or structure.release_date,
        )
        why = why_not(record, filters)
        if why is None:
            results.append(record)
        else:
            results.append(Rejection(name, record.file, record.chain_id, len(record.chain), *why))
    return results


def why_not(record: Record, filters: Filters) -> tuple[str, str] | None:
    """Reason and numbers where the filters leave a record out, else None."""
    chain = record.chain
    n, resolved = len(chain), int(chain.has_frame.sum())
    if resolved < filters.min_length:
        return SHORT, f"{resolved} residues with N, CA and C, fewer than {filters.min_length}"
    if filters.max_length is not None and n > filters.max_length:
        return LONG, f"{n} residues, more than {filters.max_length}"
    missing = 1 - resolved / n
    if missing > filters.max_missing:
        return MISSING, f"{n - resolved} of {n} residues without N, CA and C ({missing:.3f} > {filters.max_missing:g})"
    unknown = chain.sequence.count("X")
    if unknown > filters.max_unknown * n:
        return UNKNOWN, f"{unknown} of {n} residues unknown ({unknown / n:.3f} > {filters.max_unknown:g})"
    if filters.max_resolution is not None:
        if record.resolution is None and not filters.keep_unknown_resolution:
            return NO_RESOLUTION, "the file gives no resolution; --keep-unknown-resolution keeps such chains"
        if record.resolution is not None and record.resolution > filters.max_resolution:
            return RESOLUTION, f"{record.resolution:g} A, above {filters.max_resolution:g} A"
    if filters.released_before is not None:
        if record.date is None and not filters.keep_undated:
            return UNDATED, "the file gives no date, which counts as too new; --keep-undated keeps such chains"
        if record.date is not None and record.date >= filters.released_before:
            return TOO_NEW, f"of {record.date}, not before {filters.released_before}"
    return None


def _with_sequence(structure: Structure, sequence: str, path: Path) -> Structure:
    """The structure with its one chain laid along `sequence`.

    Raises:
        StructureError: There are several chains, or the residues do not fit the sequence.
    """
    if len(structure.chains) > 1:
        ids = ", ".join(repr(chain.id) for chain in structure.chains)
        raise StructureError(f"{path}: holds several chains ({ids}): name the one that has the sequence of the table")
    chain: Chain = structure.chains[0]
    joined = bonded_to_previous(chain.atom_positions, chain.atom_mask)
    numbers: np.ndarray = chain.residue_numbers
    placement = place_in_sequence(chain.sequence, sequence, numbers, joined, [None] * len(chain))
    if placement is None:
        raise StructureError(f"{path}: chain '{chain.id}' does not fit the sequence that the table gives for it")
    placed = dataclasses.replace(chain, seqres=sequence, seqres_index=placement.places)
    return dataclasses.replace(structure, chains=(placed,))

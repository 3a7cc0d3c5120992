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
from protfold_peft.structure.fasta import CHAIN_SEPARATOR
from protfold_peft.structure.polymer import list_some
from protfold_peft.structure.reader import bonded_to_previous
from protfold_peft.structure.seqres import place_in_sequence
from protfold_peft.structure.types import Chain, Structure

# Reasons of a rejection, in the order in which a chain meets them. The first says that a file could not be read.
UNREADABLE = "unreadable"
MISFIT = "sequence does not fit"
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
# Of a sequence that was given, not of a chain.
NO_STRUCTURE = "no structure"
REASONS = (
    UNREADABLE,
    MISFIT,
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
    NO_STRUCTURE,
)


@dataclass(frozen=True)
class Rejection:
    """A chain, a file, or a sequence of a FASTA file, that is not in the dataset.

    Attributes:
        name: Of the chain; the file's where none could be read; the sequence's where it belongs to none.
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


def read_source(source: Source) -> list[Record | Rejection]:
    """Every chain of a source as a record, before any filter, or why it cannot be one. At least one of either.

    Never raises for a fault of the file.
    """
    try:
        structure = read_structure(source.path, chains=None if source.chain is None else [source.chain])
    except StructureError as error:
        name = source.name or source.path.name
        return [Rejection(name, str(source.path), source.chain or "", None, UNREADABLE, str(error))]
    results: list[Record | Rejection] = []
    for place, chain in enumerate(structure.chains):
        name = source.name or structure.name
        if len(structure.chains) > 1 or (source.chain is not None and source.name is None):
            name = f"{name}_{chain.id}"
        try:
            placed = _with_sequence(chain, _given(source, structure, place), source.path)
        except StructureError as error:
            results.append(Rejection(name, str(source.path), chain.id, len(chain), MISFIT, str(error)))
            continue
        results.append(
            Record(
                chain=training_chain(placed, name),
                file=str(source.path),
                chain_id=chain.id,
                resolution=source.resolution or structure.resolution,
                date=source.date or structure.release_date,
            )
        )
    return results


def filtered(result: Record | Rejection, filters: Filters) -> Record | Rejection:
    """The same, or the reason why the filters leave the record out."""
    if isinstance(result, Rejection):
        return result
    why = why_not(result, filters)
    if why is None:
        return result
    return Rejection(result.chain.name, result.file, result.chain_id, len(result.chain), *why)


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


def _given(source: Source, structure: Structure, place: int) -> str | None:
    """The sequence that was given for a chain of a structure; None: the file's stands.

    Raises:
        StructureError: The sequence given for the structure has fewer or more chains than it.
    """
    chain = structure.chains[place]
    own = dict(source.chain_sequences).get(chain.id)
    if own is not None or source.sequence is None:
        return own
    parts = source.sequence.split(CHAIN_SEPARATOR)
    if len(parts) != len(structure.chains):
        ids = list_some([repr(chain.id) for chain in structure.chains], 10)
        one = "one chain" if len(parts) == 1 else f"{len(parts)} chains"
        holds = "one chain" if len(structure.chains) == 1 else f"{len(structure.chains)} chains"
        raise StructureError(
            f"{source.path}: holds {holds} ({ids}), and the sequence given for it is of {one}: give each its own"
        )
    return parts[place]


def _with_sequence(chain: Chain, sequence: str | None, path: Path) -> Chain:
    """The chain laid along `sequence`.

    Raises:
        StructureError: The residues do not fit the sequence.
    """
    if sequence is None:
        return chain
    joined = bonded_to_previous(chain.atom_positions, chain.atom_mask)
    numbers: np.ndarray = chain.residue_numbers
    placement = place_in_sequence(chain.sequence, sequence, numbers, joined, [None] * len(chain))
    if placement is None:
        why = (
            f"it has {len(chain)} residues, the sequence {len(sequence)}"
            if len(chain) > len(sequence)
            else "more than a tenth of its residues differ"
        )
        raise StructureError(f"{path}: chain '{chain.id}' does not fit the sequence given for it: {why}")
    return dataclasses.replace(chain, seqres=sequence, seqres_index=placement.places)

"""What a folder of structures holds, as far as it decides how to train on it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from protfold_peft.data.chains import TrainingChain, training_chain
from protfold_peft.data.prepare.alignment import Likeness
from protfold_peft.data.prepare.search import BUILTIN, similar_pairs
from protfold_peft.data.prepare.split import VALIDATION, clusters, split
from protfold_peft.data.prepare.store import is_prepared, load_prepared
from protfold_peft.errors import ConfigError, StructureError
from protfold_peft.structure import find_structure_files, read_structure

# Chains with fewer resolved residues are not learnt: the default of `data.min_length`.
SHORTEST = 10
# Likeness of proteins of different families, as `protfold prepare` has it, and of near-copies in one family.
_RELATED, _NEAR_COPIES = Likeness(0.3, 0.5), Likeness(0.9, 0.8)
# With more of the files in one cluster the data is one family, which no split by relatedness can divide.
_ONE_FAMILY = 0.8
# A split needs some chains on both sides.
_FEWEST_FILES = 5
_MOST_VALIDATION = 50
_SEED = 0


@dataclass(frozen=True)
class ChainFacts:
    """A chain as far as it matters here.

    Attributes:
        file: Name of its file without suffixes; of a prepared dataset, of the chain.
        sequence: One letter each.
        resolved: Residues with N, CA and C.
        gaps: Stretches of residues inside it that are not resolved, or missing.
        unknown: Residues of unknown type.
    """

    file: str
    sequence: str
    resolved: int
    gaps: int
    unknown: int


@dataclass(frozen=True)
class Family:
    """What a folder holds.

    Attributes:
        folder: As the user names it.
        prepared: It is a dataset of `protfold prepare`.
        chains: Chains that can be learnt.
        short: How many chains have fewer than `SHORTEST` resolved residues.
        unreadable: Why files cannot be read, one line each.
        held_out: Chains of a prepared dataset's validation split.
    """

    folder: str
    prepared: bool
    chains: tuple[ChainFacts, ...]
    short: int
    unreadable: tuple[str, ...] = field(default=())
    held_out: int = 0

    @property
    def lengths(self) -> list[int]:
        """Residues of every chain, sorted."""
        return sorted(len(chain.sequence) for chain in self.chains)

    @property
    def median_length(self) -> int:
        """Half of the chains are shorter."""
        return int(statistics.median_low(self.lengths))

    @property
    def with_gaps(self) -> int:
        """Chains with residues that are not resolved inside them."""
        return sum(chain.gaps > 0 for chain in self.chains)

    @property
    def with_unknown(self) -> int:
        """Chains with residues of unknown type."""
        return sum(chain.unknown > 0 for chain in self.chains)

    @property
    def duplicates(self) -> int:
        """Chains whose sequence another one has too, but for the first of each."""
        return len(self.chains) - len({chain.sequence for chain in self.chains})


def look_at(folder: str) -> Family:
    """Read all structures of a folder, or a prepared dataset.

    Raises:
        StructureError: There is no such folder, or nothing in it can be learnt.
        ConfigError: A prepared dataset is damaged.
    """
    if is_prepared(folder):
        chains = [_facts(chain.name, chain) for chain in load_prepared(folder)]
        try:
            held_out = len(load_prepared(folder, VALIDATION))
        except ConfigError:  # prepared with --validation 0
            held_out = 0
        return _family(folder, chains, prepared=True, held_out=held_out)
    unreadable: list[str] = []
    return _family(folder, list(_read(Path(folder), unreadable)), unreadable=unreadable)


def _family(
    folder: str,
    chains: list[ChainFacts],
    *,
    prepared: bool = False,
    unreadable: Sequence[str] = (),
    held_out: int = 0,
) -> Family:
    usable = tuple(chain for chain in chains if chain.resolved >= SHORTEST)
    if not usable:
        first = f"; the first: {unreadable[0]}" if unreadable else ""
        raise StructureError(f"{folder}: no chain of {SHORTEST} or more resolved residues in it{first}")
    return Family(folder, prepared, usable, len(chains) - len(usable), tuple(unreadable), held_out)


def _read(folder: Path, unreadable: list[str]) -> Iterator[ChainFacts]:
    for path in find_structure_files(folder):
        try:
            structure = read_structure(path)
        except StructureError as error:
            unreadable.append(str(error))
            continue
        # As `data.table` names files.
        name = path.name.removesuffix(".gz").rpartition(".")[0]
        for chain in structure.chains:
            yield _facts(name, training_chain(chain, name))


def _facts(file: str, chain: TrainingChain) -> ChainFacts:
    seen = chain.has_frame
    places = np.flatnonzero(seen)
    index = chain.residue_index[places]
    gaps = sum(after - before > 1 for before, after in pairwise(index.tolist()))
    return ChainFacts(file, chain.sequence, int(seen.sum()), gaps, chain.sequence.count("X"))


@dataclass(frozen=True)
class Split:
    """Files for validation and how they were chosen.

    Attributes:
        validation: Names of the files.
        train: Names of the others.
        strict: No validation chain resembles a training chain; otherwise only near-copies were kept together.
    """

    validation: tuple[str, ...]
    train: tuple[str, ...]
    strict: bool


def split_of(family: Family) -> Split | None:
    """Files to be held out, by likeness; None where there are too few, or all are near-copies of each other."""
    files = list(dict.fromkeys(chain.file for chain in family.chains))
    if family.prepared or len(files) < _FEWEST_FILES:
        return None
    found = _clusters(family, files, _RELATED)
    strict = max(np.bincount(found)) <= _ONE_FAMILY * len(files)
    if not strict:
        found = _clusters(family, files, _NEAR_COPIES)
    fraction = min(0.2, _MOST_VALIDATION / len(files))
    held = split(found, files, fraction, _SEED)
    # A few large clusters can leave nothing to learn.
    if not held.any() or held.sum() > len(files) / 2:
        return None
    chosen = held.tolist()
    return Split(
        tuple(file for file, out in zip(files, chosen, strict=True) if out),
        tuple(file for file, out in zip(files, chosen, strict=True) if not out),
        strict,
    )


def _clusters(family: Family, files: Sequence[str], likeness: Likeness) -> np.ndarray:
    """`(files,)` cluster of every file: files of which any two chains resemble each other are in one."""
    place = {file: number for number, file in enumerate(files)}
    # Every sequence once: copies are joined without an alignment.
    owners: dict[str, list[int]] = {}
    for chain in family.chains:
        owners.setdefault(chain.sequence, []).append(place[chain.file])
    sequences = list(owners)
    similar = similar_pairs(sequences, None, likeness, search=BUILTIN, processes=1, what="comparing chains")
    pairs = [(owners[sequences[pair.query]][0], owners[sequences[pair.target]][0]) for pair in similar]
    pairs += [(same[0], other) for same in owners.values() for other in same[1:]]
    return clusters(len(files), pairs)

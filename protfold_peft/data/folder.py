"""A folder of structure files, or a prepared dataset, as training chains; what cannot be used is skipped and said."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from protfold_peft.data.chains import TrainingChain, training_chain
from protfold_peft.data.prepare.split import TRAIN
from protfold_peft.data.prepare.store import is_prepared, load_prepared
from protfold_peft.errors import StructureError
from protfold_peft.structure import find_structure_files, read_structure


@dataclass(frozen=True)
class Skipped:
    """A file or a chain that is not used.

    Attributes:
        name: Of the file or the chain.
        reason: Why, in one line that names the file.
        wanted: It was left out by the limits on length; otherwise the file cannot be read.
    """

    name: str
    reason: str
    wanted: bool


@dataclass(frozen=True)
class ChainFolder:
    """What a folder holds.

    Attributes:
        chains: The usable chains, by file name and then in file order; at least one.
        skipped: Everything else that looked like a structure.
    """

    chains: tuple[TrainingChain, ...]
    skipped: tuple[Skipped, ...]


def read_chains(folder: str | os.PathLike[str], *, min_length: int = 1, max_length: int | None = None) -> ChainFolder:
    """Read every PDB and mmCIF file directly in `folder` (also `.gz`); other files in it are ignored.

    Of a dataset that `protfold prepare` wrote, the chains of the split `train` are taken.

    Args:
        folder: The folder.
        min_length: Chains with fewer resolved residues (N, CA and C all there) are skipped.
        max_length: Chains whose sequence is longer are skipped.

    Raises:
        StructureError: The folder does not exist, or holds nothing that can be used.
        ConfigError: The prepared dataset is damaged.
    """
    folder = Path(folder)
    if is_prepared(folder):
        return _prepared(folder, min_length, max_length)
    files = find_structure_files(folder)
    chains: list[TrainingChain] = []
    skipped: list[Skipped] = []
    taken: set[str] = set()
    for path in files:
        try:
            structure = read_structure(path)
        except StructureError as error:
            skipped.append(Skipped(path.name, str(error), wanted=False))
            continue
        for chain in structure.chains:
            name = f"{structure.name}_{chain.id}" if len(structure.chains) > 1 else structure.name
            # The same entry as PDB and as mmCIF, say: told apart by the whole file name.
            name = name if name not in taken else f"{name}_{path.name}"
            taken.add(name)
            candidate = training_chain(chain, name)
            reason = _why_not(candidate, min_length, max_length)
            if reason:
                skipped.append(Skipped(name, f"{path}: {name} {reason}", wanted=True))
            else:
                chains.append(candidate)
    if not chains:
        raise StructureError(
            f"{folder}: none of its {len(files)} structure files can be used; the first: {skipped[0].reason}"
        )
    return ChainFolder(tuple(chains), tuple(skipped))


def _prepared(folder: Path, min_length: int, max_length: int | None) -> ChainFolder:
    chains: list[TrainingChain] = []
    skipped: list[Skipped] = []
    for chain in load_prepared(folder, TRAIN):
        reason = _why_not(chain, min_length, max_length)
        if reason:
            skipped.append(Skipped(chain.name, f"{folder}: {chain.name} {reason}", wanted=True))
        else:
            chains.append(chain)
    if not chains:
        raise StructureError(f"{folder}: none of its training chains can be used; the first: {skipped[0].reason}")
    return ChainFolder(tuple(chains), tuple(skipped))


def _why_not(chain: TrainingChain, min_length: int, max_length: int | None) -> str:
    """Why a chain is not used; empty if it is."""
    resolved = int(chain.has_frame.sum())
    if resolved < min_length:
        return f"has {resolved} residues with N, CA and C, fewer than {min_length}"
    if max_length is not None and len(chain) > max_length:
        return f"has {len(chain)} residues, more than {max_length}"
    return ""

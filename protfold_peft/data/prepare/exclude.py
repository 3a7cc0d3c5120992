"""The sequences that nothing in a dataset may resemble: those of a benchmark, say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protfold_peft.data.prepare.parallel import each
from protfold_peft.errors import ProtfoldError, SequenceError, StructureError
from protfold_peft.structure import read_structure
from protfold_peft.structure.fasta import CHAIN_SEPARATOR, clean_sequence, is_fasta_name, read_fasta
from protfold_peft.structure.source import is_structure_name


@dataclass(frozen=True)
class Excluded:
    """A sequence to keep away from, and how to name it."""

    name: str
    sequence: str


def read_excluded(paths: Sequence[Path], *, processes: int) -> list[Excluded]:
    """All sequences of FASTA files, of structure files (each chain's full sequence), and of folders of either.

    Unlike a structure to learn from, one that cannot be read stops the run: what it is would leak unseen.

    Raises:
        ProtfoldError: Something is not there or cannot be read, a record has other letters, or a folder holds neither.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ProtfoldError(f"{path}: there is no such file or folder (--exclude)")
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if is_structure_name(file) or is_fasta_name(file))
        if not inside:
            raise ProtfoldError(f"{path}: holds no FASTA, PDB or mmCIF file (--exclude)")
        files += inside
    found: list[Excluded] = []
    for result in each(_read, files, processes=processes, what="reading what to exclude", unit="files"):
        if isinstance(result, str):
            raise ProtfoldError(f"{result} (--exclude: mend it or take it away)")
        found += result
    return found


def _read(path: Path) -> list[Excluded] | str:
    """The sequences of a file, or what is wrong with it."""
    try:
        if is_structure_name(path):
            return _structure(path)
        return _fasta(path)
    except (StructureError, SequenceError) as error:
        return str(error)


def _structure(path: Path) -> list[Excluded]:
    structure = read_structure(path)
    several = len(structure.chains) > 1
    return [
        Excluded(f"{structure.name}_{chain.id}" if several else structure.name, chain.seqres or chain.sequence)
        for chain in structure.chains
    ]


def _fasta(path: Path) -> list[Excluded]:
    found = []
    for entry in read_fasta(path):
        name = (entry.header.split() or [f"record {entry.position} of {path.name}"])[0]
        try:
            sequence, _ = clean_sequence(entry.sequence)
        except SequenceError as error:
            raise SequenceError(f"{path}: record {entry.position} ({name}): {error}") from None
        found += [Excluded(name, chain) for chain in sequence.split(CHAIN_SEPARATOR)]
    return found

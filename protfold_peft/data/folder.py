"""A folder of structure files, a prepared dataset or a FASTA file as training chains; what cannot be used is said."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protfold_peft.data.chains import TrainingChain, sequence_chain, training_chain
from protfold_peft.data.prepare.split import TRAIN
from protfold_peft.data.prepare.store import PreparedChains, is_prepared, load_prepared
from protfold_peft.errors import ConfigError, SequenceError, StructureError
from protfold_peft.structure import find_structure_files, read_structure
from protfold_peft.structure.fasta import clean_sequence, read_fasta


@dataclass(frozen=True)
class Skipped:
    """A file or a chain that is not used.

    Attributes:
        name: Of the file or the chain.
        reason: Why, in one line that names the file.
        wanted: It was left out by a setting; otherwise the file cannot be read.
    """

    name: str
    reason: str
    wanted: bool


@dataclass(frozen=True)
class ChainFolder:
    """What a folder holds.

    Attributes:
        chains: The usable chains, by file name and then in file order; at least one. Those of a prepared dataset are
            read when they are asked for.
        skipped: Everything else that looked like a structure.
        lengths: Of the chains, in residues.
        clusters: Places of the chains that are of one cluster, for every cluster; None where none is known.
    """

    chains: Sequence[TrainingChain]
    skipped: tuple[Skipped, ...]
    lengths: tuple[int, ...]
    clusters: tuple[tuple[int, ...], ...] | None = None


def read_chains(
    folder: str | os.PathLike[str],
    *,
    min_length: int = 1,
    max_length: int | None = None,
    table: str | os.PathLike[str] | None = None,
    where: Mapping[str, str] | None = None,
    split: str = TRAIN,
) -> ChainFolder:
    """Read every PDB and mmCIF file directly in `folder` (also `.gz`); other files in it are ignored.

    Args:
        folder: The folder, or a dataset that `protfold prepare` wrote.
        min_length: Chains with fewer resolved residues (N, CA and C all there) are skipped.
        max_length: Chains whose sequence is longer are skipped.
        table: CSV or TSV file whose column `name` has the names of the files without their suffixes.
        where: Only files whose row in the table has these values, by column.
        split: Of a prepared dataset: `train` or `validation`.

    Raises:
        StructureError: The folder does not exist, or holds nothing that can be used.
        ConfigError: The prepared dataset is damaged, or the table or a column of it is not there.
    """
    folder = Path(folder)
    if where and table is None:
        raise ConfigError(f"{folder}: 'where' chooses rows of a table: name it as 'table'")
    if is_prepared(folder):
        if table is not None:
            raise ConfigError(f"{folder}: a prepared dataset takes no table; choose chains when it is prepared")
        return _prepared(folder, min_length, max_length, split)
    chosen = None if table is None else _names(Path(table), where or {})
    files = find_structure_files(folder)
    if chosen is not None:
        files = [path for path in files if path.name.removesuffix(".gz").rpartition(".")[0] in chosen]
        if not files:
            raise StructureError(f"{folder}: none of the {len(chosen)} files that {table} names is there")
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
            reason = _why_not(int(candidate.has_frame.sum()), len(candidate), min_length, max_length)
            if reason:
                skipped.append(Skipped(name, f"{path}: {name} {reason}", wanted=True))
            else:
                chains.append(candidate)
    if not chains:
        raise StructureError(
            f"{folder}: none of its {len(files)} structure files can be used; the first: {skipped[0].reason}"
        )
    return ChainFolder(tuple(chains), tuple(skipped), tuple(map(len, chains)))


def read_sequences(path: str | os.PathLike[str], *, max_length: int | None = None) -> ChainFolder:
    """The records of a FASTA file as chains of which no residue is resolved.

    Raises:
        SequenceError: The file is no FASTA, or none of its records can be used.
    """
    chains: list[TrainingChain] = []
    skipped: list[Skipped] = []
    for entry in read_fasta(Path(path)):
        name = entry.header.split()[0] if entry.header else f"record {entry.position}"
        try:
            sequence, _ = clean_sequence(entry.sequence)
            if ":" in sequence:
                raise SequenceError("a complex cannot be learnt from its sequence; give its chains as records")
        except SequenceError as error:
            skipped.append(Skipped(name, f"{path}: {name}, line {entry.line}: {error}", wanted=False))
            continue
        if max_length is not None and len(sequence) > max_length:
            reason = f"{path}: {name} has {len(sequence)} residues, more than {max_length}"
            skipped.append(Skipped(name, reason, wanted=True))
            continue
        chains.append(sequence_chain(name, sequence))
    if not chains:
        raise SequenceError(f"{path}: none of its records can be used" + (f": {skipped[0].reason}" if skipped else ""))
    return ChainFolder(tuple(chains), tuple(skipped), tuple(map(len, chains)))


def joined(first: ChainFolder, second: ChainFolder) -> ChainFolder:
    """The chains of both; those of the second are clusters of their own."""
    offset = len(first.chains)
    clusters = first.clusters
    if clusters is not None:
        clusters = (*clusters, *((offset + i,) for i in range(len(second.chains))))
    return ChainFolder(
        (*first.chains, *second.chains), first.skipped + second.skipped, first.lengths + second.lengths, clusters
    )


def _prepared(folder: Path, min_length: int, max_length: int | None, split: str) -> ChainFolder:
    every = load_prepared(folder, split)
    kept: list[int] = []
    skipped: list[Skipped] = []
    lengths, resolved, clusters = every.lengths(), every.column("resolved"), every.column("cluster")
    for place, name in enumerate(every.column("name")):
        reason = _why_not(resolved[place], lengths[place], min_length, max_length)
        if reason:
            skipped.append(Skipped(name, f"{folder}: {name} {reason}", wanted=True))
        else:
            kept.append(place)
    if not kept:
        which = "training" if split == TRAIN else split
        first = f"; the first: {skipped[0].reason}" if skipped else ""
        raise StructureError(f"{folder}: none of its {which} chains can be used{first}")
    members: dict[int, list[int]] = {}
    for new, place in enumerate(kept):
        members.setdefault(clusters[place], []).append(new)
    return ChainFolder(
        PreparedChains(every.dataset.select(kept)),
        tuple(skipped),
        tuple(lengths[place] for place in kept),
        tuple(map(tuple, members.values())),
    )


def _names(table: Path, where: Mapping[str, str]) -> set[str]:
    """What the column `name` has in the rows with the wanted values."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
            columns = reader.fieldnames or []
            for column in ("name", *where):
                if column not in columns:
                    raise ConfigError(f"{table}: there is no column '{column}'; it has {', '.join(columns)}")
            names = {row["name"] for row in reader if all(row[column] == str(value) for column, value in where.items())}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{table}: the table cannot be read: {reason}") from error
    if not names:
        wanted = ", ".join(f"{column}={value}" for column, value in where.items())
        raise ConfigError(f"{table}: no row has {wanted}" if where else f"{table}: the table has no row")
    return names


def _why_not(resolved: int, length: int, min_length: int, max_length: int | None) -> str:
    """Why a chain is not used; empty if it is."""
    if resolved < min_length:
        return f"has {resolved} residues with N, CA and C, fewer than {min_length}"
    if max_length is not None and length > max_length:
        return f"has {length} residues, more than {max_length}"
    return ""

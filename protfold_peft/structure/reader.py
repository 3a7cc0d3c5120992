"""Reading a structure: from a file to frozen records, every decision written down in `Structure.notes`.

The policies are listed in `docs/structures.md`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protfold_peft.errors import StructureError
from protfold_peft.structure.components import parent
from protfold_peft.structure.conformers import Conformer, one_conformer
from protfold_peft.structure.mmcif_table import read_mmcif_table
from protfold_peft.structure.pdb_table import read_pdb_table
from protfold_peft.structure.polymer import Part, chain_label, list_some, protein_parts
from protfold_peft.structure.records import Table
from protfold_peft.structure.residues import ATOM_INDEX, BACKBONE_ATOMS, THREE_TO_ONE
from protfold_peft.structure.seqres import place_in_sequence
from protfold_peft.structure.source import is_structure_name, read_text, short_name
from protfold_peft.structure.types import Chain, Structure

# Residues are joined below these C-N and CA-CA distances (angstrom).
_BOND = 2.0
_ALPHA_STEP = 4.4


def read_structure(
    path: str | os.PathLike[str], *, model: int | None = None, chains: Sequence[str] | None = None
) -> Structure:
    """Read the protein of a PDB or mmCIF file, plain or gzipped; the content tells which.

    Args:
        path: The file.
        model: Number of the model as the file writes it; None for the first.
        chains: Author ids of the chains to read; None for all protein chains.

    Returns:
        The chains in file order, with what was decided or left out in `notes`.

    Raises:
        StructureError: The file cannot be read rightly, has no protein, or lacks the model or a chain asked for. The
            message is one line that names the file, the line or record, and the remedy.
    """
    path = Path(path)
    text, kind = read_text(path)
    try:
        table = (read_mmcif_table if kind == "mmcif" else read_pdb_table)(path, text, model)
        return structure_from_table(table, list(chains) if chains is not None else None)
    except StructureError:
        raise
    except Exception as error:
        # Whatever else a damaged file provokes is a fault of the file to its reader; the cause stays for debugging.
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise StructureError(f"{path}: cannot be read as {kind}: the file is damaged ({what})") from error


def find_structure_files(folder: str | os.PathLike[str], *, recursive: bool = False) -> list[Path]:
    """PDB and mmCIF files of a folder by their names (`.pdb`, `.ent`, `.cif`, `.mmcif`, each also `.gz`), sorted.

    Raises:
        StructureError: There is no such folder, or it holds no structure file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StructureError(f"{folder}: there is no such folder")
    entries = folder.rglob("*") if recursive else folder.iterdir()
    files = sorted(entry for entry in entries if is_structure_name(entry) and entry.is_file())
    if not files:
        raise StructureError(f"{folder}: holds no .pdb, .ent, .cif or .mmcif file (nor one with .gz)")
    return files


def structure_from_table(table: Table, wanted: list[str] | None = None) -> Structure:
    """The protein chains of a table, with everything decided that `docs/structures.md` lists."""
    parts, notes = protein_parts(table, wanted)
    chains = []
    for chain_id, members in parts.items():
        chain, chain_notes = _chain(table, chain_id, members)
        notes.extend(chain_notes)
        if chain is not None:
            chains.append(chain)
    there = {chain.id for chain in chains}
    missing = [repr(chain) for chain in wanted or () if chain not in there]
    if missing:
        names = dict.fromkeys(group.chain for group in table.groups if parent(group.name, table.parents))
        found = list_some([repr(name) for name in names], 20) or "none"
        raise StructureError(f"{table.path}: there is no protein chain {', '.join(missing)}; the file has {found}")
    if not chains:
        where = f" in model {table.model} of {table.n_models}" if table.n_models > 1 else ""
        reason = f" ({'; '.join(notes)})" if notes else ""
        raise StructureError(f"{table.path}: there is no protein chain{where}{reason}")
    if table.n_models > 1:
        notes.insert(0, f"model {table.model} of {table.n_models} read")
    return Structure(
        name=short_name(table.path),
        chains=tuple(chains),
        model=table.model,
        n_models=table.n_models,
        resolution=table.resolution,
        release_date=table.release_date,
        notes=(*table.notes, *notes),
        source=table.path,
    )


def _chain(table: Table, chain_id: str, parts: list[Part]) -> tuple[Chain | None, list[str]]:
    """The chain, None where none of its residues has a backbone atom, and what was decided on the way."""
    label = chain_label(chain_id)
    by_number: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        by_number.setdefault((part.group.number, part.group.icode), []).append(part)

    kept: list[Conformer] = []
    letters: list[str] = []
    bare: list[str] = []
    foreign: list[str] = []
    for (number, icode), members in by_number.items():
        place = f"{number.strip()}{icode}"
        conformer = one_conformer(
            table, [part.group for part in members], [part.atoms for part in members], f"{label} residue {place}"
        )
        part = next(part for part in members if part.group.name == conformer.name)
        if conformer.name in THREE_TO_ONE and part.letter != "X":
            foreign.extend(f"{name} of {conformer.name} {place}" for name in part.unknown_atoms)
        if any(name in conformer.atoms for name in BACKBONE_ATOMS):
            kept.append(conformer)
            letters.append(part.letter)
        else:
            bare.append(f"{conformer.name} {place}")
    notes = _decisions(label, kept, letters)
    if foreign:
        notes.append(f"{label}: atoms that are not of their residue left out: {list_some(foreign)}")
    if bare:
        notes.append(f"{label}: residues without a backbone atom left out: {list_some(bare)}")
    if not kept:
        return None, notes

    positions, mask, b_factors = _arrays(kept)
    _refuse_placeholders(table, label, kept, positions, mask)
    numbers = np.array([table.read_number(conformer.group) for conformer in kept], dtype=np.int64)
    sequence = "".join(letters)
    seqres, index, seqres_notes = _full_sequence(table, chain_id, kept, sequence, numbers, positions, mask)
    chain = Chain(
        id=chain_id,
        sequence=sequence,
        residue_names=tuple(conformer.name for conformer in kept),
        residue_numbers=numbers,
        insertion_codes=tuple(conformer.group.icode for conformer in kept),
        atom_positions=positions,
        atom_mask=mask,
        b_factors=b_factors,
        seqres=seqres,
        seqres_index=index,
    )
    return chain, notes + seqres_notes


def _arrays(kept: list[Conformer]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions `(n, 37, 3)`, mask `(n, 37)` and B-factors `(n, 37)`."""
    rows: list[int] = []
    columns: list[int] = []
    xyz: list[tuple[float, ...]] = []
    b_values: list[float] = []
    for row, conformer in enumerate(kept):
        for name, atom in conformer.atoms.items():
            rows.append(row)
            columns.append(ATOM_INDEX[name])
            xyz.append(atom.position)
            b_values.append(atom.b_factor)
    positions = np.zeros((len(kept), 37, 3))
    mask = np.zeros((len(kept), 37), dtype=bool)
    b_factors = np.zeros((len(kept), 37))
    positions[rows, columns] = xyz
    mask[rows, columns] = True
    b_factors[rows, columns] = b_values
    return positions, mask, b_factors


def _refuse_placeholders(
    table: Table, label: str, kept: list[Conformer], positions: np.ndarray, mask: np.ndarray
) -> None:
    """Several atoms at the origin are not coordinates but their absence."""
    if (mask & ~positions.any(-1)).sum() < 2:
        return
    atom = next(atom for one in kept for atom in one.atoms.values() if not any(atom.position))
    raise StructureError(
        f"{table.path}: {atom.place}: several atoms of {label} lie at 0, 0, 0, which stands for missing coordinates; "
        "remove those records"
    )


def _decisions(label: str, kept: list[Conformer], letters: list[str]) -> list[str]:
    """Sentences on modified residues, alternate locations, heterogeneity, duplicates and zero occupancy."""
    modified: dict[str, list[str]] = {}
    choices: list[str] = []
    names: list[str] = []
    displaced: list[str] = []
    duplicates = copies = zero = 0
    for one, letter in zip(kept, letters, strict=True):
        place = f"{one.group.number.strip()}{one.group.icode}"
        if one.name not in THREE_TO_ONE or letter == "X":
            modified.setdefault(f"{one.name} read as {letter}", []).append(place)
        if one.choice is not None:
            taken, labels = one.choice
            choices.append(f"{place} ({taken or 'blank'} of {', '.join(name or 'blank' for name in labels)})")
        if one.names:
            names.append(f"{place} ({one.name} of {', '.join(one.names)})")
        displaced.extend(f"{name} of {one.name} {place}" for name in one.displaced)
        duplicates += one.n_duplicates
        copies += one.n_duplicates >= len(one.atoms)
        zero += sum(atom.occupancy == 0 for atom in one.atoms.values())
    notes = [f"{label}: {what} at {list_some(places)}" for what, places in modified.items()]
    if names:
        notes.append(f"{label}: most occupied residue name taken at {list_some(names)}")
    if choices:
        notes.append(f"{label}: most occupied alternate location taken at {list_some(choices)}")
    if displaced:
        notes.append(f"{label}: atoms given twice without alternate locations, one taken: {list_some(displaced)}")
    if copies and copies == len(kept):
        notes.append(f"{label}: given more than once with the same coordinates, one copy kept")
    elif duplicates:
        notes.append(f"{label}: {duplicates} repeated atom records left out")
    if zero:
        notes.append(f"{label}: {zero} atoms of zero occupancy kept")
    return notes


def _full_sequence(
    table: Table,
    chain_id: str,
    kept: list[Conformer],
    sequence: str,
    numbers: np.ndarray,
    positions: np.ndarray,
    mask: np.ndarray,
) -> tuple[str | None, np.ndarray | None, list[str]]:
    """The full sequence and the place of every residue in it, as far as the file gives one that fits."""
    names = table.seqres.get(chain_id)
    if not names:
        return None, None, []
    label = chain_label(chain_id)
    full = "".join(parent(name, table.parents) or "X" for name in names)
    joined = bonded_to_previous(positions, mask)
    labels = [conformer.group.label_number for conformer in kept]
    placement = place_in_sequence(sequence, full, numbers, joined, labels)
    if placement is None:
        return None, None, [f"{label}: the full sequence in the file does not fit the residues and is not used"]
    notes = []
    if placement.n_wrong:
        notes.append(f"{label}: {placement.n_wrong} residues differ from the full sequence in the file")
    if placement.n_open:
        notes.append(
            f"{label}: {placement.n_open} residues fit the full sequence in several places, the first is taken"
        )
    return full, placement.places, notes


def bonded_to_previous(positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`(n,)` bool: the residue is bonded to the one before, by C-N or, where one of them is missing, by CA-CA."""

    def near(first: int, second: int, limit: float) -> tuple[np.ndarray, np.ndarray]:
        distance = np.linalg.norm(positions[1:, second] - positions[:-1, first], axis=-1)
        known = mask[:-1, first] & mask[1:, second]
        return known, known & (distance < limit)

    peptide_known, peptide = near(ATOM_INDEX["C"], ATOM_INDEX["N"], _BOND)
    _, alpha = near(ATOM_INDEX["CA"], ATOM_INDEX["CA"], _ALPHA_STEP)
    return np.concatenate([[False], np.where(peptide_known, peptide, alpha)])

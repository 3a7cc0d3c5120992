"""To and from `Bio.PDB` structures, for people who have tools that use them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from Bio.PDB.Atom import Atom as BioAtom
from Bio.PDB.Chain import Chain as BioChain
from Bio.PDB.Model import Model as BioModel
from Bio.PDB.Residue import Residue as BioResidue
from Bio.PDB.Structure import Structure as BioStructure

from protfold_peft.errors import StructureError
from protfold_peft.structure.components import written_atom
from protfold_peft.structure.reader import structure_from_table
from protfold_peft.structure.records import Atom, Group, Table, position
from protfold_peft.structure.residues import ATOM_TYPES
from protfold_peft.structure.types import Structure

_AXES = ("x", "y", "z")


def to_biopython(structure: Structure) -> BioStructure:
    """The structure as a `Bio.PDB.Structure.Structure` with one model, in float64 coordinates.

    Numbers, insertion codes and names are kept (a blank chain id is a blank, as Biopython has it); the full sequence
    and the notes have no place there.
    """
    result = BioStructure(structure.name)
    model = BioModel(0, serial_num=structure.model)
    result.add(model)
    serial = 0
    for chain in structure.chains:
        bio_chain = BioChain(chain.id or " ")
        model.add(bio_chain)
        for row, name in enumerate(chain.residue_names):
            number = (" ", int(chain.residue_numbers[row]), chain.insertion_codes[row] or " ")
            residue = BioResidue(number, name, " ")
            bio_chain.add(residue)
            for column in np.flatnonzero(chain.atom_mask[row]):
                serial += 1
                atom, element = written_atom(name, ATOM_TYPES[column])
                residue.add(
                    BioAtom(
                        atom,
                        chain.atom_positions[row, column].copy(),
                        float(chain.b_factors[row, column]),
                        1.0,
                        " ",
                        f"{atom:<4}" if len(element) == 2 else f" {atom:<3}",
                        serial,
                        element=element,
                    )
                )
    return result


def from_biopython(structure: BioStructure, *, model: int = 0) -> Structure:
    """A `Bio.PDB` structure under the same policies as a file (alternate locations, modified residues, ligands).

    Args:
        structure: As one of Biopython's parsers returns it. What such a parser merged (chains with two-character ids
            in PDB files) stays merged: read files with `read_structure`.
        model: Biopython's index of the model, from 0.

    Raises:
        StructureError: There is no such model or no protein, or a coordinate is not finite.
    """
    models = list(structure)
    if not 0 <= model < len(models):
        raise StructureError(f"{structure.id}: there is no model at index {model}; the structure has {len(models)}")
    chosen = models[model]
    groups: list[Group] = []
    atoms: dict[int, list[Atom]] = {}
    row = 0
    for chain in chosen:
        # The unpacked list holds every residue of a heterogeneous place.
        for residue in chain.get_unpacked_list():
            kind, number, icode = residue.id
            members = residue.get_unpacked_list()
            if not members:
                continue
            group = Group(
                chain=chain.id.strip(),
                number=str(number),
                icode=icode.strip(),
                name=residue.resname.strip().upper(),
                hetero=kind.strip() != "",
                segment="0",
                segid="",
                rows=list(range(row, row + len(members))),
            )
            row += len(members)
            atoms[group.rows[0]] = [_atom(structure, residue, atom) for atom in members]
            groups.append(group)
    table = Table(
        path=Path(str(structure.id) or "structure"),
        groups=groups,
        read_atoms=lambda group: atoms[group.rows[0]],
        read_number=lambda group: int(group.number),
        model=chosen.serial_num if isinstance(chosen.serial_num, int) else model + 1,
        n_models=len(models),
    )
    return replace(structure_from_table(table), name=str(structure.id), source=None)


def _atom(structure: BioStructure, residue: Any, atom: Any) -> Atom:
    chain = residue.get_parent()
    place = f"chain {chain.id} residue {residue.resname} {residue.id[1]} atom {atom.get_name()}"
    x, y, z = (repr(float(value)) for value in atom.coord)
    return Atom(
        name=atom.get_name().strip(),
        altloc=atom.get_altloc().strip(),
        position=position((x, y, z), _AXES, Path(str(structure.id)), place),
        occupancy=1.0 if atom.occupancy is None else float(atom.occupancy),
        b_factor=float(atom.bfactor or 0.0),
        place=place,
    )

"""Atoms that have a twin: two names of one residue that a half turn, or convention alone, exchanges.

Source: the residues that OpenStructure's `lddt` treats so (Mariani et al. 2013, section 2.2): ASP, GLU, PHE and TYR,
whose twins are chemically the same, and VAL, LEU and ARG, whose twins are told apart by naming rules that models break.

Axis letters: `b` batch, `n` residues, 37 atoms of `residues.ATOM_TYPES`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protfold_peft.structure.residues import (
    AMBIGUOUS_ATOMS,
    ATOM_INDEX,
    ATOM_TYPES,
    RESTYPE_INDEX,
    RESTYPES,
    THREE_TO_ONE,
)

TWINS = {
    **AMBIGUOUS_ATOMS,
    "VAL": (("CG1", "CG2"),),
    "LEU": (("CD1", "CD2"),),
    "ARG": (("NH1", "NH2"),),
}


def _twin_table() -> Tensor:
    table = torch.arange(len(ATOM_TYPES)).repeat(len(RESTYPES), 1)
    for residue, pairs in TWINS.items():
        row = RESTYPE_INDEX[THREE_TO_ONE[residue]]
        for one, other in pairs:
            i, j = ATOM_INDEX[one], ATOM_INDEX[other]
            table[row, i], table[row, j] = j, i
    return table


_TWIN_TABLE = _twin_table()


def twin_atoms(restypes: Tensor) -> Tensor:
    """`(b, n, 37)` place of the atom that each atom may change names with, its own where it has none.

    Args:
        restypes: `(b, n)` residue types 0..20.
    """
    return _TWIN_TABLE.to(restypes.device)[restypes.long()]

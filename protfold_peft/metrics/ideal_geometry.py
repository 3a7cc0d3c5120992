"""Bond lengths and angles that proteins have: means, and how far they vary.

Backbone values are those of Engh & Huber, "Accurate bond and angle parameters for X-ray protein structure refinement",
Acta Cryst. A47 (1991) 392, in their revision in International Tables for Crystallography F (2001), chapter 18.3.
Within side chains the means are those of the ideal residues of `structure.residues`, and the deviations those typical
of Engh & Huber's classes: 0.02 A for bonds, 2.0 degrees for angles at tetrahedral and 1.5 at trigonal atoms (they list
0.01..0.03 A, 1.0..2.7 and 0.7..1.9 degrees).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from protfold_peft.structure.geometry import atom14_from_torsions
from protfold_peft.structure.residues import ATOM14_NAMES, ATOM_INDEX, ONE_TO_THREE, RESTYPES
from protfold_peft.structure.rigid import Rigid


class Value(NamedTuple):
    """A mean and its standard deviation, in angstrom or degrees."""

    mean: float
    deviation: float


# By the atoms measured: general, glycine, proline. `+` marks an atom of the next residue. Where two residues take part,
# proline is meant of the next one; glycine of the next one for the angle at its N, else of the first.
BACKBONE: dict[str, tuple[Value, Value, Value]] = {
    "N CA": (Value(1.459, 0.020), Value(1.456, 0.015), Value(1.468, 0.017)),
    "CA C": (Value(1.525, 0.026), Value(1.514, 0.016), Value(1.524, 0.020)),
    "C O": (Value(1.229, 0.019), Value(1.232, 0.016), Value(1.228, 0.020)),
    "C N+": (Value(1.336, 0.023), Value(1.326, 0.018), Value(1.338, 0.019)),
    "N CA C": (Value(111.0, 2.7), Value(113.1, 2.5), Value(112.1, 2.6)),
    "CA C O": (Value(120.1, 2.1), Value(120.6, 1.8), Value(120.2, 2.4)),
    "CA C N+": (Value(117.2, 2.2), Value(116.2, 2.0), Value(117.1, 2.8)),
    "O C N+": (Value(122.7, 1.6), Value(123.2, 1.7), Value(121.1, 1.9)),
    "C N+ CA+": (Value(121.7, 2.5), Value(122.3, 2.1), Value(119.3, 1.5)),
}

SIDE_CHAIN_BOND_DEVIATION = 0.02
TETRAHEDRAL_DEVIATION = 2.0
TRIGONAL_DEVIATION = 1.5
TRIGONAL = {
    "ARG": "NE CZ",
    "ASN": "CG",
    "ASP": "CG",
    "GLN": "CD",
    "GLU": "CD",
    "HIS": "CG ND1 CD2 CE1 NE2",
    "PHE": "CG CD1 CD2 CE1 CE2 CZ",
    "TRP": "CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
    "TYR": "CG CD1 CD2 CE1 CE2 CZ",
}
# The ring of proline is closed by the backbone N, which the ideal residue, free to turn, does not fix (Engh & Huber).
PROLINE_RING = {
    ("N", "CD"): Value(1.474, 0.014),
    ("CA", "N", "CD"): Value(111.7, 1.4),
    ("CG", "CD", "N"): Value(103.2, 1.5),
}


@dataclass(frozen=True, eq=False)
class Restraints:
    """Bonds (`size` 2) or angles (3, the middle atom in the middle) of every residue type.

    Attributes:
        atoms: `(21, k, size)` places among the 37 atoms.
        mean: `(21, k)` float64, in angstrom or degrees.
        deviation: `(21, k)` float64.
        exists: `(21, k)` bool; a residue type has `k` of them at most.
    """

    atoms: Tensor
    mean: Tensor
    deviation: Tensor
    exists: Tensor


@cache
def restraints() -> tuple[Restraints, Restraints]:
    """All bonds and all angles between heavy atoms within residues, on the CPU."""
    bonds, angles = [], []
    for one, positions in zip(RESTYPES, _extended_residues(), strict=True):
        three = ONE_TO_THREE[one]
        names = [name for name in ATOM14_NAMES[three] if name]
        values = _bonds(three, dict(zip(names, positions, strict=False)))
        bonds.append(values)
        angles.append(_angles(three, dict(zip(names, positions, strict=False)), list(values)))
    return _table(bonds, 2), _table(angles, 3)


def _extended_residues() -> Tensor:
    """`(21, 14, 3)` ideal residues with all torsions trans, so that no atoms meet that are not bonded."""
    restypes = torch.arange(len(RESTYPES))
    trans = torch.tensor([0.0, -1.0], dtype=torch.float64).expand(len(RESTYPES), 7, 2)
    frame = Rigid(torch.eye(3, dtype=torch.float64).expand(len(RESTYPES), 3, 3), trans.new_zeros(len(RESTYPES), 3))
    return atom14_from_torsions(frame, trans, restypes)[0]


def _bonds(three: str, atoms: dict[str, Tensor]) -> dict[tuple[str, ...], Value]:
    values: dict[tuple[str, ...], Value] = {}
    for one, other in combinations(atoms, 2):
        length = float((atoms[one] - atoms[other]).norm())
        # No two heavy atoms that are not bonded come so near; bonds of sulphur are 1.8 A.
        if length < (2.0 if "S" in one[0] + other[0] else 1.7):
            values[one, other] = _backbone(three, (one, other)) or Value(length, SIDE_CHAIN_BOND_DEVIATION)
    if three == "PRO":
        values.update({names: value for names, value in PROLINE_RING.items() if len(names) == 2})
    return values


def _angles(three: str, atoms: dict[str, Tensor], bonds: list[tuple[str, ...]]) -> dict[tuple[str, ...], Value]:
    values: dict[tuple[str, ...], Value] = {}
    for centre in atoms:
        ends = [bond[1 - bond.index(centre)] for bond in bonds if centre in bond]
        for one, other in combinations(ends, 2):
            names = (one, centre, other)
            degrees = float(angle(atoms[one], atoms[centre], atoms[other]))
            flat = centre == "C" or centre in TRIGONAL.get(three, "").split()
            deviation = TRIGONAL_DEVIATION if flat else TETRAHEDRAL_DEVIATION
            ring = PROLINE_RING.get(names) if three == "PRO" else None
            values[names] = ring or _backbone(three, names) or Value(degrees, deviation)
    return values


def _backbone(three: str, names: tuple[str, ...]) -> Value | None:
    values = BACKBONE.get(" ".join(names))
    return values[{"GLY": 1, "PRO": 2}.get(three, 0)] if values else None


def _table(values: list[dict[tuple[str, ...], Value]], size: int) -> Restraints:
    most = max(len(of_residue) for of_residue in values)
    atoms = torch.zeros(len(values), most, size, dtype=torch.int64)
    mean, deviation = torch.zeros(len(values), most).double(), torch.ones(len(values), most).double()
    exists = torch.zeros(len(values), most, dtype=torch.bool)
    for row, of_residue in enumerate(values):
        for place, (names, value) in enumerate(of_residue.items()):
            atoms[row, place] = torch.tensor([ATOM_INDEX[name] for name in names])
            mean[row, place], deviation[row, place] = value
            exists[row, place] = True
    return Restraints(atoms, mean, deviation, exists)


def angle(one: Tensor, centre: Tensor, other: Tensor) -> Tensor:
    """`(...)` angles at `centre` in degrees, of `(..., 3)` positions."""
    u, v = one - centre, other - centre
    # The arc tangent is exact near 0 and 180 degrees, where the arc cosine loses half the digits.
    return torch.atan2(torch.linalg.cross(u, v).norm(dim=-1), (u * v).sum(dim=-1)).rad2deg()

"""Heavy atoms of different residues that are nearer than atoms can be.

Two atoms clash nearer than the sum of their van der Waals radii less 1.5 A (1.9 A for two carbons): gross errors, as
OpenStructure's `lddt` filters them. Two sulphurs may form a bond of 2.03 A, so they clash nearer than 1.03 A. The
peptide bond between neighbouring rows is no clash.

Sources: radii of Bondi, J. Phys. Chem. 68 (1964) 441; the tolerance and the treatment of sulphur as in the filter of
Mariani et al., Bioinformatics 29 (2013) 2722, section 2.4.

Axis letters: `b` batch, `n` residues, 37 atoms of `residues.ATOM_TYPES`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.metrics.checks import check_masks, check_pair, masked
from protfold_peft.metrics.neighbours import Atoms, neighbour_pairs
from protfold_peft.structure.residues import ATOM_ELEMENTS, ATOM_INDEX, ATOM_TYPES

RADII = {"C": 1.7, "N": 1.55, "O": 1.52, "S": 1.8}
TOLERANCE = 1.5
SULPHUR_LIMIT = 1.03
_LONGEST = 2 * max(RADII.values()) - TOLERANCE


@dataclass(frozen=True, eq=False)
class Clashes:
    """Clashes of a batch.

    Attributes:
        count: `(b,)` pairs of atoms that clash.
        atoms: `(b, n, 37)` bool, the atoms that take part.
    """

    count: Tensor
    atoms: Tensor


@torch.no_grad()
def clashes(positions: Tensor, mask: Tensor) -> Clashes:
    """Clashes within each structure (between its chains too, where it holds several).

    Args:
        positions: `(b, n, 37, 3)` coordinates in angstrom, float32 or float64. Rows in the order of the chain.
        mask: `(b, n, 37)` true where the atom exists.

    Raises:
        ValueError: The shapes do not agree, or a coordinate that takes part is NaN or infinite
            (`NonFiniteCoordinatesError`).
    """
    check_pair(positions, positions, "clashes", dims=(4,))
    if positions.shape[2] != len(ATOM_TYPES):
        raise ValueError(f"clashes takes {len(ATOM_TYPES)} atoms per residue, got {positions.shape[2]}")
    present = check_masks(positions, mask, None)[0]
    placed = masked(positions, present, "predicted")
    atoms = Atoms.of(placed, placed, present, present)
    kind = (atoms.place % len(ATOM_TYPES)).flatten()
    limits = _limits().to(positions.device)
    n_batch, n = present.shape[:2]
    count = torch.zeros(n_batch, dtype=torch.int64, device=positions.device)
    touched = torch.zeros(n_batch * n * len(ATOM_TYPES), dtype=torch.bool, device=positions.device)
    for near in neighbour_pairs(atoms, _LONGEST):
        one, other = kind[near.first], kind[near.second]
        row, next_row = atoms.residue[near.first], atoms.residue[near.second]
        peptide = (one == ATOM_INDEX["C"]) & (other == ATOM_INDEX["N"]) & (next_row == row + 1)
        hit = near.judged & (near.distances[:, 0] < limits[one, other]) & ~peptide
        count += torch.bincount(row[hit] // n, minlength=n_batch)
        touched[row[hit] * len(ATOM_TYPES) + one[hit]] = True
        touched[next_row[hit] * len(ATOM_TYPES) + other[hit]] = True
    return Clashes(count, touched.view(present.shape))


def _limits() -> Tensor:
    """`(37, 37)` float64 distances below which two atoms clash."""
    radius = torch.tensor([RADII[element] for element in ATOM_ELEMENTS], dtype=torch.float64)
    limits = radius[:, None] + radius[None, :] - TOLERANCE
    sulphur = torch.tensor([element == "S" for element in ATOM_ELEMENTS])
    return torch.where(sulphur[:, None] & sulphur[None, :], SULPHUR_LIMIT, limits)

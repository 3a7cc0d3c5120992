"""How near and how far the atoms of one residue may be, by what bonds and angles allow.

Bonded atoms: the bond's length. Atoms bonded to the same one: the third side of the triangle, with the deviations of
both bonds and of the angle carried over. All others: no nearer than their van der Waals radii allow.

Sources: Jumper et al., Nature 596 (2021) 583, supplement 1.9.11; lengths, angles and deviations of Engh & Huber
(`structure.engh_huber`, `metrics.ideal_geometry`); radii of Bondi (`metrics.clashes`).

Axis letters: 21 residue types, 14 atoms of the compact layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from protfold_peft.metrics.clashes import RADII
from protfold_peft.metrics.ideal_geometry import BACKBONE
from protfold_peft.structure.engh_huber import SIDE_CHAIN_GEOMETRY
from protfold_peft.structure.residues import ATOM14_NAMES, ONE_TO_THREE, RESTYPES

# Two atoms may overlap by this much (angstrom), and a length may be this many deviations off.
OVERLAP_TOLERANCE = 1.5
DEVIATIONS = 12.0
_KIND = {"GLY": 1, "PRO": 2}


@cache
@torch.inference_mode(False)  # what is kept serves training too, even if prediction asked first
def distance_bounds() -> tuple[Tensor, Tensor]:
    """`(21, 14, 14)` float64 lower and upper bounds in angstrom, on the CPU; infinity where there is no upper one.

    Places that hold no atom, and an atom with itself, are bounded by 0 and infinity.
    """
    lower = torch.zeros(len(RESTYPES), 14, 14, dtype=torch.float64)
    upper = torch.full_like(lower, math.inf)
    for row, letter in enumerate(RESTYPES):
        names = ATOM14_NAMES[ONE_TO_THREE[letter]]
        radii = torch.tensor([RADII[name[0]] if name else math.nan for name in names], dtype=torch.float64)
        apart = (radii[:, None] + radii[None, :] - OVERLAP_TOLERANCE).fill_diagonal_(0)
        lower[row] = apart.nan_to_num(nan=0.0)
        for (one, other), (mean, deviation) in _lengths(ONE_TO_THREE[letter]).items():
            i, j = names.index(one), names.index(other)
            lower[row, i, j] = lower[row, j, i] = mean - DEVIATIONS * deviation
            upper[row, i, j] = upper[row, j, i] = mean + DEVIATIONS * deviation
    return lower, upper


def _lengths(residue: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Means and deviations, in angstrom, of the distances that bonds and angles fix."""
    values = _geometry(residue)
    bonds = {frozenset(atoms): value for atoms, value in values.items() if len(atoms) == 2}
    lengths = {(atoms[0], atoms[1]): value for atoms, value in values.items() if len(atoms) == 2}
    for atoms, (degrees, deviation) in values.items():
        if len(atoms) != 3:
            continue
        one, centre, other = atoms
        (a, a_deviation), (b, b_deviation) = bonds[frozenset((one, centre))], bonds[frozenset((centre, other))]
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        side = math.sqrt(a * a + b * b - 2 * a * b * cosine)
        # The law of cosines, differentiated by each of its three arguments.
        by_angle, by_a, by_b = a * b * sine / side, (a - b * cosine) / side, (b - a * cosine) / side
        spread = math.hypot(by_angle * math.radians(deviation), by_a * a_deviation, by_b * b_deviation)
        lengths[one, other] = side, spread
    return lengths


def _geometry(residue: str) -> Mapping[tuple[str, ...], tuple[float, float]]:
    """Bonds and angles of the backbone (within the residue) and the side chain."""
    if residue not in SIDE_CHAIN_GEOMETRY:
        return {}
    kind = _KIND.get(residue, 0)
    values: dict[tuple[str, ...], tuple[float, float]] = dict(SIDE_CHAIN_GEOMETRY[residue])
    for atoms, of_kinds in BACKBONE.items():
        if "+" not in atoms:
            values[tuple(atoms.split())] = of_kinds[kind]
    return values

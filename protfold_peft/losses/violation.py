"""Violations: bonds and angles across the peptide bond, clashes, and distances within residues that no protein has.

Flat inside a tolerance of 12 deviations (bonds, angles) or 1.5 A of overlap (clashes), straight beyond. It is made for
the end of a training, as AlphaFold does: before the fold is right, clashes keep it from forming.

Source: Jumper et al., Nature 596 (2021) 583, supplement 1.9.11, equations 44 to 47, summed and averaged as in
AlphaFold's code. Two slips of that code, version 2.3, are repeated here only on request:

- the angle CA-C-N is given the deviation of the bond length, 0.014 instead of 0.0311 (DeepMind has corrected it since);
- disulfides are excused by the place of SG in the layout, the sixth, whatever the residue: so the CG of two leucines
  never clash there.

Axis letters: `b` batch, `n` residues, 14 atoms of the compact layout, `p` pairs of atoms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from protfold_peft.losses.distance_bounds import DEVIATIONS, OVERLAP_TOLERANCE, distance_bounds
from protfold_peft.metrics.clashes import RADII
from protfold_peft.structure.residues import ATOM14_MASK, ATOM14_NAMES, ONE_TO_THREE, RESTYPE_INDEX, RESTYPES

# Of the bond from C to the next N, in angstrom, Engh & Huber (1991): before any residue but proline, before proline.
C_N_LENGTH = ((1.329, 0.014), (1.341, 0.016))
# Cosines of the angles CA-C-N (116.6 degrees) and C-N-CA (121.4), mean and deviation, of the same source.
CA_C_N_COSINE = (-0.4473, 0.0311)
C_N_CA_COSINE = (-0.5203, 0.0353)
# Between the CA atoms of neighbours, in angstrom, and how much more is extreme.
CA_CA_LENGTH = 3.80209737096
CA_CA_TOLERANCE = 1.5
# AlphaFold's guards: under the roots of bonds and errors, of distances, and of counts.
BOND_EPSILON = 1e-6
DISTANCE_EPSILON = 1e-10
COUNT_EPSILON = 1e-6
N, CA, C = 0, 1, 2
_SG = ATOM14_NAMES["CYS"].index("SG")


@dataclass(frozen=True, eq=False)
class Violations:
    """What is wrong with the geometry of a batch.

    Attributes:
        c_n: `(b,)` mean over peptide bonds of what their length is beyond the tolerance, in angstrom.
        ca_c_n: `(b,)` the same of the cosine of the angle at C.
        c_n_ca: `(b,)` the same of the cosine of the angle at N.
        clash_mean: `(b,)` mean overlap beyond the tolerance over all pairs of atoms of different residues, in angstrom.
        clashes: `(b, n, 14)` that overlap summed for every atom.
        within: `(b, n, 14)` distances within the residue beyond their bounds, summed for every atom over both orders
            of a pair, in angstrom.
        n_atoms: `(b,)` atoms that took part.
        bond_residues: `(b, n)` bool, residues at either end of a peptide bond that violates.
        clash_residues: `(b, n)` bool, residues with an atom that clashes.
        within_residues: `(b, n)` bool, residues with a distance out of its bounds.
        extreme_ca_ca: `(b,)` share of neighbours whose CA atoms are more than 5.3 A apart, 0..1.
    """

    c_n: Tensor
    ca_c_n: Tensor
    c_n_ca: Tensor
    clash_mean: Tensor
    clashes: Tensor
    within: Tensor
    n_atoms: Tensor
    bond_residues: Tensor
    clash_residues: Tensor
    within_residues: Tensor
    extreme_ca_ca: Tensor

    @property
    def loss(self) -> Tensor:
        """`(b,)` the three terms of the peptide bond, and the mean over atoms of clashes and of the rest."""
        of_atoms = (self.clashes + self.within).sum(dim=(-2, -1)) / (COUNT_EPSILON + self.n_atoms)
        return self.c_n + self.ca_c_n + self.c_n_ca + of_atoms

    @property
    def residues(self) -> Tensor:
        """`(b, n)` bool: residues with any violation."""
        return self.bond_residues | self.clash_residues | self.within_residues


def violation_loss(
    positions: Tensor,
    mask: Tensor,
    restypes: Tensor,
    residue_index: Tensor | None = None,
    *,
    like_alphafold_2_3: bool = False,
) -> Tensor:
    """`(b,)` loss of `violations`, whose arguments it takes."""
    return violations(positions, mask, restypes, residue_index, like_alphafold_2_3=like_alphafold_2_3).loss


def violations(
    positions: Tensor,
    mask: Tensor,
    restypes: Tensor,
    residue_index: Tensor | None = None,
    *,
    like_alphafold_2_3: bool = False,
) -> Violations:
    """Measure the violations of a model; the experiment is not asked.

    Args:
        positions: `(b, n, 14, 3)` atoms of the model in angstrom, finite everywhere; of the last step.
        mask: `(b, n, 14)` true where the model places the atom: all that the residue types have; false for padding.
        restypes: `(b, n)` residue types 0..20.
        residue_index: `(b, n)` numbers of residues: rows whose numbers follow each other are joined by a peptide bond.
            By default all neighbouring rows are. Chains are told apart by a gap.
        like_alphafold_2_3: Repeat the two slips named above, to compare with values of AlphaFold 2.3.
    """
    mask = mask.bool() & torch.tensor(ATOM14_MASK, device=mask.device)[restypes]
    joined = torch.ones_like(restypes[:, 1:], dtype=torch.bool)
    if residue_index is not None:
        joined = residue_index[:, 1:] == residue_index[:, :-1] + 1
    (c_n, ca_c_n, c_n_ca), bond_residues = _peptide_bonds(
        positions, mask, restypes, joined, C_N_LENGTH[0][1] if like_alphafold_2_3 else CA_C_N_COSINE[1]
    )
    excused = torch.ones_like(mask[..., 0]) if like_alphafold_2_3 else restypes == RESTYPE_INDEX["C"]
    clash_mean, clashes = _clashes(positions, mask, restypes, joined, excused)
    within, within_residues = _within_residues(positions, mask, restypes)
    return Violations(
        c_n=c_n,
        ca_c_n=ca_c_n,
        c_n_ca=c_n_ca,
        clash_mean=clash_mean,
        clashes=clashes,
        within=within,
        n_atoms=mask.sum(dim=(-2, -1)),
        bond_residues=bond_residues,
        clash_residues=(clashes > 0).any(dim=-1),
        within_residues=within_residues,
        extreme_ca_ca=_extreme_ca_ca(positions[:, :, CA], mask[:, :, CA], joined),
    )


def _peptide_bonds(
    positions: Tensor, mask: Tensor, restypes: Tensor, joined: Tensor, ca_c_n_deviation: float
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Mean excess of the bond and of both angles, each `(b,)`, and the residues `(b, n)` at ends of bad ones."""
    ca, c = positions[:, :-1, CA], positions[:, :-1, C]
    next_n, next_ca = positions[:, 1:, N], positions[:, 1:, CA]
    has_bond = joined & mask[:, :-1, C] & mask[:, 1:, N]
    length, to_n = _length_and_direction(next_n - c)
    _, to_ca = _length_and_direction(ca - c)
    _, onward = _length_and_direction(next_ca - next_n)
    proline = (restypes[:, 1:] == RESTYPE_INDEX["P"])[..., None]
    general, before_proline = (positions.new_tensor(values) for values in C_N_LENGTH)
    mean, deviation = torch.where(proline, before_proline, general).unbind(dim=-1)
    terms: list[tuple[Tensor, Tensor | float, Tensor | float, Tensor]] = [
        (length, mean, deviation, has_bond),
        ((to_ca * to_n).sum(dim=-1), CA_C_N_COSINE[0], ca_c_n_deviation, has_bond & mask[:, :-1, CA]),
        ((-to_n * onward).sum(dim=-1), *C_N_CA_COSINE, has_bond & mask[:, 1:, CA]),
    ]
    means, bad = [], torch.zeros_like(has_bond)
    for value, expected, spread, exists in terms:
        error = ((value - expected).square() + BOND_EPSILON).sqrt()
        excess = torch.relu(error - DEVIATIONS * spread) * exists
        means.append(excess.sum(dim=-1) / (exists.sum(dim=-1) + COUNT_EPSILON))
        bad = bad | (excess > 0)
    return tuple(means), functional.pad(bad, (0, 1)) | functional.pad(bad, (1, 0))


def _length_and_direction(vector: Tensor) -> tuple[Tensor, Tensor]:
    length = (vector.square().sum(dim=-1) + BOND_EPSILON).sqrt()
    return length, vector / length[..., None]


@torch.no_grad()
def _extreme_ca_ca(ca: Tensor, known: Tensor, joined: Tensor) -> Tensor:
    distance, _ = _length_and_direction(ca[:, 1:] - ca[:, :-1])
    pairs = joined & known[:, 1:] & known[:, :-1]
    extreme = pairs & (distance - CA_CA_LENGTH > CA_CA_TOLERANCE)
    return extreme.sum(dim=-1).to(ca) / pairs.sum(dim=-1).clamp_min(1)


def _clashes(
    positions: Tensor, mask: Tensor, restypes: Tensor, joined: Tensor, excused: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean overlap beyond the tolerance `(b,)`, and its sum for every atom `(b, n, 14)`.

    Sulphurs (whatever is in their place) of two residues that are `excused` `(b, n)` do not clash.
    """
    n_batch, n = restypes.shape
    points = positions.flatten(1, 2)
    # Few pairs clash: they are found without a gradient, and only they are computed with one.
    with torch.no_grad():
        radii = _radii(positions)[restypes].flatten(1)
        known = mask.flatten(1)
        residue = torch.arange(n, device=mask.device).repeat_interleave(14)
        place = torch.arange(14, device=mask.device).repeat(n)
        pairs = known[:, :, None] & known[:, None, :] & (residue[:, None] < residue[None, :])
        rows = torch.arange(n - 1, device=mask.device) * 14
        # The peptide bond is no clash, nor is a disulfide.
        pairs[:, rows + C, rows + 14 + N] &= ~joined
        sulphur = excused.repeat_interleave(14, dim=1) & (place == _SG)
        pairs &= ~(sulphur[:, :, None] & sulphur[:, None, :])
        limits = radii[:, :, None] + radii[:, None, :] - OVERLAP_TOLERANCE
        near = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") < limits
        sample, one, other = (near & pairs).nonzero(as_tuple=True)
        count = pairs.sum(dim=(-2, -1))
    distance = ((points[sample, one] - points[sample, other]).square().sum(dim=-1) + DISTANCE_EPSILON).sqrt()
    overlap = torch.relu(limits[sample, one, other] - distance)
    of_atom = positions.new_zeros(n_batch, n * 14)
    of_atom = of_atom.index_put((sample, one), overlap, accumulate=True)
    of_atom = of_atom.index_put((sample, other), overlap, accumulate=True)
    return of_atom.sum(dim=-1) / 2 / (COUNT_EPSILON + count), of_atom.unflatten(1, (n, 14))


def _radii(like: Tensor) -> Tensor:
    """`(21, 14)` van der Waals radii in angstrom; 0 where there is no atom."""
    rows = [[RADII[name[0]] if name else 0.0 for name in ATOM14_NAMES[ONE_TO_THREE[letter]]] for letter in RESTYPES]
    return like.new_tensor(rows)


def _within_residues(positions: Tensor, mask: Tensor, restypes: Tensor) -> tuple[Tensor, Tensor]:
    """Distances beyond their bounds summed for every atom `(b, n, 14)`, and the residues that have any `(b, n)`."""
    lower, upper = (bound.to(positions)[restypes] for bound in distance_bounds())
    other = ~torch.eye(14, dtype=torch.bool, device=mask.device)
    pairs = mask[..., :, None] & mask[..., None, :] & other
    squared = (positions[..., :, None, :] - positions[..., None, :, :]).square().sum(dim=-1)
    distance = (squared + DISTANCE_EPSILON).sqrt()
    # Infinity is no bound, and relu(x - infinity) is 0.
    excess = (torch.relu(lower - distance) + torch.relu(distance - upper)) * pairs
    return excess.sum(dim=-1) + excess.sum(dim=-2), (excess > 0).flatten(2).any(dim=-1)

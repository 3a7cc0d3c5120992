"""lDDT: how much of every residue's surroundings keeps its distances. No superposition is involved.

Pairs of atoms of different residues within 15 A of each other in the reference are judged: each is conserved at 0.5,
1, 2 and 4 A if its distance in the model differs by no more. The score is the conserved share of pairs and thresholds.

Atoms whose names mean nothing (the two oxygens of a carboxylate) would be judged by an accident of naming. So for all
heavy atoms the better naming is taken for every residue of D E F Y V L R, by its distances to the atoms of other
residues that have no such twin, as OpenStructure's `lddt` does.

lDDT is blind to handedness: a mirror image scores 1.

Sources: Mariani, Biasini, Barbato, Schwede, "lDDT: a local superposition-free score for comparing protein structures
and models using distance difference tests", Bioinformatics 29 (2013) 2722, with its section on ambiguous naming.

Axis letters: `b` batch, `n` residues, `a` atoms per residue, `m` atoms of one structure in a row, `p` pairs of atoms,
`t` thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.metrics.checks import check_masks, check_pair, masked
from protfold_peft.metrics.naming import twin_atoms
from protfold_peft.metrics.neighbours import Atoms, Near, neighbour_pairs, pair_distances
from protfold_peft.metrics.side_by_side import n_workers, one_core, side_by_side
from protfold_peft.metrics.stereochemistry import sound_atoms
from protfold_peft.structure.residues import ATOM_TYPES

# The published choice: distances up to 15 A in the reference, four degrees of strictness.
INCLUSION_RADIUS = 15.0
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
# Samples differ in how long they take: with two slices of the batch for each core none waits long for the last. Where
# there are fewer distances than this to look at, threads cost more than they bring.
SLICES_PER_WORKER = 2
LEAST_SLICE = 1 << 21
_JUDGED = 1 << 32


@dataclass(frozen=True, eq=False)
class Lddt:
    """lDDT of a batch, 0..1.

    Attributes:
        score: `(b,)` conserved over all distances, pooled over the pairs (not a mean over residues).
        per_residue: `(b, n)` the same of the distances that start at one residue.
        n_pairs: `(b,)` how many distances of the reference were judged, every pair of atoms counted once.

    A score without a single distance to judge (one residue, or none within the radius) is undefined and NaN, as it is
    in biotite; it is never a made-up 0 or 1. `n_pairs` tells.
    """

    score: Tensor
    per_residue: Tensor
    n_pairs: Tensor


@torch.no_grad()
def lddt(
    predicted: Tensor,
    reference: Tensor,
    mask: Tensor,
    predicted_mask: Tensor | None = None,
    *,
    restypes: Tensor | None = None,
    stereochemistry: bool = False,
    inclusion_radius: float = INCLUSION_RADIUS,
    thresholds: tuple[float, ...] = THRESHOLDS,
) -> Lddt:
    """lDDT of one atom per residue (CA for the usual CA lDDT), or of all atoms given (backbone, all heavy atoms).

    Distances are computed in float64 whatever the inputs' type, so that all devices and types judge alike. No gradient.

    Args:
        predicted: `(b, n, 3)` or `(b, n, a, 3)` float32 or float64 coordinates of the model in angstrom. For the
            backbone take those of N, CA, C and O; for all heavy atoms the 37 of `residues.ATOM_TYPES`. Mask OXT, the
            terminal oxygen, in the reference where models have none, or it counts against them.
        reference: Coordinates of the reference, same shape, type and device.
        mask: `(b, n)` or `(b, n, a)` true where the reference has the atom; false for padding. Such places take no
            part, whatever their coordinates hold.
        predicted_mask: The same of the model; all of them by default. An atom that the model lacks fails every
            distance it takes part in.
        restypes: `(b, n)` residue types 0..20 of the reference. Where given, the better naming is taken for every
            residue; needs the 37 atoms.
        stereochemistry: Count residues and side chains of impossible geometry (`stereochemistry.sound_atoms`) as
            missing. Needs `restypes`, and finite coordinates of every atom of the model.
        inclusion_radius: Distances of the reference up to this one count, in angstrom.
        thresholds: A distance is conserved at a threshold if it differs by no more than this, in angstrom.

    Raises:
        ValueError: The shapes do not agree, or a coordinate that takes part is NaN or infinite
            (`NonFiniteCoordinatesError`).
    """
    check_pair(predicted, reference, "lddt")
    with one_core(predicted.device):
        in_reference, in_model = check_masks(predicted, mask, predicted_mask)
        wanted = in_reference
        if restypes is not None:
            if predicted.dim() != 4 or predicted.shape[2] != len(ATOM_TYPES) or restypes.shape != predicted.shape[:2]:
                raise ValueError(
                    f"naming by restypes takes (batch, residues, {len(ATOM_TYPES)}, 3) coordinates and "
                    f"(batch, residues) types, got {tuple(predicted.shape)} and {tuple(restypes.shape)}"
                )
            # An atom of the model whose name the reference lacks may stand for its twin.
            wanted = in_reference | in_reference.gather(2, twin_atoms(restypes))
            if stereochemistry:
                in_model = sound_atoms(predicted, in_model, restypes)
        elif stereochemistry:
            raise ValueError("stereochemistry checks need the residue types: give restypes")
        in_model = in_model & wanted
        model = masked(predicted, in_model, "predicted")
        target = masked(reference, in_reference, "reference")
        if model.dim() == 3:
            model, target, in_reference, in_model = (x.unsqueeze(2) for x in (model, target, in_reference, in_model))
        rule = _Rule(inclusion_radius, thresholds)

        def work(own: slice) -> tuple[Tensor, Tensor]:
            parts = model[own], target[own], in_reference[own], in_model[own]
            return _counts(*parts, None if restypes is None else twin_atoms(restypes[own]), rule)

        counts = side_by_side(work, _slices(in_reference), model.device)
        conserved, judged = (torch.cat(parts) for parts in zip(*counts, strict=True))
        total = judged.sum(dim=1)
        # Whole numbers divide to float32.
        score = conserved.sum(dim=1).double() / (len(thresholds) * total)
        per_residue = conserved.double() / (len(thresholds) * judged)
        return Lddt(score.to(predicted.dtype), per_residue.to(predicted.dtype), total // 2)


def _slices(in_reference: Tensor) -> list[slice]:
    """Parts of the batch, of `(b, n, a)` atoms, to be worked on side by side."""
    n_batch = len(in_reference)
    workers, n_slices = n_workers(in_reference.device), 1
    if workers > 1:
        distances = int(in_reference.flatten(1).sum(dim=1).square().sum())
        n_slices = max(1, min(SLICES_PER_WORKER * workers, distances // LEAST_SLICE))
    step = max(1, -(-n_batch // n_slices))
    return [slice(first, first + step) for first in range(0, max(1, n_batch), step)]


@dataclass(frozen=True)
class _Rule:
    radius: float
    thresholds: tuple[float, ...]


def _counts(
    model: Tensor, target: Tensor, in_reference: Tensor, in_model: Tensor, twin: Tensor | None, rule: _Rule
) -> tuple[Tensor, Tensor]:
    """Conserved (summed over thresholds) and judged distances of every residue: two `(b, n)` int64 tensors."""
    if twin is not None:
        model, in_model = _better_naming(model, target, in_reference, in_model, twin, rule)
    atoms = Atoms.of(model, target, in_reference, in_model)
    # One number per atom holds both counts, the judged ones above the conserved: half the additions.
    counts = torch.zeros_like(atoms.residue)
    for near in neighbour_pairs(atoms, rule.radius):
        count = near.judged.long().mul_(_JUDGED).add_(_kept(near, near.distances, rule))
        counts.scatter_add_(0, near.first, count).scatter_add_(0, near.second, count)
    of_residue = atoms.residue.new_zeros(atoms.n_residues).scatter_add_(0, atoms.residue, counts).view(model.shape[:2])
    return of_residue % _JUDGED, of_residue // _JUDGED


def _kept(near: Near, distances: Tensor, rule: _Rule) -> Tensor:
    """`(p,)` int8 at how many thresholds the model keeps these distances; NaN is kept at none."""
    difference = (distances[:, 1] - distances[:, 0]).abs_()
    # Bytes, as adding up is most of the work.
    kept = near.judged.to(torch.int8)
    total = torch.zeros_like(kept)
    for threshold in rule.thresholds:
        total += (difference <= threshold).view(torch.int8)
    return total.mul_(kept)


def _better_naming(
    model: Tensor, target: Tensor, in_reference: Tensor, in_model: Tensor, twin: Tensor, rule: _Rule
) -> tuple[Tensor, Tensor]:
    """The model and its mask with the twins of those residues exchanged that fit better so."""
    atoms = Atoms.of(model, target, in_reference, in_model)
    exchanged, exchanged_in_model = model.gather(2, twin[..., None].expand_as(model)), in_model.gather(2, twin)
    other = atoms.with_model(exchanged, exchanged_in_model)
    has_twin = (twin != torch.arange(twin.shape[-1], device=twin.device)).flatten(1).gather(1, atoms.place).flatten()
    gain = atoms.residue.new_zeros(atoms.n_residues)
    # The second atom of these pairs has no twin, so it is in the same place in both.
    for near in neighbour_pairs(atoms, rule.radius, has_twin):
        exchanged_distances = pair_distances(other, near.first, near.second)
        difference = _kept(near, exchanged_distances, rule) - _kept(near, near.distances, rule)
        gain.scatter_add_(0, atoms.residue[near.first], difference.long())
    better = (gain > 0).view(model.shape[:2])[..., None]
    return torch.where(better[..., None], exchanged, model), torch.where(better, exchanged_in_model, in_model)

"""lDDT: how much of every residue's surroundings keeps its distances. No superposition is involved.

Source: Mariani, Biasini, Barbato, Schwede, "lDDT: a local superposition-free score for comparing protein structures
and models using distance difference tests", Bioinformatics 29 (2013) 2722.

Axis letters: `b` batch, `n` residues, `a` atoms of all residues of one structure laid in a row, `t` thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from protfold_peft.errors import NonFiniteError

# The published choice: distances up to 15 A in the reference, four degrees of strictness.
INCLUSION_RADIUS = 15.0
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)


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

    score: torch.Tensor
    per_residue: torch.Tensor
    n_pairs: torch.Tensor


def lddt(
    predicted: torch.Tensor,
    reference: torch.Tensor,
    mask: torch.Tensor,
    predicted_mask: torch.Tensor | None = None,
    *,
    inclusion_radius: float = INCLUSION_RADIUS,
    thresholds: tuple[float, ...] = THRESHOLDS,
) -> Lddt:
    """lDDT of one representative atom per residue (CA for the usual CA lDDT).

    Args:
        predicted: `(b, n, 3)` float32 or float64 coordinates of the model in angstrom, on any device.
        reference: `(b, n, 3)` coordinates of the reference, same type and device.
        mask: `(b, n)` true where the reference has the atom; false for padding. Such places take no part, whatever
            their coordinates hold.
        predicted_mask: `(b, n)` true where the model has the atom; all of them by default. An atom that the model
            lacks fails every distance it takes part in.
        inclusion_radius: Distances of the reference up to this one count, in angstrom.
        thresholds: A distance is conserved at a threshold if it differs by no more than this, in angstrom.

    Raises:
        NonFiniteError: A coordinate that takes part is NaN or infinite.
        ValueError: The shapes do not agree.
    """
    if predicted.dim() != 3 or predicted.shape[-1] != 3 or reference.shape != predicted.shape:
        raise ValueError(
            f"lddt takes two (batch, residues, 3) tensors, got {tuple(predicted.shape)} and {tuple(reference.shape)}"
        )
    if mask.shape != predicted.shape[:2]:
        raise ValueError(f"the mask's shape {tuple(mask.shape)} is not {tuple(predicted.shape[:2])}")
    in_reference = mask.bool()
    in_model = in_reference if predicted_mask is None else in_reference & predicted_mask.bool()
    predicted = _checked(predicted, in_model, "predicted")
    reference = _checked(reference, in_reference, "reference")

    residue = torch.arange(mask.shape[1], device=mask.device)
    conserved, judged = _distance_counts(
        predicted, reference, in_reference, in_model, residue, inclusion_radius, thresholds
    )
    # Counts below 2**24 are exact in float32; the ratio is taken in the inputs' type.
    total = judged.sum(dim=-1)
    score = conserved.sum(dim=-1).to(predicted.dtype) / (len(thresholds) * total).to(predicted.dtype)
    per_residue = conserved.to(predicted.dtype) / (len(thresholds) * judged).to(predicted.dtype)
    return Lddt(score=score, per_residue=per_residue, n_pairs=total // 2)


def _checked(positions: torch.Tensor, mask: torch.Tensor, what: str) -> torch.Tensor:
    """`positions` with zeros where `mask` is false.

    Raises:
        NonFiniteError: Something within the mask is NaN or infinite.
    """
    positions = torch.where(mask[..., None], positions, positions.new_zeros(()))
    finite = positions.isfinite().all(dim=-1)
    if not bool(finite.all()):
        sample, residue = (~finite).nonzero()[0].tolist()
        raise NonFiniteError(
            f"the {what} coordinates of sample {sample}, residue {residue} (counted from 0) are not finite: "
            "mask what is missing, or look for the cause where they were made"
        )
    return positions


def _distance_counts(
    predicted: torch.Tensor,
    reference: torch.Tensor,
    in_reference: torch.Tensor,
    in_model: torch.Tensor,
    residue: torch.Tensor,
    inclusion_radius: float,
    thresholds: tuple[float, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Conserved (summed over thresholds) and judged distances of every atom: two `(b, a)` integer tensors.

    `residue` `(a,)` says whose atom each is: only distances between different residues count, so this is the rule for
    any number of atoms per residue.
    """
    reference_distance = _distances(reference)
    judged = (
        (reference_distance <= inclusion_radius)
        & in_reference[:, :, None]
        & in_reference[:, None, :]
        & (residue[:, None] != residue[None, :])
    )
    difference = (_distances(predicted) - reference_distance).abs()
    comparable = judged & in_model[:, :, None] & in_model[:, None, :]
    conserved = torch.zeros_like(residue).expand(judged.shape[:2])
    for threshold in thresholds:
        conserved = conserved + (comparable & (difference <= threshold)).sum(dim=-1)
    return conserved, judged.sum(dim=-1)


def _distances(positions: torch.Tensor) -> torch.Tensor:
    """`(b, a, a)` distances, by differences.

    `torch.cdist` goes by dot products at these sizes, which loses half of float32's digits far from the origin.
    """
    return torch.linalg.vector_norm(positions[:, :, None] - positions[:, None, :], dim=-1)

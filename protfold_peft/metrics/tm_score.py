"""TM-score of a fixed correspondence: how much of the reference a model covers, at the best superposition.

    TM = max over superpositions of (1 / L) sum_i 1 / (1 + (d_i / d0)^2),   d0 = 1.24 (L - 15)^(1/3) - 1.8, at least 0.5

Source: Zhang & Skolnick, Proteins 57 (2004) 702, equations 1 and 5; the floor is their program's.

The maximum over superpositions cannot be had exactly. Published numbers are those of the search in the TMscore program
(`search.py`), the default; `search="irls"` finds as much or more (`reweighted.py`). A single least-squares
superposition is not the TM-score: it is 0.08 too low on average and 0.4 at worst.

Short chains: up to 21 residues d0 is 0.5 A. One or two matched residues superpose perfectly and count 1 / L and 2 / L
(two as far as their distance agrees); three always, four with a single seed. All as TMscore gives. Without a matched
residue the score is 0, without a reference it is NaN.

Axis letters: `b` batch, `n` residues of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protfold_peft.metrics import reweighted
from protfold_peft.metrics import search as tmscore
from protfold_peft.metrics.checks import ca_of, masked
from protfold_peft.metrics.side_by_side import one_core
from protfold_peft.metrics.superpose import Superposition

Normalise = Literal["reference", "model"] | int | Tensor

D0_FLOOR = 0.5


@dataclass(frozen=True, eq=False)
class TmScore:
    """TM-scores of a batch.

    Attributes:
        score: `(b,)` 0..1; NaN where the length is 0.
        superposition: The superposition that has it, of `predicted` onto `reference`. Its rmsd is that of all matched
            residues there, which is not the least possible.
        n_matched: `(b,)` residues compared.
        length: `(b,)` the length it is normalised by.
        d0: `(b,)` in angstrom.
    """

    score: Tensor
    superposition: Superposition
    n_matched: Tensor
    length: Tensor
    d0: Tensor


def tm_d0(length: Tensor) -> Tensor:
    """`(b,)` float64 scale in angstrom for these lengths."""
    return (1.24 * (length.double() - 15).clamp_min(0).pow(1 / 3) - 1.8).clamp_min(D0_FLOOR)


@torch.no_grad()
def tm_score(
    predicted: Tensor,
    reference: Tensor,
    mask: Tensor,
    predicted_mask: Tensor | None = None,
    *,
    search: Literal["tmscore", "irls"] = "tmscore",
    normalise: Normalise = "reference",
) -> TmScore:
    """TM-score of models whose residues are matched, row by row, to those of their references.

    Computed in float64 whatever the inputs' type, so that all devices and types take the same path. No gradient.

    Args:
        predicted: `(b, n, 3)` CA coordinates of the models in angstrom, float32 or float64; or `(b, n, 37, 3)` of all
            atoms of `residues.ATOM_TYPES`, of which CA are taken.
        reference: Coordinates of the references, same shape, type and device.
        mask: `(b, n)` or `(b, n, 37)` true where the reference has the residue; false for padding. All of them count in
            the length.
        predicted_mask: The same of the model; all by default. A residue that the model lacks counts 0.
        search: "tmscore" for the rule of the TMscore program, "irls" for the stronger search.
        normalise: The length the sum is divided by and d0 is computed from: that of the "reference" (`mask`), of the
            "model" (`predicted_mask`, whose rows may lie outside `mask`), or lengths, one or `(b,)`.

    Raises:
        ValueError: The shapes do not agree, an option or a length makes no sense, or a coordinate that takes part is
            NaN or infinite (`NonFiniteCoordinatesError`).
    """
    predicted, reference, in_reference, in_model = ca_of(predicted, reference, mask, predicted_mask, "tm_score")
    if search not in ("tmscore", "irls"):
        raise ValueError(f"search is 'tmscore' or 'irls', not {search!r}")
    with one_core(predicted.device):
        matched = in_reference & in_model
        mobile = masked(predicted, matched, "predicted").double()
        target = masked(reference, matched, "reference").double()
        length = _length(normalise, in_reference, in_model)
        d0 = tm_d0(length)
        find = tmscore.search if search == "tmscore" else reweighted.search
        found = find(mobile, target, matched, d0)
        return score_at(found.rotation, found.translation, mobile, target, matched, length, predicted.dtype)


def score_at(
    rotation: Tensor,
    translation: Tensor,
    mobile: Tensor,
    target: Tensor,
    matched: Tensor,
    length: Tensor,
    dtype: torch.dtype,
) -> TmScore:
    """The score of given superpositions, from the distances themselves rather than from sums over products."""
    square = (mobile @ rotation.mT + translation[:, None] - target).square().sum(dim=-1)
    d0 = tm_d0(length)
    total = ((1 + square / d0.square()[:, None]).reciprocal() * matched).sum(dim=-1)
    n_matched = matched.sum(dim=1)
    rmsd = ((square * matched).sum(dim=-1) / n_matched).sqrt()
    superposition = Superposition(rotation.to(dtype), translation.to(dtype), rmsd.to(dtype))
    return TmScore((total / length).to(dtype), superposition, n_matched, length, d0.to(dtype))


def _length(normalise: Normalise, in_reference: Tensor, in_model: Tensor) -> Tensor:
    if isinstance(normalise, str):
        if normalise not in ("reference", "model"):
            raise ValueError(f"normalise is 'reference', 'model', a length or a tensor of lengths, not {normalise!r}")
        return (in_reference if normalise == "reference" else in_model).sum(dim=1)
    length = torch.as_tensor(normalise, device=in_reference.device)
    if length.dim() > 1 or (length.dim() == 1 and len(length) != len(in_reference)) or not bool((length > 0).all()):
        raise ValueError(f"normalise takes one positive length or one per pair ({len(in_reference)}), got {normalise}")
    return length.expand(len(in_reference))

"""How well a predicted lDDT (pLDDT) tells the true one: correlation, rank correlation and error.

Axis letters: `b` batch, `n` residues.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Calibration:
    """Agreement of predicted with true lDDT over the residues of each sample; all `(b,)`, float64 but the last.

    Attributes:
        pearson: Linear correlation; NaN for fewer than two residues or no variation in either.
        spearman: Correlation of ranks, ties ranked at their mean; NaN as above.
        error: Mean absolute error in points of 0..100; NaN without residues.
        bias: Mean of predicted less true, in points: above 0 where the model is too sure of itself.
        n_residues: How many residues took part.
    """

    pearson: Tensor
    spearman: Tensor
    error: Tensor
    bias: Tensor
    n_residues: Tensor


@torch.no_grad()
def plddt_calibration(plddt: Tensor, true_lddt: Tensor, mask: Tensor) -> Calibration:
    """Compare predicted with true lDDT, residue by residue. For one number over many structures pass them as one row.

    Args:
        plddt: `(b, n)` predicted, 0..100.
        true_lddt: `(b, n)` true, 0..1, as `Lddt.per_residue`. Residues where it is NaN (no distance to judge) take no
            part.
        mask: `(b, n)` true where a residue takes part.

    Raises:
        ValueError: The shapes do not agree, or a value that takes part is not finite or out of its range.
    """
    if plddt.dim() != 2 or true_lddt.shape != plddt.shape or mask.shape != plddt.shape:
        raise ValueError(
            "plddt_calibration takes three (batch, residues) tensors, "
            f"got {tuple(plddt.shape)}, {tuple(true_lddt.shape)} and {tuple(mask.shape)}"
        )
    used = mask.bool() & ~true_lddt.isnan()
    x = torch.where(used, plddt.double(), 0.0)
    y = torch.where(used, true_lddt.double() * 100, 0.0)
    for name, values in (("predicted", x), ("true", y)):
        # NaN fails both comparisons. A hair beyond 100 is rounding.
        if not bool(((values >= -1e-3) & (values <= 100.001)).all()):
            raise ValueError(f"a {name} lDDT is not finite or out of range: predicted are 0..100, true ones 0..1")
    count = used.sum(dim=1)
    difference = (x - y).masked_fill(~used, 0.0)
    return Calibration(
        pearson=_correlation(x, y, used),
        spearman=_correlation(_ranks(x, used), _ranks(y, used), used),
        error=difference.abs().sum(dim=1) / count,
        bias=difference.sum(dim=1) / count,
        n_residues=count,
    )


def _correlation(x: Tensor, y: Tensor, used: Tensor) -> Tensor:
    count = used.sum(dim=1, keepdim=True)
    x, y = (torch.where(used, v - (v * used).sum(dim=1, keepdim=True) / count, 0.0) for v in (x, y))
    scale = x.square().sum(dim=1).sqrt() * y.square().sum(dim=1).sqrt()
    # Values that are all alike leave rounding errors instead of zero.
    flat = torch.stack([v.abs().amax(dim=1) < 1e-9 for v in (x, y)]).any(0)
    return torch.where(flat, torch.nan, (x * y).sum(dim=1) / scale)


def _ranks(values: Tensor, used: Tensor) -> Tensor:
    """`(b, n)` ranks from 1, equal values at the mean of theirs; anything where not used."""
    padded = torch.where(used, values, torch.inf)
    ordered = padded.sort(dim=1).values
    first = torch.searchsorted(ordered, padded)
    last = torch.searchsorted(ordered, padded, right=True)
    return torch.where(used, (first + last + 1).double() / 2, 0.0)

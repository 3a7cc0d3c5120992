"""Weighted least-squares superposition (Kabsch), proper rotations only.

Source: Kabsch, "A solution for the best rotation to relate two sets of vectors", Acta Cryst. A32 (1976) 922. How the
rotation is found: `rotation.py`.

Axis letters: `b` batch, `n` points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.metrics.checks import check_pair, masked
from protfold_peft.metrics.rotation import optimal_rotation


@dataclass(frozen=True, eq=False)
class Superposition:
    """Rigid motions that lay the mobile points on the targets: x -> R x + t.

    Attributes:
        rotation: `(b, 3, 3)` proper rotations R.
        translation: `(b, 3)` t in angstrom.
        rmsd: `(b,)` weighted root-mean-square distance after the motion, in angstrom; NaN for a set without points.
    """

    rotation: Tensor
    translation: Tensor
    rmsd: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """`(b, ..., 3)` points after the motion of their sample; any number of axes in between."""
        shape = points.shape
        moved = points.reshape(shape[0], -1, 3) @ self.rotation.mT.to(points.dtype)
        return (moved + self.translation.to(points.dtype)[:, None]).reshape(shape)


def superpose(mobile: Tensor, target: Tensor, weights: Tensor | None = None) -> Superposition:
    """The rigid motion of `mobile` with the least weighted mean square distance to `target`.

    Computed in float64 whatever the inputs' type, and returned in theirs. Differentiable once in all three inputs.
    Finite values and gradients always: where the rotation is not unique (fewer than three points, coincident or
    collinear ones) one of the best is returned, and its derivative in the undetermined directions is zero; the rmsd of
    a perfect fit has derivative zero. A set without weight gets the identity, and NaN for its rmsd.

    Args:
        mobile: `(b, n, 3)` or `(b, n, a, 3)` coordinates in angstrom, float32 or float64.
        target: The points they are to be laid on, of the same shape, type and device.
        weights: `(b, n)` or `(b, n, a)`, not negative; a mask will do. 0 leaves a pair of points out, whatever their
            coordinates hold. All ones by default.

    Raises:
        ValueError: The shapes do not agree, a weight is negative or not finite, or a coordinate that takes part is
            NaN or infinite (`NonFiniteCoordinatesError`).
    """
    check_pair(mobile, target, "superpose")
    weights = torch.ones(mobile.shape[:-1], device=mobile.device) if weights is None else weights
    if weights.shape != mobile.shape[:-1]:
        raise ValueError(f"the weights' shape {tuple(weights.shape)} is not {tuple(mobile.shape[:-1])}")
    weights = weights.double()
    if not bool(((weights >= 0) & weights.isfinite()).all()):
        raise ValueError("a weight is negative, NaN or infinite")
    used = weights > 0
    x = masked(mobile, used, "mobile").double().flatten(1, -2)
    y = masked(target, used, "target").double().flatten(1, -2)
    w = weights.flatten(1)
    total = w.sum(dim=1)
    empty = total == 0
    w = (w / torch.where(empty, 1.0, total)[:, None])[..., None]
    x_mean, y_mean = (w * x).sum(dim=1), (w * y).sum(dim=1)
    x, y = x - x_mean[:, None], y - y_mean[:, None]
    rotation = optimal_rotation((w * y).mT @ x)
    translation = y_mean - (rotation @ x_mean[..., None]).squeeze(-1)
    # The centred points of padding do not lie at zero, but their weight does.
    mean_square = (w[..., 0] * (x @ rotation.mT - y).square().sum(dim=-1)).sum(dim=1)
    # A root's derivative at zero is infinite: a perfect fit takes a path around it.
    perfect = mean_square == 0
    rmsd = torch.where(perfect, mean_square, torch.where(perfect, 1.0, mean_square).sqrt())
    rmsd = torch.where(empty, torch.nan, rmsd)
    return Superposition(rotation.to(mobile.dtype), translation.to(mobile.dtype), rmsd.to(mobile.dtype))

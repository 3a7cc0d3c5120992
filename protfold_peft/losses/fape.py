"""Frame-aligned point error: how far every atom is from its place, as seen from every local frame.

Source: Jumper et al., "Highly accurate protein structure prediction with AlphaFold", Nature 596 (2021) 583,
supplement 1.9.2, Algorithm 28. The backbone term hands in backbone frames and CA atoms; the side-chain term is the
same function with the frames of all rigid groups and all atoms.

Axis letters: `s` structure-module steps, `b` batch, `n` residues, `f` frames, `p` points.
"""

from __future__ import annotations

import torch

# Algorithm 28's constants, in angstrom (and angstrom squared under the root).
LENGTH_SCALE = 10.0
CLAMP = 10.0
EPSILON = 1e-4


def fape(
    predicted_rotations: torch.Tensor,
    predicted_origins: torch.Tensor,
    target_rotations: torch.Tensor,
    target_origins: torch.Tensor,
    frames_mask: torch.Tensor,
    predicted_points: torch.Tensor,
    target_points: torch.Tensor,
    points_mask: torch.Tensor,
    *,
    clamp: float | torch.Tensor | None = CLAMP,
    length_scale: float = LENGTH_SCALE,
    epsilon: float = EPSILON,
) -> torch.Tensor:
    """Algorithm 28: the mean over frames and points of `min(clamp, |T_f^-1 x_p - T'_f^-1 x'_p|) / length_scale`.

    Leading axes `...` broadcast, so targets without the step axis serve predictions that have it. Masked places must
    hold finite numbers (any will do); they receive no gradient.

    Args:
        predicted_rotations: `(..., f, 3, 3)` rotations from each frame to the global one.
        predicted_origins: `(..., f, 3)` in angstrom.
        target_rotations: `(..., f, 3, 3)`.
        target_origins: `(..., f, 3)` in angstrom.
        frames_mask: `(..., f)` true where the target's frame is known.
        predicted_points: `(..., p, 3)` in angstrom.
        target_points: `(..., p, 3)` in angstrom.
        points_mask: `(..., p)` true where the target's atom is known.
        clamp: Errors above this count as this, in angstrom; None clamps nothing. A tensor of the leading shape sets
            it per sample, infinity for none: AlphaFold clamps 90 % of the samples and leaves the others free.
        length_scale: Unit of the error, in angstrom.
        epsilon: Added under the root, which keeps the gradient finite where an atom is in its place, and to the
            count of pairs, which makes a sample without targets 0.

    Returns:
        `(...)` without unit.
    """
    predicted_local = _in_frames(predicted_rotations, predicted_origins, predicted_points)
    target_local = _in_frames(target_rotations, target_origins, target_points)
    error = ((predicted_local - target_local).square().sum(dim=-1) + epsilon).sqrt()
    if isinstance(clamp, torch.Tensor):
        error = torch.minimum(error, clamp[..., None, None].to(error))
    elif clamp is not None:
        error = error.clamp(max=clamp)
    pairs = (frames_mask[..., :, None] * points_mask[..., None, :]).to(error)
    return (error * pairs).sum(dim=(-2, -1)) / (length_scale * (epsilon + pairs.sum(dim=(-2, -1))))


def backbone_fape(
    predicted_rotations: torch.Tensor,
    predicted_ca: torch.Tensor,
    target_rotations: torch.Tensor,
    target_ca: torch.Tensor,
    mask: torch.Tensor,
    *,
    clamp: float | torch.Tensor | None = CLAMP,
) -> torch.Tensor:
    """FAPE of backbone frames on CA atoms, averaged over the steps of the structure module (supplement 1.9.2).

    Args:
        predicted_rotations: `(s, b, n, 3, 3)`, one set of frames per step.
        predicted_ca: `(s, b, n, 3)` origins of the frames, which are the CA atoms, in angstrom.
        target_rotations: `(b, n, 3, 3)` from N, CA and C of the experiment.
        target_ca: `(b, n, 3)` in angstrom.
        mask: `(b, n)` true where N, CA and C are all known; false for padding.
        clamp: As in `fape`; a tensor is `(b,)`.

    Returns:
        `(b,)`, without unit.
    """
    return fape(
        predicted_rotations,
        predicted_ca,
        target_rotations,
        target_ca,
        mask,
        predicted_ca,
        target_ca,
        mask,
        clamp=clamp,
    ).mean(dim=0)


def _in_frames(rotations: torch.Tensor, origins: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """`(..., f, p, 3)`: every point in the coordinates of every frame, `R^T (x - t)`.

    The difference is taken first: rotating `x` and `t` apart would cost float32 its digits far from the origin.
    """
    offsets = points[..., None, :, :] - origins[..., :, None, :]
    return offsets @ rotations

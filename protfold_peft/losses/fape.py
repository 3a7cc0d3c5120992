"""Frame-aligned point error: how far every atom is from its place, as seen from every local frame.

Source: Jumper et al., "Highly accurate protein structure prediction with AlphaFold", Nature 596 (2021) 583,
supplement 1.9.2, Algorithm 28. The backbone term hands in backbone frames and CA atoms; the side-chain term is the
same function with the frames of all rigid groups and all atoms.

Axis letters: `s` structure-module steps, `b` batch, `n` residues, `f` frames, `p` points.
"""

from __future__ import annotations

import torch

from protfold_peft.structure.rigid import Rigid

# Algorithm 28's constants, in angstrom (and angstrom squared under the root).
LENGTH_SCALE = 10.0
CLAMP = 10.0
EPSILON = 1e-4


def fape(
    predicted_frames: Rigid,
    target_frames: Rigid,
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
        predicted_frames: `(..., f)` from each frame to the global one, in angstrom.
        target_frames: `(..., f)`.
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
    predicted_local = points_in_frames(predicted_frames, predicted_points)
    target_local = points_in_frames(target_frames, target_points)
    error = ((predicted_local - target_local).square().sum(dim=-1) + epsilon).sqrt()
    if isinstance(clamp, torch.Tensor):
        error = torch.minimum(error, clamp[..., None, None].to(error))
    elif clamp is not None:
        error = error.clamp(max=clamp)
    pairs = (frames_mask[..., :, None] * points_mask[..., None, :]).to(error)
    return (error * pairs).sum(dim=(-2, -1)) / (length_scale * (epsilon + pairs.sum(dim=(-2, -1))))


def backbone_fape(
    predicted: Rigid,
    target: Rigid,
    mask: torch.Tensor,
    *,
    clamp: float | torch.Tensor | None = CLAMP,
) -> torch.Tensor:
    """FAPE of backbone frames on CA atoms, averaged over the steps of the structure module (supplement 1.9.2).

    Args:
        predicted: `(s, b, n)` backbone frames, one set per step; their origins are the CA atoms, in angstrom.
        target: `(b, n)` frames from N, CA and C of the experiment.
        mask: `(b, n)` true where N, CA and C are all known; false for padding.
        clamp: As in `fape`; a tensor is `(b,)`.

    Returns:
        `(b,)`, without unit.
    """
    per_step = fape(predicted, target, mask, predicted.translation, target.translation, mask, clamp=clamp)
    return per_step.mean(dim=0)


def points_in_frames(frames: Rigid, points: torch.Tensor) -> torch.Tensor:
    """`(..., f, p, 3)`: every point `(..., p, 3)` in the coordinates of every frame `(..., f)`, `R^T (x - t)`.

    The difference is taken first: rotating `x` and `t` apart would cost float32 its digits far from the origin. One
    product per frame, where `Rigid.invert_apply` would copy the rotation for every point.
    """
    offsets = points[..., None, :, :] - frames.translation[..., :, None, :]
    return offsets @ frames.rotation

"""Supervised torsions: chi angles against the experiment's, and the length of the pairs they are read from.

Source: Jumper et al., Nature 596 (2021) 583, supplement 1.9.1, Algorithm 27, with what AlphaFold's code does: chi
angles only (the backbone's torsions follow from its frames), and a mean over the angles that are known.

Axis letters: `s` structure-module steps, `b` batch, `n` residues, 7 torsions (omega, phi, psi, chi1..chi4).
"""

from __future__ import annotations

import torch

from protfold_peft.structure.geometry import Torsions

# Weights of the two terms in AlphaFold's sum.
CHI_WEIGHT = 0.5
NORM_WEIGHT = 0.01
# AlphaFold's guards: under the root of a length, of a square that is divided by, and of a count.
LENGTH_EPSILON = 1e-6
SQUARE_EPSILON = 1e-12
COUNT_EPSILON = 1e-10
_FIRST_CHI = 3


def chi_loss(angles: torch.Tensor, target: Torsions) -> torch.Tensor:
    """Squared distance on the unit circle between chi angles; half a turn is forgiven where the residue cannot tell.

    Args:
        angles: `(s, b, n, 7, 2)` sines and cosines of any length, finite; they are brought to length 1 here.
        target: Of the experiment, `(b, n, ...)` (`structure.geometry.torsions`); its mask is false for padding.

    Returns:
        `(b,)`, 0..4: the mean over known chi angles and steps; 0 for a sample without any.
    """
    length = angles.square().sum(dim=-1, keepdim=True).clamp_min(SQUARE_EPSILON).sqrt()
    chi = (angles / length)[..., _FIRST_CHI:, :]
    errors = [
        (chi - truth[..., _FIRST_CHI:, :].to(chi)).square().sum(dim=-1)
        for truth in (target.sin_cos, target.alternative)
    ]
    return _mean(torch.minimum(*errors), target.mask[..., _FIRST_CHI:])


def angle_norm_loss(angles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How far the pairs the angles are read from are from length 1.

    Args:
        angles: `(s, b, n, 7, 2)` as the model gives them, not normalised.
        mask: `(b, n)` true for residues of the sequence, whether or not the experiment saw them; false for padding.

    Returns:
        `(b,)`: the mean of `| |angle| - 1 |` over steps, residues and all seven torsions.
    """
    length = (angles.square().sum(dim=-1) + LENGTH_EPSILON).sqrt()
    return _mean((length - 1).abs(), mask[..., None].expand(*mask.shape, angles.shape[-2]))


def torsion_loss(angles: torch.Tensor, target: Torsions, mask: torch.Tensor) -> torch.Tensor:
    """`(b,)` `0.5 * chi_loss + 0.01 * angle_norm_loss`, AlphaFold's supervised chi loss; arguments as there."""
    return CHI_WEIGHT * chi_loss(angles, target) + NORM_WEIGHT * angle_norm_loss(angles, mask)


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`(b,)` mean of `(s, b, n, k)` over steps and the places `(b, n, k)` where the mask is true."""
    weights = mask.to(values)
    total = (values * weights).sum(dim=(0, -2, -1))
    return total / (values.shape[0] * weights.sum(dim=(-2, -1)) + COUNT_EPSILON)

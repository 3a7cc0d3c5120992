"""Smooth lDDT: lDDT with soft thresholds, so that it has a gradient. Blind to handedness, as lDDT is.

Source: Abramson et al., "Accurate structure prediction of biomolecular interactions with AlphaFold 3", Nature 630
(2024) 493, supplement, Algorithm 27, for proteins (15 A).

Axis letters: `b` batch, `m` atoms in one row.
"""

from __future__ import annotations

import torch

CUTOFF = 15.0
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
# Under the root of a distance: keeps the gradient finite where two atoms coincide.
EPSILON = 1e-10


def smooth_lddt_loss(
    predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, *, cutoff: float = CUTOFF
) -> torch.Tensor:
    """One less the soft lDDT of all pairs of atoms, those of one residue included as AlphaFold 3 does.

    A perfect prediction scores 0.204, not 0: the soft step is 0.62 for no error at the threshold of 0.5 A.

    Args:
        predicted: `(b, m, 3)` in angstrom, finite; all heavy atoms in one row, or the CA atoms.
        target: `(b, m, 3)` of the experiment in angstrom, finite everywhere.
        mask: `(b, m)` true where the experiment has the atom; false for padding.
        cutoff: Pairs nearer than this in the experiment count, in angstrom.

    Returns:
        `(b,)`, 0..1: the mean over pairs; 0 for a sample without any.
    """
    mask = mask.bool()
    with torch.no_grad():
        true = _distances(target)
        other = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        pairs = ((true < cutoff) & other & mask[:, :, None] & mask[:, None, :]).to(predicted)
    difference = (true - _distances(predicted)).abs()
    lost = sum(torch.sigmoid(difference - threshold) for threshold in THRESHOLDS) / len(THRESHOLDS)
    # 1 - sigmoid(t - x) is sigmoid(x - t): the loss itself is averaged, which is 0 without pairs.
    return (lost * pairs).sum(dim=(-2, -1)) / pairs.sum(dim=(-2, -1)).clamp_min(1)


def _distances(points: torch.Tensor) -> torch.Tensor:
    """`(b, m, m)`."""
    squared = (points[:, :, None] - points[:, None, :]).square().sum(dim=-1)
    return (squared + EPSILON).sqrt()

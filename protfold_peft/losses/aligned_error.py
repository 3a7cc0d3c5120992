"""The loss of the head for PAE and predicted TM: which bin the error of every residue, seen from every other, falls in.

Source: Jumper et al., Nature 596 (2021) 583, supplement 1.9.7; 64 bins with edges from 0 to 31 angstrom,
so the last bin's centre is 31.75.

Axis letters: `b` batch, `n` residues, `k` bins.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from protfold_peft.losses.fape import points_in_frames
from protfold_peft.structure.rigid import Rigid

LAST_EDGE = 31.0
# AlphaFold's guard against a sample without pairs.
COUNT_EPSILON = 1e-8


def aligned_error_loss(logits: torch.Tensor, predicted: Rigid, target: Rigid, mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the head's bins with the aligned errors of the prediction. Only the head gets a gradient.

    Args:
        logits: `(b, n, n, k)`; row: the residue aligned on, column: the residue whose CA is off. The first bin takes
            errors of exactly 0, the second those up to `31 / (k - 2)` angstrom, the last all above 31.
        predicted: `(b, n)` backbone frames; their origins are the CA atoms, in angstrom.
        target: `(b, n)` frames from N, CA and C of the experiment.
        mask: `(b, n)` true where N, CA and C are all known; false for padding.

    Returns:
        `(b,)` in nats: the mean over ordered pairs of known residues, a residue with itself included as AlphaFold
        does; 0 for a sample without any.
    """
    with torch.no_grad():
        seen, true = (points_in_frames(frames, frames.translation) for frames in (predicted, target))
        squared = (seen - true).square().sum(dim=-1)
        edges = torch.linspace(0, LAST_EDGE, logits.shape[-1] - 1, dtype=squared.dtype, device=squared.device)
        bins = torch.bucketize(squared, edges.square())
    surprise = functional.cross_entropy(logits.movedim(-1, 1), bins, reduction="none")
    pairs = (mask[:, :, None] * mask[:, None, :]).to(surprise)
    return (surprise * pairs).sum(dim=(-2, -1)) / (COUNT_EPSILON + pairs.sum(dim=(-2, -1)))

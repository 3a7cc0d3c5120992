"""The distogram loss: which bin the distance of every pair of residues falls into.

Source: Jumper et al., Nature 596 (2021) 583, supplement 1.9.8; 64 bins, edges from 2.3125 to 21.6875 angstrom.

Axis letters: `b` batch, `n` residues, `k` bins.
"""

from __future__ import annotations

import torch
from torch.nn import functional

FIRST_EDGE = 2.3125
LAST_EDGE = 21.6875


def distogram_loss(logits: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the distances between representative atoms (CB; a virtual one for glycine).

    Args:
        logits: `(b, n, n, k)`, symmetric in the residues. The first bin takes every distance below 2.3125 angstrom
            and the last every one above 21.6875; those between are equally wide.
        positions: `(b, n, 3)` of the experiment in angstrom, finite everywhere.
        mask: `(b, n)` true where the position is known; false for padding.

    Returns:
        `(b,)` in nats: the mean over ordered pairs of known residues, a residue with itself included as AlphaFold
        does; 0 for a sample without any.
    """
    edges = torch.linspace(
        FIRST_EDGE, LAST_EDGE, logits.shape[-1] - 1, dtype=positions.dtype, device=positions.device
    ).square()
    squared = (positions[:, :, None] - positions[:, None, :]).square().sum(dim=-1)
    # The bin is the number of edges below the distance: one that sits on an edge belongs to the bin under it.
    bins = torch.bucketize(squared, edges)
    surprise = functional.cross_entropy(logits.movedim(-1, 1), bins, reduction="none")
    pairs = (mask[:, :, None] * mask[:, None, :]).to(surprise)
    # 1e-6 is AlphaFold's guard against a sample without pairs.
    return (surprise * pairs).sum(dim=(-2, -1)) / (1e-6 + pairs.sum(dim=(-2, -1)))

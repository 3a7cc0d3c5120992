"""The loss of the pLDDT head: which bin the true lDDT of every atom falls into.

AlphaFold 2's head speaks of residues, and its target is the lDDT of CA atoms. ESMFold's head speaks of all 37 atoms.
What an atom's target was there is not published, so it is defined here as AlphaFold 3 does for its head per atom: of
the distances from this atom to the CA atoms of other residues, below 15 A in the experiment, the share that the model
keeps within 0.5, 1, 2 and 4 A. For the CA atoms themselves this is AlphaFold 2's target exactly, so the number users
read (the pLDDT of CA) means what it always meant. Symmetric atoms should be renamed first (`renaming`).

An atom without any such distance (a chain of one residue, a lone fragment) has no lDDT and takes no part; AlphaFold's
code would call it perfect.

Sources: Jumper et al., Nature 596 (2021) 583, supplement 1.9.6, Algorithm 29; Abramson et al., Nature 630 (2024) 493,
supplement 4.3.1.

Axis letters: `b` batch, `n` residues, `a` atoms per residue, `k` bins.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from protfold_peft.structure.residues import ATOM_INDEX

CUTOFF = 15.0
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
# AlphaFold's guards: under the root of a distance, and of a count.
DISTANCE_EPSILON = 1e-10
COUNT_EPSILON = 1e-8


def plddt_loss(
    logits: torch.Tensor,
    predicted: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    *,
    representative: int = ATOM_INDEX["CA"],
) -> torch.Tensor:
    """Cross-entropy of the head's bins with the lDDT that the prediction reached. Only the head gets a gradient.

    Args:
        logits: `(b, n, a, k)` over equal bins of lDDT 0..1: ESMFold's last step with the 37 atoms; or the CA atoms
            alone, `a` = 1, for AlphaFold's loss.
        predicted: `(b, n, a, 3)` in angstrom, finite.
        target: `(b, n, a, 3)` of the experiment in angstrom, finite everywhere.
        mask: `(b, n, a)` true where the experiment has the atom (and the model places it); false for padding.
        representative: Place among the `a` atoms of the one that distances go to: CA; 0 where it is the only one.

    Returns:
        `(b,)` in nats: the mean over atoms that have an lDDT; 0 for a sample without any.
    """
    kept, judged = kept_distances(predicted, target, mask, representative=representative)
    n_bins = logits.shape[-1]
    # In whole numbers: an lDDT on the edge of a bin belongs to the bin above, in every precision.
    bins = (n_bins * kept // (len(THRESHOLDS) * judged).clamp_min(1)).clamp_max(n_bins - 1)
    surprise = functional.cross_entropy(logits.movedim(-1, 1), bins, reduction="none")
    counted = (judged > 0).to(surprise)
    return (surprise * counted).sum(dim=(-2, -1)) / (COUNT_EPSILON + counted.sum(dim=(-2, -1)))


@torch.no_grad()
def kept_distances(
    predicted: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    *,
    representative: int = ATOM_INDEX["CA"],
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the lDDT of every atom is made of: `kept / (4 * judged)`.

    Args:
        predicted: `(b, n, a, 3)` in angstrom.
        target: `(b, n, a, 3)`.
        mask: `(b, n, a)`.
        representative: As in `plddt_loss`.

    Returns:
        `(b, n, a)` int64 distances kept, summed over the four thresholds, and int64 distances judged; 0 where masked.
    """
    mask = mask.bool()
    n = mask.shape[1]
    true, modelled = (_distances(points, points[:, :, representative]) for points in (target, predicted))
    other = ~torch.eye(n, dtype=torch.bool, device=mask.device)[:, None, :]
    counted = mask[..., None] & mask[:, None, None, :, representative] & other & (true < CUTOFF)
    difference = (true - modelled).abs_()
    kept = torch.zeros_like(mask, dtype=torch.int64)
    for threshold in THRESHOLDS:
        kept += (counted & (difference < threshold)).sum(dim=-1)
    return kept, counted.sum(dim=-1)


def _distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """`(b, n, a, n)` from `(b, n, a, 3)` points to `(b, n, 3)` centres."""
    squared = (points[..., None, :] - centres[:, None, None, :, :]).square().sum(dim=-1)
    return (squared + DISTANCE_EPSILON).sqrt()

"""Terms that hold an adapted model near its base, against forgetting what it is not trained on.

For predictions of structure there are two more that need nothing new: `backbone_fape` with the base model's frames as
the target (which sees handedness), and the distances below (which need no frames).

Source: Li & Hoiem, "Learning without forgetting", IEEE TPAMI 40 (2018) 2935: outputs of the old model as targets.

Axis letters: `b` batch, `...` any axes of places (residues, pairs), `k` classes, `n` residues.
"""

from __future__ import annotations

import torch
from torch.nn import functional

# Changes above this count as this: beyond it how far apart two folds are says nothing.
CLAMP = 10.0
EPSILON = 1e-4


def divergence_from_base(logits: torch.Tensor, base_logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the adapted head's classes from the base model's, `KL(base || adapted)`.

    Args:
        logits: `(b, ..., k)` of the adapted model: distogram, PAE, pLDDT or words of the language model. Finite.
        base_logits: `(b, ..., k)` of the base model; it gets no gradient.
        mask: `(b, ...)` true for places that count; false for padding.

    Returns:
        `(b,)` in nats, 0 or more: the mean over places that count; 0 for a sample without any.
    """
    base = base_logits.detach().log_softmax(dim=-1)
    divergence = functional.kl_div(logits.log_softmax(dim=-1), base, reduction="none", log_target=True).sum(dim=-1)
    weights = mask.to(divergence)
    return _mean(divergence.flatten(1), weights.flatten(1))


def distance_from_base(
    positions: torch.Tensor, base_positions: torch.Tensor, mask: torch.Tensor, *, clamp: float = CLAMP
) -> torch.Tensor:
    """How much the distances within the structure change from the base model's prediction to the adapted one's.

    Args:
        positions: `(b, n, 3)` CA atoms of the adapted model in angstrom, finite.
        base_positions: `(b, n, 3)` of the base model; it gets no gradient.
        mask: `(b, n)` true for residues that count, such as those the base model is sure of; false for padding.
        clamp: Changes above this count as this, in angstrom.

    Returns:
        `(b,)` in angstrom: the mean over pairs of different residues of the change of their distance; 0 for a sample
        without any. Up to 0.01 A is left where nothing changes, which keeps the gradient finite.
    """
    change = _distances(positions) - _distances(base_positions.detach())
    size = (change.square() + EPSILON).sqrt().clamp(max=clamp)
    pairs = mask.bool()[:, :, None] & mask.bool()[:, None, :]
    pairs = pairs & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return _mean(size.flatten(1), pairs.to(size).flatten(1))


def _distances(points: torch.Tensor) -> torch.Tensor:
    """`(b, n, n)`."""
    return ((points[:, :, None] - points[:, None, :]).square().sum(dim=-1) + EPSILON).sqrt()


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`(b,)` weighted mean of `(b, m)`; 0 without weight."""
    return (values * weights).sum(dim=-1) / weights.sum(dim=-1).clamp_min(1)

"""The training loss: a weighted sum of named terms, every one of them kept for the log.

Source of the weights and of the scaling by length: Jumper et al., Nature 596 (2021) 583, supplement 1.9, equation 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class TotalLoss:
    """A loss and what it is made of.

    Attributes:
        total: Scalar to differentiate.
        terms: Every term's mean over the batch, unweighted and unscaled, detached: one scalar tensor per name.
    """

    total: torch.Tensor
    terms: Mapping[str, torch.Tensor]


def total_loss(
    terms: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    lengths: torch.Tensor | None = None,
) -> TotalLoss:
    """The mean over the batch of `sqrt(length) * sum of weight * term`.

    The root of the length lets long samples weigh more, as AlphaFold has it; without `lengths` all weigh the same. A
    term of weight 0 is logged but takes no part, so a NaN in it does no harm.

    Args:
        terms: Name -> `(b,)` loss per sample.
        weights: Name -> weight; a term that is not named here has weight 0.
        lengths: `(b,)` residues of every sample after cropping.

    Raises:
        ValueError: A weight has no term, or no weight is above 0.
    """
    missing = [name for name in weights if weights[name] and name not in terms]
    if missing:
        raise ValueError(f"no loss term is called {', '.join(map(repr, missing))}; there are {', '.join(terms)}")
    used = [weights[name] * terms[name] for name in terms if weights.get(name, 0.0)]
    if not used:
        raise ValueError(f"every loss weight is 0: give at least one of {', '.join(terms)} a weight")
    per_sample = torch.stack(used).sum(dim=0)
    if lengths is not None:
        per_sample = per_sample * lengths.to(per_sample).sqrt()
    return TotalLoss(
        total=per_sample.mean(),
        terms={name: term.detach().mean() for name, term in terms.items()},
    )

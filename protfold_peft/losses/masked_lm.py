"""Masked language modelling: some residues are hidden, and the language model is asked which they were.

15 % of the residues are chosen; of these 80 % become the mask, 10 % a random residue, 10 % stay.

Source: Devlin et al., "BERT", NAACL 2019, section 3.1, whose scheme the ESM models were trained with (Rives et al.,
PNAS 118 (2021) e2016239118; Lin et al., Science 379 (2023) 1123).

Axis letters: `b` batch, `t` tokens, `v` words of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

FRACTION = 0.15
MASKED_SHARE = 0.8
RANDOM_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class MaskedTokens:
    """What the language model reads, and where it is asked.

    Attributes:
        tokens: `(b, t)` with the chosen ones hidden.
        chosen: `(b, t)` bool, the tokens to predict.
    """

    tokens: torch.Tensor
    chosen: torch.Tensor


def mask_tokens(
    tokens: torch.Tensor,
    candidates: torch.Tensor,
    mask_token: int,
    replacements: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
    fraction: float = FRACTION,
) -> MaskedTokens:
    """Hide a fraction of the candidates, at least one of every sequence that has any.

    The random numbers are drawn on the CPU, so a seed hides the same residues on every device.

    Args:
        tokens: `(b, t)` int64.
        candidates: `(b, t)` true for residues; false for padding, start, end and linkers, which are never chosen.
        mask_token: The word that stands for a hidden residue.
        replacements: `(w,)` int64 words of which the random residues are drawn: the twenty amino acids.
        generator: On the CPU; the global one by default.
        fraction: Share of the candidates to choose: `round(fraction * candidates)` of each sequence.

    Raises:
        ValueError: The fraction is not in 0..1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of residues to mask is {fraction}; it must be above 0 and at most 1")
    candidates = candidates.bool().cpu()
    order, kind = (torch.rand(tokens.shape, generator=generator) for _ in range(2))
    pick = torch.randint(len(replacements), tokens.shape, generator=generator)
    # Candidates come first in a random order; the first few of them are chosen.
    rank = order.masked_fill(~candidates, torch.inf).argsort(dim=-1).argsort(dim=-1)
    n_candidates = candidates.sum(dim=-1, keepdim=True)
    n_chosen = (fraction * n_candidates).round().clamp_min(1)
    chosen = candidates & (rank < n_chosen)
    hidden = chosen & (kind < MASKED_SHARE)
    replaced = chosen & (kind >= MASKED_SHARE) & (kind < MASKED_SHARE + RANDOM_SHARE)
    chosen, hidden, replaced, pick = (x.to(tokens.device) for x in (chosen, hidden, replaced, pick))
    shown = torch.where(replaced, replacements.to(tokens)[pick], tokens.masked_fill(hidden, mask_token))
    return MaskedTokens(shown, chosen)


def masked_lm_loss(logits: torch.Tensor, tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the chosen tokens.

    Args:
        logits: `(b, t, v)`.
        tokens: `(b, t)` int64, what was there before hiding.
        chosen: `(b, t)` true for the tokens to predict.

    Returns:
        `(b,)` in nats: the mean over the chosen tokens, whose exponential is the perplexity; 0 for a sample without
        any.
    """
    surprise = functional.cross_entropy(logits.movedim(-1, 1), tokens, reduction="none")
    chosen = chosen.bool()
    # Selected, not multiplied: a word that the model cannot give at a token that is not asked for costs infinity.
    return torch.where(chosen, surprise, 0.0).sum(dim=-1) / chosen.sum(dim=-1).clamp_min(1)

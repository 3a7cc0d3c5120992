"""Masked language modelling against transformers' own loss, exact counts and shares."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import EsmConfig, EsmForMaskedLM

from protfold_peft.losses import mask_tokens, masked_lm_loss

MASK, PAD = 32, 1
RESIDUES = torch.arange(4, 24)


def sequences(*lengths: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `(b, t)` of random residues, padded, and which are residues."""
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    tokens = torch.randint(4, 24, candidates.shape, generator=generator)
    return tokens.masked_fill(~candidates, PAD), candidates


def test_equals_transformers() -> None:
    """Per sample, the loss that `EsmForMaskedLM` computes from labels of -100 where nothing is asked."""
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        mask_token_id=MASK, pad_token_id=PAD, position_embedding_type="rotary", token_dropout=True,
    )  # fmt: skip
    model = EsmForMaskedLM(config).eval()
    tokens, candidates = sequences(30, 11)
    masked = mask_tokens(tokens, candidates, MASK, RESIDUES, generator=torch.Generator().manual_seed(1))
    output = model(masked.tokens, attention_mask=candidates.long())
    value = masked_lm_loss(output.logits, tokens, masked.chosen)
    for sample in range(2):
        labels = tokens.masked_fill(~masked.chosen, -100)[sample : sample + 1]
        theirs = model(
            masked.tokens[sample : sample + 1], attention_mask=candidates[sample : sample + 1], labels=labels
        )
        torch.testing.assert_close(value[sample], theirs.loss)


@pytest.mark.parametrize(("length", "fraction", "chosen"), [(100, 0.15, 15), (10, 0.15, 2), (1, 0.15, 1), (7, 1.0, 7)])
def test_exact_counts(length: int, fraction: float, chosen: int) -> None:
    tokens, candidates = sequences(length, 120)
    masked = mask_tokens(tokens, candidates, MASK, RESIDUES, fraction=fraction)
    assert masked.chosen[0].sum().item() == chosen
    assert not (masked.chosen & ~candidates).any()
    assert torch.equal(masked.tokens[~masked.chosen], tokens[~masked.chosen])


def test_shares_of_mask_random_and_kept() -> None:
    """Of 20,000 chosen tokens; five deviations of a binomial are 1.4 % at most."""
    tokens, candidates = sequences(20_000)
    masked = mask_tokens(tokens, candidates, MASK, RESIDUES, generator=torch.Generator().manual_seed(2), fraction=1.0)
    assert (masked.tokens == MASK).float().mean().item() == pytest.approx(0.8, abs=0.015)
    # One in twenty random residues is the one that was there.
    changed = (masked.tokens != MASK) & (masked.tokens != tokens)
    assert changed.float().mean().item() == pytest.approx(0.095, abs=0.015)
    assert set(masked.tokens.unique().tolist()) == {*RESIDUES.tolist(), MASK}


def test_seeded() -> None:
    tokens, candidates = sequences(50, 80)
    first, again, other = (
        mask_tokens(tokens, candidates, MASK, RESIDUES, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.chosen, again.chosen)
    assert not torch.equal(first.chosen, other.chosen)


def test_nothing_to_choose() -> None:
    tokens, _ = sequences(5)
    masked = mask_tokens(tokens, torch.zeros(1, 5, dtype=torch.bool), MASK, RESIDUES)
    assert not masked.chosen.any()
    logits = torch.randn(1, 5, 33, requires_grad=True)
    value = masked_lm_loss(logits, tokens, masked.chosen)
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()
    with pytest.raises(ValueError, match=r"fraction of residues to mask is 1\.5"):
        mask_tokens(tokens, tokens > 0, MASK, RESIDUES, fraction=1.5)


def test_loss_of_uniform_logits_and_of_words_that_cannot_be() -> None:
    tokens, candidates = sequences(6, 4)
    assert masked_lm_loss(torch.zeros(2, 6, 33), tokens, candidates).tolist() == pytest.approx([math.log(33)] * 2)
    logits = torch.zeros(2, 6, 33)
    logits[:, :, PAD] = -torch.inf
    assert masked_lm_loss(logits, tokens, candidates).tolist() == pytest.approx([math.log(32)] * 2)


def test_gradient_equals_finite_differences() -> None:
    tokens, candidates = sequences(4, 2)
    logits = torch.randn(2, 4, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: masked_lm_loss(x, tokens, candidates), (logits,))

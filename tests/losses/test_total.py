"""The weighted sum of loss terms, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from protfold_peft.losses import total_loss

TERMS = {"fape": torch.tensor([1.0, 2.0]), "distogram": torch.tensor([10.0, 30.0])}


def test_weighted_sum_and_the_mean_of_every_term() -> None:
    result = total_loss(TERMS, {"fape": 0.5, "distogram": 0.3})
    assert result.total.item() == pytest.approx(((0.5 + 3) + (1 + 9)) / 2)
    assert {name: value.item() for name, value in result.terms.items()} == {"fape": 1.5, "distogram": 20.0}


def test_scaled_by_the_root_of_the_length() -> None:
    result = total_loss(TERMS, {"fape": 1.0}, lengths=torch.tensor([16, 64]))
    assert result.total.item() == pytest.approx((4 * 1 + 8 * 2) / 2)
    assert result.terms["fape"].item() == 1.5  # the log stays comparable between lengths


def test_a_term_without_weight_is_logged_only() -> None:
    fape = torch.tensor([1.0, 2.0], requires_grad=True)
    result = total_loss({"fape": fape, "other": torch.tensor([math.nan, 1.0])}, {"fape": 1.0, "other": 0.0})
    result.total.backward()
    assert result.total.item() == 1.5
    assert fape.grad.tolist() == [0.5, 0.5]
    assert result.terms["other"].isnan()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="no loss term is called 'fap'; there are fape, distogram"):
        total_loss(TERMS, {"fap": 1.0})
    with pytest.raises(ValueError, match="every loss weight is 0"):
        total_loss(TERMS, {"fape": 0.0})

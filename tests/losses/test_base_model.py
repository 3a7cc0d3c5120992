"""Terms that hold a model near its base: against torch's distributions, finite differences and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from protfold_peft.losses import distance_from_base, divergence_from_base


def random_pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(2))


def test_divergence_equals_torch_distributions() -> None:
    adapted, base = random_pair(2, 4, 4, 9)
    mask = torch.ones(2, 4, 4)
    mask[1, 2:] = 0
    each = kl_divergence(Categorical(logits=base), Categorical(logits=adapted))
    expected = torch.stack([each[0].mean(), each[1, :2].mean()])
    torch.testing.assert_close(divergence_from_base(adapted, base, mask), expected)


def test_no_divergence_of_a_model_from_itself() -> None:
    logits, _ = random_pair(1, 5, 7)
    logits.requires_grad_()
    value = divergence_from_base(logits + 3.0, logits, torch.ones(1, 5))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert logits.grad.abs().max().item() < 1e-12


def test_distances_by_hand() -> None:
    """Three residues in a row; the last one moves 2 A out and its distances grow by that; then 50 A, clamped at 10."""
    base = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [8, 0, 0]]], dtype=torch.float64)
    for shift, counted in ((2.0, 2.0), (50.0, 10.0)):
        moved = base.clone()
        moved[0, 2, 0] += shift
        value = distance_from_base(moved, base, torch.ones(1, 3))
        assert value.item() == pytest.approx((2 * counted + math.sqrt(1e-4)) / 3, rel=1e-4)
    turned = base[..., [1, 2, 0]] + 100
    assert distance_from_base(turned, base, torch.ones(1, 3)).item() == pytest.approx(0.01, rel=1e-9)


def test_padding_takes_no_part() -> None:
    adapted, base = random_pair(1, 6, 3)
    mask = torch.tensor([[True, True, False, True, False, True]])
    keep = mask[0]
    adapted.requires_grad_()
    for loss in (divergence_from_base, distance_from_base):
        value = loss(adapted, base.masked_fill(~mask[..., None], 999.0), mask)
        torch.testing.assert_close(value, loss(adapted[:, keep], base[:, keep], mask[:, keep]))
        (gradient,) = torch.autograd.grad(value.sum(), adapted)
        assert (gradient[:, ~keep] == 0).all()
        assert (gradient[:, keep] != 0).any()


@pytest.mark.parametrize("loss", [divergence_from_base, distance_from_base])
def test_gradient_reaches_the_adapted_model_alone_and_equals_finite_differences(loss) -> None:
    adapted, base = random_pair(2, 4, 3, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert torch.autograd.gradcheck(lambda x: loss(x, base, mask), (adapted.requires_grad_(),))
    base.requires_grad_()
    loss(adapted, base, mask).sum().backward()
    assert base.grad is None


@pytest.mark.parametrize("loss", [divergence_from_base, distance_from_base])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("known", [True, False])
def test_finite_where_atoms_coincide(loss, dtype: torch.dtype, length: int, known: bool) -> None:
    points = torch.zeros(1, length, 3, dtype=dtype, requires_grad=True)
    value = loss(points, torch.zeros(1, length, 3, dtype=dtype), torch.full((1, length), known))
    value.backward()
    assert 0 <= value.item() <= 0.011
    assert points.grad.isfinite().all()

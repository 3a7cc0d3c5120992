"""The distogram loss against DeepMind's values, finite differences, and cases with a closed form."""

from __future__ import annotations

import math

import pytest
import torch

from protfold_peft.losses import distogram_loss

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_deepmind(stored_losses, dtype: torch.dtype) -> None:
    for stored in (s for s in stored_losses("distogram_loss") if "in_pair_logits_f16" in s.arrays):
        value = distogram_loss(
            stored("in_pair_logits_f16", dtype),
            stored("out_gt_pseudo_beta", dtype),
            stored("out_gt_pseudo_beta_mask", dtype),
        )
        assert value.item() == pytest.approx(stored.values["distogram_loss"], rel=TOLERANCE[dtype]), stored.name


@pytest.mark.parametrize(
    ("distance", "place"),
    [(0.1, 0), (2.31, 0), (2.32, 1), (2.3125 + 0.3125 * 9.5, 10), (21.68, 62), (21.69, 63), (300.0, 63)],
)
def test_bins(distance: float, place: int) -> None:
    """A head that is certain of the right bins loses nothing; the diagonal belongs to the first bin."""
    positions = torch.tensor([[[0.0, 0, 0], [0, distance, 0]]], dtype=torch.float64)
    right = torch.zeros(1, 2, 2, 64, dtype=torch.float64)
    right[0, [0, 1], [0, 1], 0] = 50.0
    right[0, [0, 1], [1, 0], place] = 50.0
    assert distogram_loss(right, positions, torch.ones(1, 2)).item() == pytest.approx(0.0, abs=1e-12)


def test_uniform_logits_cost_the_log_of_the_bins() -> None:
    positions = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 8
    value = distogram_loss(torch.zeros(2, 5, 5, 64, dtype=torch.float64), positions, torch.ones(2, 5))
    assert value.tolist() == pytest.approx([math.log(64)] * 2, rel=1e-6)


def test_padding_takes_no_part() -> None:
    generator = torch.Generator().manual_seed(1)
    positions = torch.randn(1, 6, 3, dtype=torch.float64, generator=generator) * 8
    logits = torch.randn(1, 6, 6, 64, dtype=torch.float64, generator=generator).requires_grad_()
    mask = torch.tensor([[True, True, False, True, False, False]])
    keep = mask[0].nonzero()[:, 0]
    value = distogram_loss(logits, positions.masked_fill(~mask[..., None], 999.0), mask)
    alone = distogram_loss(logits[:, keep][:, :, keep], positions[:, keep], torch.ones(1, len(keep)))
    torch.testing.assert_close(value, alone, rtol=1e-6, atol=0)  # the guard 1e-6 is the same in both
    value.backward()
    assert (logits.grad[:, ~mask[0]] == 0).all()
    assert (logits.grad[:, :, ~mask[0]] == 0).all()


def test_gradient_equals_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    positions = torch.randn(1, 3, 3, dtype=torch.float64, generator=generator) * 8
    logits = torch.randn(1, 3, 3, 64, dtype=torch.float64, generator=generator, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    assert torch.autograd.gradcheck(lambda x: distogram_loss(x, positions, mask), (logits,))


@pytest.mark.parametrize("known", [True, False])
def test_one_residue_and_coincident_atoms(known: bool) -> None:
    for length in (1, 4):
        logits = torch.zeros(1, length, length, 64, requires_grad=True)
        value = distogram_loss(logits, torch.zeros(1, length, 3), torch.full((1, length), known))
        value.backward()
        assert value.item() == pytest.approx(math.log(64) if known else 0.0, rel=1e-5)
        assert logits.grad.isfinite().all()

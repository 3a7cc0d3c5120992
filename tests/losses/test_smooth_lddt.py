"""Smooth lDDT against two published programs, finite differences, and cases with a closed form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from built_chains import ALL_TWENTY, build_chain

from protfold_peft.losses import smooth_lddt_loss

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}


def soft_steps(error: float) -> float:
    return sum(1 / (1 + math.exp(error - threshold)) for threshold in (0.5, 1, 2, 4)) / 4


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_boltz_and_openfold3(test_data: Path, dtype: torch.dtype) -> None:
    folder = test_data / "metrics" / "losses"
    for name, values in json.loads((folder / "smooth_lddt.json").read_text()).items():
        arrays = np.load(folder / f"{name}.npz")
        both = torch.tensor((arrays["in_gt_atom37_mask"] * arrays["in_pred_atom37_mask"]).astype(bool))
        predicted, target = (
            torch.tensor(arrays[key])[both].to(dtype)[None] for key in ("in_pred_atom37", "in_gt_atom37")
        )
        assert int(both.sum()) == values["n_atoms"]
        value = smooth_lddt_loss(predicted, target, torch.ones(1, predicted.shape[1]))
        for program in ("smooth_lddt_boltz_2.2.1", "smooth_lddt_openfold3_0.5.0"):
            assert value.item() == pytest.approx(values[program], rel=TOLERANCE[dtype]), (name, program)


def test_three_atoms_by_hand() -> None:
    """Distances 3, 20 (not judged) and 17 (not judged): one pair, off by 1.25."""
    target = torch.tensor([[[0.0, 0, 0], [3, 0, 0], [20, 0, 0]]], dtype=torch.float64)
    predicted = target.clone()
    predicted[0, 1, 0] += 1.25
    predicted[0, 2, 1] += 50
    value = smooth_lddt_loss(predicted, target, torch.ones(1, 3))
    assert value.item() == pytest.approx(1 - soft_steps(1.25), rel=1e-9)


def test_a_moved_or_mirrored_copy_is_as_good_as_it_gets() -> None:
    points = build_chain(ALL_TWENTY, 0).atom37[build_chain(ALL_TWENTY, 0).mask][None]
    for copy in (points, points + 30, points * torch.tensor([1.0, 1.0, -1.0])):
        value = smooth_lddt_loss(copy, points, torch.ones(points.shape[:2]))
        assert value.item() == pytest.approx(1 - soft_steps(0), rel=1e-9)


def test_padding_and_missing_atoms_take_no_part() -> None:
    model, truth = build_chain(ALL_TWENTY, 1), build_chain(ALL_TWENTY, 2).without(6)
    padded_model, padded_truth = model.padded(2), truth.padded(2)
    predicted = padded_model.atom37.flatten(1, 2).requires_grad_()
    mask = padded_truth.mask.flatten(1)
    value = smooth_lddt_loss(predicted, padded_truth.atom37.flatten(1, 2), mask)
    known = truth.mask
    alone = smooth_lddt_loss(model.atom37[known][None], truth.atom37[known][None], torch.ones(1, int(known.sum())))
    torch.testing.assert_close(value, alone)
    value.backward()
    assert (predicted.grad[~mask] == 0).all()


def test_gradient_equals_finite_differences() -> None:
    model, truth = build_chain("GDA", 3), build_chain("GDA", 4)
    known = truth.mask
    mask = torch.ones(1, int(known.sum()))
    mask[:, 3] = 0
    # Ideal bonds are alike in both chains, and an error of 0 is a kink: every atom is moved off its place.
    noise = torch.randn(1, int(known.sum()), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    predicted = (model.atom37[known][None] + noise).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: smooth_lddt_loss(x, truth.atom37[known][None], mask), (predicted,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_atoms", [1, 5])
@pytest.mark.parametrize("known", [True, False])
def test_finite_where_atoms_coincide(dtype: torch.dtype, n_atoms: int, known: bool) -> None:
    predicted = torch.zeros(1, n_atoms, 3, dtype=dtype, requires_grad=True)
    value = smooth_lddt_loss(predicted, predicted.detach(), torch.full((1, n_atoms), known))
    value.sum().backward()
    assert value.item() == pytest.approx(1 - soft_steps(0) if known and n_atoms > 1 else 0.0, rel=1e-5)
    assert predicted.grad.isfinite().all()

"""Calibration of pLDDT against scipy and cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protfold_peft.metrics import lddt, plddt_calibration


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 50), st.booleans())
def test_equals_scipy(seed: int, n: int, ties: bool) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    true = rng.random((2, n))
    predicted = np.clip(100 * true + rng.normal(scale=20, size=true.shape), 0, 100)
    if ties:
        true, predicted = true.round(1), predicted.round(-1)
    mask = rng.random(true.shape) > 0.2
    mask[:, :3] = True
    true[:, 0], true[:, 1], predicted[:, 0], predicted[:, 1] = 0.1, 0.9, 30, 80
    result = plddt_calibration(*(torch.tensor(x) for x in (predicted, true, mask)))
    for row in range(2):
        x, y = predicted[row][mask[row]], true[row][mask[row]]
        assert result.pearson[row].item() == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
        assert result.spearman[row].item() == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
        assert result.error[row].item() == pytest.approx(np.abs(x - 100 * y).mean())
        assert result.bias[row].item() == pytest.approx((x - 100 * y).mean())
        assert result.n_residues[row].item() == mask[row].sum()


def test_by_hand() -> None:
    predicted = torch.tensor([[90.0, 70, 50, math.nan]])
    true = torch.tensor([[0.8, 0.7, 0.3, 0.5]])
    result = plddt_calibration(predicted, true, torch.tensor([[1, 1, 1, 0]]))
    assert result.error.item() == pytest.approx(10)
    assert result.bias.item() == pytest.approx(10)
    assert result.spearman.item() == pytest.approx(1)
    inverted = plddt_calibration(100 - predicted.nan_to_num(), true, torch.tensor([[1, 1, 1, 0]]))
    assert inverted.spearman.item() == pytest.approx(-1)


def test_residues_without_a_true_value_take_no_part() -> None:
    """An isolated residue has no lDDT, which is NaN in `Lddt.per_residue`."""
    chain = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [8, 0, 0], [90, 0, 0]]])
    true = lddt(chain, chain, torch.ones(1, 4)).per_residue
    result = plddt_calibration(torch.tensor([[99.0, 98, 97, 20]]), true, torch.ones(1, 4))
    assert result.n_residues.item() == 3
    assert result.error.item() == pytest.approx(2)
    assert result.pearson.isnan().all()  # all true values are 1


def test_too_few_residues_are_undefined() -> None:
    one = plddt_calibration(torch.tensor([[50.0, 0]]), torch.tensor([[0.7, 0]]), torch.tensor([[1, 0]]))
    assert one.error.item() == pytest.approx(20)
    assert one.pearson.isnan().all()
    assert plddt_calibration(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)).error.isnan().all()


def test_wrong_scales_and_nan_are_refused() -> None:
    fine = torch.full((1, 3), 0.5)
    with pytest.raises(ValueError, match="true lDDT"):
        plddt_calibration(100 * fine, 100 * fine, torch.ones(1, 3))
    with pytest.raises(ValueError, match="predicted lDDT"):
        plddt_calibration(fine * math.nan, fine, torch.ones(1, 3))
    with pytest.raises(ValueError, match="three"):
        plddt_calibration(fine, fine[:, :2], torch.ones(1, 3))

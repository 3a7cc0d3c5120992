"""Superposition against known rigid motions, biotite, scipy and finite differences; degenerate sets of points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_pairs import random_rotation, random_walk
from torch import Tensor

from protfold_peft.errors import NonFiniteError
from protfold_peft.metrics import superpose
from protfold_peft.metrics.rotation import best_rotation, optimal_rotation

SEEDS = st.integers(0, 2**32 - 1)


def clouds(seed: int, batch: int = 3, n: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Mobile points, targets that are not a rigid motion of them, weights of which some are zero."""
    rng = np.random.default_rng(seed)
    mobile = rng.normal(scale=10, size=(batch, n, 3))
    target = mobile @ random_rotation(rng).T + rng.normal(scale=3, size=mobile.shape) + 20
    weights = rng.uniform(0.1, 2, size=(batch, n)) * (np.arange(n) % 5 > 0)
    return torch.tensor(mobile), torch.tensor(target), torch.tensor(weights)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_recovers_a_rigid_motion(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotation, shift = random_rotation(rng), rng.normal(scale=100, size=3)
    mobile = random_walk(30, rng)[None]
    fit = superpose(torch.tensor(mobile), torch.tensor(mobile @ rotation.T + shift))
    np.testing.assert_allclose(fit.rotation[0], rotation, atol=1e-12)
    np.testing.assert_allclose(fit.translation[0], shift, atol=1e-10)
    assert fit.rmsd.item() < 1e-12
    torch.testing.assert_close(fit.apply(torch.tensor(mobile)), torch.tensor(mobile @ rotation.T + shift))


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_equals_scipy_with_weights(seed: int) -> None:
    rotations = pytest.importorskip("scipy.spatial.transform")
    mobile, target, weights = clouds(seed)
    fit = superpose(mobile, target, weights)
    for row in range(len(mobile)):
        w = weights[row].numpy()
        x, y = mobile[row].numpy(), target[row].numpy()
        x_mean, y_mean = np.average(x, 0, w), np.average(y, 0, w)
        theirs, distance = rotations.Rotation.align_vectors(y - y_mean, x - x_mean, weights=w)
        np.testing.assert_allclose(fit.rotation[row], theirs.as_matrix(), atol=1e-9)
        assert fit.rmsd[row].item() == pytest.approx(distance / math.sqrt(w.sum()), abs=1e-9)


def test_equals_biotite() -> None:
    biotite = pytest.importorskip("biotite.structure")
    mobile, target, _ = clouds(5)
    fit = superpose(mobile, target)
    for row in range(len(mobile)):
        fixed = target[row].numpy().astype(np.float32)
        moved, _ = biotite.superimpose(fixed, mobile[row].numpy().astype(np.float32))
        np.testing.assert_allclose(fit.apply(mobile)[row], moved, atol=1e-4)  # biotite computes in float32
        assert fit.rmsd[row].item() == pytest.approx(float(biotite.rmsd(fixed, moved)), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_no_other_motion_fits_better(seed: int) -> None:
    mobile, target, weights = clouds(seed)
    fit = superpose(mobile, target, weights)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        turn = torch.tensor(random_rotation(rng, largest=0.5))
        other = mobile @ (turn @ fit.rotation).mT
        other = other + (weights[..., None] * (target - other)).sum(1, keepdim=True) / weights.sum(1)[:, None, None]
        square = (weights * (other - target).square().sum(-1)).sum(1) / weights.sum(1)
        assert (square.sqrt() >= fit.rmsd - 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_a_mirror_image_is_not_turned_inside_out(seed: int) -> None:
    mobile = torch.tensor(random_walk(20, np.random.default_rng(seed)))[None]
    fit = superpose(mobile, mobile * torch.tensor([-1.0, 1, 1]))
    assert torch.linalg.det(fit.rotation).item() == pytest.approx(1)
    assert fit.rmsd.item() > 0.5


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-9, 1e-7, 1e-5, 1e-3, 0.1, 1.0])
def test_closed_form_is_as_good_as_svd_near_degenerate_sets(noise: float) -> None:
    """Rank one plus noise, mirror-symmetric pairs of singular values, zeros: tr(R^T B) must reach its maximum."""
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(2000, 3, 3, generator=generator).double()).Q for _ in range(2))
    spectra = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [0, 0, 0]]).double().repeat(400, 1)
    b = (u * spectra[:, None]) @ v.mT + noise * torch.randn(2000, 3, 3, generator=generator).double()
    rotation = optimal_rotation(b)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand_as(b), atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2000).double(), atol=1e-9, rtol=0)
    s = torch.linalg.svdvals(b)
    best = s[:, 0] + s[:, 1] + s[:, 2] * torch.linalg.det(b).sign()
    torch.testing.assert_close((rotation * b).sum((-1, -2)), best, atol=1e-9, rtol=1e-9)


def test_scale_of_the_correlation_does_not_matter() -> None:
    b = torch.randn(200, 9, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.stack(best_rotation(list(b.unbind(-1))))
    for scale in (1e-30, 1e-8, 1e12):
        torch.testing.assert_close(torch.stack(best_rotation(list((b * scale).unbind(-1)))), expected)


def test_gradients_equal_finite_differences() -> None:
    mobile, target, weights = clouds(3, batch=2, n=6)
    weights = weights + 0.2
    inputs = tuple(value.requires_grad_() for value in (mobile, target, weights))

    def motion(*values: Tensor) -> tuple[Tensor, ...]:
        fit = superpose(*values)
        return fit.rotation, fit.translation, fit.rmsd

    assert torch.autograd.gradcheck(motion, inputs)


DEGENERATE = {
    "one point": torch.tensor([[[1.0, 2, 3]]]),
    "two points": torch.tensor([[[1.0, 2, 3], [4, 5, 7]]]),
    "coincident": torch.ones(1, 5, 3),
    "collinear": torch.arange(5.0)[None, :, None] * torch.tensor([1.0, 2, -1]),
    "planar": torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_sets_give_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    mobile = DEGENERATE[name].to(dtype)
    targets = {
        "random": torch.randn(mobile.shape, generator=torch.Generator().manual_seed(0)).to(dtype),
        "itself": mobile.clone(),
        "mirrored": -mobile,
        "a point": torch.zeros_like(mobile),
    }
    for what, target in targets.items():
        mobile = mobile.detach().clone().requires_grad_()
        target = target.detach().requires_grad_()
        fit = superpose(mobile, target)
        (fit.rotation.sum() + fit.translation.sum() + fit.rmsd.sum()).backward()
        assert torch.linalg.det(fit.rotation).item() == pytest.approx(1, abs=1e-5), what
        for value in (fit.rotation, fit.translation, fit.rmsd, mobile.grad, target.grad):
            assert value is not None
            assert value.isfinite().all(), what
        if what in ("itself", "mirrored"):  # in a plane a turn by 180 degrees is as good as the inversion
            assert fit.rmsd.item() < 1e-3


def test_points_without_weight_take_no_part() -> None:
    mobile, target, weights = clouds(2)
    spoilt = torch.where(weights[..., None] > 0, mobile, torch.nan)
    kept = weights[0] > 0
    fit, alone = superpose(spoilt, target, weights), superpose(mobile[:, kept], target[:, kept], weights[:, kept])
    torch.testing.assert_close(fit.rotation, alone.rotation)
    torch.testing.assert_close(fit.rmsd, alone.rmsd)


def test_nothing_to_superpose_is_the_identity_without_rmsd() -> None:
    mobile, target, _ = clouds(2)
    fit = superpose(mobile, target, torch.zeros(mobile.shape[:2]))
    assert fit.rmsd.isnan().all()
    assert torch.equal(fit.rotation, torch.eye(3).double().expand(3, 3, 3))


def test_atoms_of_residues_are_points() -> None:
    mobile, target, weights = clouds(4)
    flat = superpose(mobile, target, weights)
    shaped = superpose(mobile.view(3, 4, 3, 3), target.view(3, 4, 3, 3), weights.view(3, 4, 3))
    assert torch.equal(flat.rotation, shaped.rotation)
    assert shaped.apply(mobile.view(3, 4, 3, 3)).shape == (3, 4, 3, 3)


def test_float32_far_from_the_origin_is_as_good_as_its_coordinates() -> None:
    mobile, target, _ = clouds(6)
    exact, rough = superpose(mobile, target), superpose((mobile + 1000).float(), (target - 1000).float())
    assert rough.rotation.dtype == torch.float32
    torch.testing.assert_close(rough.rotation.double(), exact.rotation, atol=1e-4, rtol=0)
    torch.testing.assert_close(rough.rmsd.double(), exact.rmsd, atol=1e-3, rtol=0)


def test_bad_input_is_refused() -> None:
    mobile, target, weights = clouds(1)
    spoilt = mobile.clone()
    spoilt[1, 2, 0] = math.nan
    for error in (ValueError, NonFiniteError):
        with pytest.raises(error, match="mobile coordinates of sample 1, residue 2"):
            superpose(spoilt, target)
    with pytest.raises(ValueError, match="target"):
        superpose(target, spoilt)
    with pytest.raises(ValueError, match="weight"):
        superpose(mobile, target, -weights)
    with pytest.raises(ValueError, match="shape"):
        superpose(mobile, target, weights[:, :2])
    with pytest.raises(ValueError, match="superpose takes two"):
        superpose(mobile, target[:, :5])
    with pytest.raises(ValueError, match="one type"):
        superpose(mobile, target.float())

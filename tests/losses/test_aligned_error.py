"""The loss of the PAE head against DeepMind's values, finite differences, and cases with a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from built_chains import ALL_TWENTY, backbone_of, build_chain

from protfold_peft.losses import aligned_error_loss
from protfold_peft.structure.geometry import backbone_frames
from protfold_peft.structure.rigid import Rigid

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}


def unit_frames(*places: tuple[float, float, float]) -> Rigid:
    origins = torch.tensor([places], dtype=torch.float64)
    return Rigid(torch.eye(3, dtype=torch.float64).expand(1, len(places), 3, 3), origins)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_deepmind(stored_losses, dtype: torch.dtype) -> None:
    for stored in stored_losses("pae_loss"):
        predicted, _ = backbone_frames(stored("in_pred_atom37", dtype))
        target, mask = backbone_frames(stored("in_gt_atom37", dtype), stored("in_gt_atom37_mask", dtype))
        value = aligned_error_loss(stored("in_pair_logits_f16", dtype), predicted, target, mask)
        assert value.item() == pytest.approx(stored.values["pae_loss"], rel=TOLERANCE[dtype]), stored.name


@pytest.mark.parametrize(
    ("shift", "place"), [(0.0, 0), (0.1, 1), (0.49, 1), (0.51, 2), (30.9, 62), (31.1, 63), (90, 63)]
)
def test_bins(shift: float, place: int) -> None:
    """The second of two residues is off by `shift`; each frame sees the other residue so, and itself rightly."""
    target = unit_frames((0, 0, 0), (4, 0, 0))
    predicted = unit_frames((0, 0, 0), (4, 0, shift))
    right = torch.zeros(1, 2, 2, 64, dtype=torch.float64)
    right[0, [0, 1], [0, 1], 0] = 50.0
    right[0, [0, 1], [1, 0], place] = 50.0
    assert aligned_error_loss(right, predicted, target, torch.ones(1, 2)).item() == pytest.approx(0.0, abs=1e-12)


def test_rows_are_the_residues_aligned_on() -> None:
    """Only the second frame is turned, by half a turn about z: it alone sees the first residue wrong, by 8 A."""
    target = unit_frames((0, 0, 0), (4, 0, 0))
    turned = target.rotation.clone()
    turned[0, 1] = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    right = torch.zeros(1, 2, 2, 64, dtype=torch.float64)
    right[..., 0] = 50.0
    right[0, 1, 0] = 0.0
    right[0, 1, 0, 16] = 50.0
    value = aligned_error_loss(right, Rigid(turned, target.translation), target, torch.ones(1, 2))
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    other_way = aligned_error_loss(right.transpose(1, 2), Rigid(turned, target.translation), target, torch.ones(1, 2))
    assert other_way.item() == pytest.approx(2 * 50 / 4, rel=1e-6)


def test_padding_and_missing_residues_take_no_part() -> None:
    model, truth = build_chain(ALL_TWENTY, 0), build_chain(ALL_TWENTY, 1).without(3, 1)
    keep = torch.tensor([place for place in range(20) if place != 3])
    logits = torch.randn(1, 25, 25, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits.requires_grad_()
    predicted, _ = backbone_of(model.padded(5))
    target, mask = backbone_of(truth.padded(5))
    value = aligned_error_loss(logits, predicted, target, mask)
    alone = aligned_error_loss(
        logits[:, keep][:, :, keep], predicted[:, keep], target[:, keep], torch.ones(1, len(keep))
    )
    torch.testing.assert_close(value, alone)
    value.backward()
    assert (logits.grad[~(mask[:, :, None] & mask[:, None, :])] == 0).all()


def test_gradient_reaches_the_head_alone_and_equals_finite_differences() -> None:
    predicted, mask = backbone_of(build_chain("GAD", 3))
    target, _ = backbone_of(build_chain("GAD", 4))
    predicted.translation.requires_grad_()
    logits = torch.randn(1, 3, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert torch.autograd.gradcheck(
        lambda x: aligned_error_loss(x, predicted, target, mask), (logits.requires_grad_(),)
    )
    aligned_error_loss(logits, predicted, target, mask).backward()
    assert predicted.translation.grad is None


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("known", [True, False])
def test_one_residue_and_coincident_atoms(length: int, known: bool) -> None:
    frames, _ = backbone_frames(torch.zeros(1, length, 3, 3))
    logits = torch.zeros(1, length, length, 64, requires_grad=True)
    value = aligned_error_loss(logits, frames, frames, torch.full((1, length), known))
    value.backward()
    assert value.item() == pytest.approx(math.log(64) if known else 0.0, rel=1e-6)
    assert logits.grad.isfinite().all()

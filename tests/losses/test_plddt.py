"""The pLDDT head's loss against DeepMind's values, finite differences, and cases that can be counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from built_chains import ALL_TWENTY, build_chain

from protfold_peft.losses import plddt_loss
from protfold_peft.losses.plddt import kept_distances
from protfold_peft.structure.residues import ATOM_INDEX

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
CA, CB = ATOM_INDEX["CA"], ATOM_INDEX["CB"]


def certain_of(bins: torch.Tensor, n_bins: int = 50) -> torch.Tensor:
    """Logits of a head that is all but certain of these bins."""
    return 100.0 * torch.nn.functional.one_hot(bins, n_bins).double()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_deepmind(stored_losses, dtype: torch.dtype) -> None:
    for stored in stored_losses("plddt_loss"):
        predicted, target, mask = (
            stored(key, dtype)[:, :, CA : CA + 1] for key in ("in_pred_atom37", "in_gt_atom37", "in_gt_atom37_mask")
        )
        kept, judged = kept_distances(predicted, target, mask, representative=0)
        per_residue = kept[..., 0] / (4 * judged[..., 0])
        torch.testing.assert_close(per_residue, stored("out_lddt_ca_per_res", torch.float32), rtol=1e-5, atol=0)
        logits = stored("in_plddt_logits", dtype)[:, :, None]
        value = plddt_loss(logits, predicted, target, mask, representative=0)
        assert value.item() == pytest.approx(stored.values["plddt_loss"], rel=TOLERANCE[dtype]), stored.name


def test_atoms_of_the_head_agree_with_the_residues() -> None:
    """Among the 37 atoms those of CA get what AlphaFold's head per residue gets, and the loss is a mean over atoms."""
    model, truth = build_chain(ALL_TWENTY, 0), build_chain(ALL_TWENTY, 1).without(3)
    kept, judged = kept_distances(model.atom37, truth.atom37, truth.mask)
    alone = kept_distances(
        *(points[:, :, CA : CA + 1] for points in (model.atom37, truth.atom37, truth.mask)), representative=0
    )
    assert torch.equal(kept[:, :, CA], alone[0][..., 0])
    assert torch.equal(judged[:, :, CA], alone[1][..., 0])
    logits = torch.randn(1, 20, 37, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    value = plddt_loss(logits, model.atom37, truth.atom37, truth.mask)
    bins = (50 * kept.double() / (4 * judged)).nan_to_num().floor().long().clamp(max=49)
    surprise = -logits.log_softmax(dim=-1).gather(-1, bins[..., None])[..., 0]
    torch.testing.assert_close(value, surprise[judged > 0].mean()[None], rtol=1e-8, atol=0)


def test_counted_by_hand() -> None:
    """Three residues 10 A apart in a row. The model has the last CA 1.5 A too far and its CB 3 A: the first and last CA
    are 20 A apart and not judged, so the last CA keeps one distance at 2 and 4 A, and so on."""
    target = torch.zeros(1, 3, 37, 3, dtype=torch.float64)
    target[0, :, :, 0] = 10 * torch.arange(3.0, dtype=torch.float64)[:, None]
    predicted = target.clone()
    predicted[0, 2, CA, 0] += 1.5
    predicted[0, 2, CB, 0] += 3.0
    mask = torch.zeros(1, 3, 37, dtype=torch.bool)
    mask[..., [CA, CB]] = True
    kept, judged = kept_distances(predicted, target, mask)
    assert judged[0, :, [CA, CB]].tolist() == [[1, 1], [2, 2], [1, 1]]
    assert kept[0, :, [CA, CB]].tolist() == [[4, 4], [6, 6], [2, 1]]
    # In bins of 1/50: 6 of 8 falls inside bin 37, 1/4 inside bin 12; 1/2 is the edge below bin 25; 1 is in the last.
    bins = torch.zeros(1, 3, 37, dtype=torch.long)
    bins[0, :, CA] = torch.tensor([49, 37, 25])
    bins[0, :, CB] = torch.tensor([49, 37, 12])
    assert plddt_loss(certain_of(bins), predicted, target, mask).item() == pytest.approx(0, abs=1e-12)
    bins[0, 2, CA] = 24
    assert plddt_loss(certain_of(bins), predicted, target, mask).item() == pytest.approx(100 / 6, rel=1e-8)


def test_padding_and_missing_atoms_take_no_part() -> None:
    model, truth = build_chain(ALL_TWENTY, 3), build_chain(ALL_TWENTY, 4).without(5).without(8, CB)
    long_model, long_truth = model.padded(3), truth.padded(3)
    logits = torch.randn(1, 23, 37, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    logits.requires_grad_()
    value = plddt_loss(logits, long_model.atom37, long_truth.atom37, long_truth.mask)
    torch.testing.assert_close(value, plddt_loss(logits[:, :20], model.atom37, truth.atom37, truth.mask))
    value.backward()
    assert (logits.grad[:, :20][~truth.mask] == 0).all()
    assert (logits.grad[:, 20:] == 0).all()


def test_gradient_reaches_the_head_alone_and_equals_finite_differences() -> None:
    model, truth = build_chain("GAD", 6), build_chain("GAD", 7)
    logits = torch.randn(1, 3, 37, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    points = model.atom37.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: plddt_loss(x, points, truth.atom37, truth.mask), (logits.requires_grad_(),)
    )
    plddt_loss(logits, points, truth.atom37, truth.mask).backward()
    assert points.grad is None


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("known", [True, False])
def test_one_residue_and_coincident_atoms(length: int, known: bool) -> None:
    """A chain of one residue has no distance to judge, so there is nothing to learn from it."""
    logits = torch.zeros(1, length, 37, 50, requires_grad=True)
    points = torch.zeros(1, length, 37, 3)
    value = plddt_loss(logits, points, points, torch.full((1, length, 37), known))
    value.backward()
    assert value.item() == pytest.approx(math.log(50) if known and length > 1 else 0.0, rel=1e-6)
    assert logits.grad.isfinite().all()

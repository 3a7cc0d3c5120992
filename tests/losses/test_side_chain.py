"""Side-chain FAPE and the renaming of symmetric atoms, against DeepMind's values and by construction."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from built_chains import ALL_TWENTY, BuiltChain, build_chain

from protfold_peft.losses import all_atom_target, side_chain_fape
from protfold_peft.structure.geometry import atom14_to_atom37, atom37_to_atom14, swap_ambiguous
from protfold_peft.structure.residues import ATOM_INDEX
from protfold_peft.structure.rigid import Rigid

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
CLAMPS = {"clamped": 10.0, "unclamped": None}
SYMMETRIC = [ALL_TWENTY.index(letter) for letter in "DEFY"]


def loss(model: BuiltChain, truth: BuiltChain, clamp: float | None = 10.0) -> torch.Tensor:
    target = all_atom_target(model.atom14, truth.atom37, truth.mask, truth.restypes)
    return side_chain_fape(model.frames, model.atom14, target, clamp=clamp)


def other_names(chain: BuiltChain) -> BuiltChain:
    return replace(chain, atom37=atom14_to_atom37(swap_ambiguous(chain.atom14, chain.restypes), chain.restypes))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", CLAMPS)
def test_equals_deepmind(stored_losses, kind: str, dtype: torch.dtype) -> None:
    for stored in stored_losses(f"fape_sc_{kind}"):
        restypes = torch.tensor(stored.arrays["in_aatype"])[None]
        positions = atom37_to_atom14(stored("in_pred_atom37", dtype), restypes)
        frames = stored("out_pred_rigidgroups_frames", dtype)
        frames = Rigid(frames[..., :9].unflatten(-1, (3, 3)), frames[..., 9:])
        target = all_atom_target(positions, stored("in_gt_atom37", dtype), stored("in_gt_atom37_mask", dtype), restypes)
        renamed = stored("out_alt_naming_is_better", dtype).bool()
        assert torch.equal(target.renamed, renamed), stored.name
        assert torch.equal(target.positions, stored("out_renamed_atom14_gt_positions", dtype)), stored.name
        value = side_chain_fape(frames, positions, target, clamp=CLAMPS[kind])
        assert value.item() == pytest.approx(stored.values[f"fape_sc_{kind}"], rel=TOLERANCE[dtype]), stored.name


def test_other_names_of_the_truth_change_nothing() -> None:
    """The experiment's OD1 and OD2 are exchanged: the loss takes the naming that fits, and the same value."""
    model, truth = build_chain(ALL_TWENTY, 0), build_chain(ALL_TWENTY, 0)
    swapped = other_names(truth)
    target = all_atom_target(model.atom14, swapped.atom37, swapped.mask, swapped.restypes)
    assert target.renamed[0].nonzero()[:, 0].tolist() == SYMMETRIC
    torch.testing.assert_close(target.positions, truth.atom14)
    # Everything is in its place, but for the ideal residues, whose halves differ by hundredths of an angstrom.
    assert loss(model, truth).item() == pytest.approx(math.sqrt(1e-4) / 10, rel=1e-4)
    assert loss(model, swapped).item() == pytest.approx(math.sqrt(1e-4) / 10, rel=0.2)


def test_a_lone_twin_is_tried_under_both_names() -> None:
    model, truth = build_chain(ALL_TWENTY, 1), build_chain(ALL_TWENTY, 1)
    aspartate = ALL_TWENTY.index("D")
    truth = truth.without(aspartate, ATOM_INDEX["OD2"])
    swapped = other_names(build_chain(ALL_TWENTY, 1)).without(aspartate, ATOM_INDEX["OD1"])
    for given, renamed in ((truth, False), (swapped, True)):
        target = all_atom_target(model.atom14, given.atom37, given.mask, given.restypes)
        assert target.renamed[0, aspartate].item() is renamed
        assert target.mask[0, aspartate].tolist() == [True] * 7 + [False] * 7
        torch.testing.assert_close(target.positions[0, aspartate, 6], model.atom14[0, aspartate, 6])


def test_padding_and_missing_atoms_take_no_part() -> None:
    model, truth = build_chain(ALL_TWENTY, 2), build_chain(ALL_TWENTY, 3)
    truth = truth.without(4).without(7, ATOM_INDEX["CG1"])
    torch.testing.assert_close(loss(model.padded(5), truth.padded(5)), loss(model, truth))
    moved = replace(truth, atom37=truth.atom37.masked_fill(~truth.mask[..., None], 1e4))
    torch.testing.assert_close(loss(model, moved), loss(model, truth))


def test_gradient_equals_finite_differences() -> None:
    model, truth = build_chain("DFGK", 4), build_chain("DFGK", 5).without(2)
    target = all_atom_target(model.atom14, truth.atom37, truth.mask, truth.restypes)

    def value(rotation: torch.Tensor, translation: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return side_chain_fape(Rigid(rotation, translation), positions, target, clamp=None)

    arguments = (model.frames.rotation, model.frames.translation, model.atom14)
    assert torch.autograd.gradcheck(value, [argument.clone().requires_grad_() for argument in arguments])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sequence", ["D", "G", "X", "ADX"])
@pytest.mark.parametrize("known", [True, False])
def test_finite_where_atoms_coincide(dtype: torch.dtype, sequence: str, known: bool) -> None:
    chain = build_chain(sequence, 6, dtype=dtype)
    one_place = replace(chain, atom37=torch.zeros_like(chain.atom37), mask=chain.mask & known)
    points = torch.zeros_like(chain.atom14).requires_grad_()
    turns = chain.frames.rotation.clone().requires_grad_()
    target = all_atom_target(points, one_place.atom37, one_place.mask, one_place.restypes)
    value = side_chain_fape(Rigid(turns, torch.zeros_like(chain.frames.translation)), points, target)
    value.sum().backward()
    assert value.isfinite().all()
    assert points.grad.isfinite().all()
    assert turns.grad.isfinite().all()
    if not known or sequence == "X":
        assert value.item() == 0

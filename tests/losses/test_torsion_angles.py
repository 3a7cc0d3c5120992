"""Supervised torsions against DeepMind's values, finite differences, and cases with a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from built_chains import ALL_TWENTY, build_chain

from protfold_peft.losses import angle_norm_loss, chi_loss, torsion_loss
from protfold_peft.structure.geometry import Torsions, torsions
from protfold_peft.structure.residues import CHI_MASK

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}


def torsions_of(sequence: str, seed: int = 0) -> Torsions:
    chain = build_chain(sequence, seed)
    return torsions(chain.atom37, chain.mask, chain.restypes)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_deepmind(stored_losses, dtype: torch.dtype) -> None:
    for stored in stored_losses("chi_loss_random"):
        restypes = torch.tensor(stored.arrays["in_aatype"])[None]
        target = torsions(stored("in_gt_atom37", dtype), stored("in_gt_atom37_mask", dtype), restypes)
        # One step of the structure module is stored.
        angles = stored("in_chi_unnormalized_angles", dtype)
        of_model = stored("out_pred_torsion_angles_sin_cos", dtype)[None]
        mask = torch.ones_like(restypes)
        for key, value in (
            ("chi_loss_random", chi_loss(angles, target)),
            ("chi_loss_model", chi_loss(of_model, target)),
            ("angle_norm_loss_random", angle_norm_loss(angles, mask)),
            ("chi_total_random", torsion_loss(angles, target, mask)),
        ):
            assert value.item() == pytest.approx(stored.values[key], rel=TOLERANCE[dtype]), (stored.name, key)


@pytest.mark.parametrize(("turn", "forgiven"), [(0.0, True), (40.0, False), (180.0, False), (-90.0, False)])
def test_an_angle_off_by_a_turn_has_a_closed_form(turn: float, forgiven: bool) -> None:
    """The distance on the unit circle is `2 - 2 cos(turn)`; lengths of the pairs do not matter."""
    target = torsions_of("KLMR")
    sine, cosine = target.sin_cos.unbind(-1)
    angle = torch.atan2(sine, cosine) + math.radians(turn)
    angles = 3 * torch.stack([angle.sin(), angle.cos()], dim=-1)[None]
    assert chi_loss(angles, target).item() == pytest.approx(2 - 2 * math.cos(math.radians(turn)), abs=1e-9)
    assert (chi_loss(angles, target).item() < 1e-12) is forgiven


@pytest.mark.parametrize(("letter", "chi"), [("D", 1), ("E", 2), ("F", 1), ("Y", 1), ("N", None), ("V", None)])
def test_half_a_turn_is_forgiven_where_ends_are_alike(letter: str, chi: int | None) -> None:
    target = torsions_of(letter)
    n_chi = int(CHI_MASK["ARNDCQEGHILKMFPSTWYV".index(letter)].sum())
    for turned in range(n_chi):
        angles = target.sin_cos.clone()[None]
        angles[..., 3 + turned, :] *= -1
        assert chi_loss(angles, target).item() == pytest.approx(0 if turned == chi else 4 / n_chi, abs=1e-9)


def test_steps_are_averaged() -> None:
    target = torsions_of(ALL_TWENTY)
    angles = torch.randn(3, 1, 20, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 20)
    for whole, parts in (
        (chi_loss(angles, target), [chi_loss(step[None], target) for step in angles]),
        (angle_norm_loss(angles, mask), [angle_norm_loss(step[None], mask) for step in angles]),
    ):
        torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0))


def test_norm_of_pairs_of_length_three() -> None:
    angles = torch.tensor([0.0, 3.0], dtype=torch.float64).expand(2, 1, 4, 7, 2)
    assert angle_norm_loss(angles, torch.ones(1, 4)).item() == pytest.approx(2.0, rel=1e-6)


def test_padding_and_missing_atoms_take_no_part() -> None:
    chain = build_chain(ALL_TWENTY, 2).without(4)
    angles = torch.randn(2, 1, 25, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    angles.requires_grad_()
    long = chain.padded(5)
    target = torsions(chain.atom37, chain.mask, chain.restypes)
    padded = torsions(long.atom37, long.mask, long.restypes)
    mask = torch.arange(25)[None] < 20
    value = torsion_loss(angles, padded, mask)
    torch.testing.assert_close(value, torsion_loss(angles[:, :, :20], target, mask[:, :20]))
    (gradient,) = torch.autograd.grad(value.sum(), angles)
    assert (gradient[:, :, 20:] == 0).all()
    (gradient,) = torch.autograd.grad(chi_loss(angles, padded).sum(), angles)
    assert (gradient[:, :, 4] == 0).all()


def test_gradient_equals_finite_differences() -> None:
    target = torsions_of("DKY")
    angles = torch.randn(2, 1, 3, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[True, True, False]])
    assert torch.autograd.gradcheck(lambda x: torsion_loss(x, target, mask), (angles.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sequence", ["K", "G", "KGX"])
@pytest.mark.parametrize("known", [True, False])
def test_finite_without_direction(dtype: torch.dtype, sequence: str, known: bool) -> None:
    """Pairs of length 0, atoms in one place, a chain of one residue, one without side chains."""
    chain = build_chain(sequence, 4, dtype=dtype)
    target = torsions(torch.zeros_like(chain.atom37), chain.mask & known, chain.restypes)
    angles = torch.zeros(2, 1, len(sequence), 7, 2, dtype=dtype, requires_grad=True)
    value = torsion_loss(angles, target, torch.full((1, len(sequence)), known))
    value.sum().backward()
    assert value.isfinite().all()
    assert angles.grad.isfinite().all()
    if not known:
        assert value.item() == 0

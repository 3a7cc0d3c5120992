"""FAPE against DeepMind's values, finite differences, and cases with a closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from protfold_peft.losses import backbone_fape, fape
from protfold_peft.structure.rigid import Rigid

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
CLAMPS = {"clamped": 10.0, "unclamped": None}


def rigid(frames: torch.Tensor) -> Rigid:
    """Frames `(...)` from AlphaFold's flat ones, `(..., 12)`: nine of the rotation, three of the translation."""
    return Rigid(frames[..., :9].unflatten(-1, (3, 3)), frames[..., 9:])


def random_rotations(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Proper rotations, `(*shape, 3, 3)` float64."""
    q = torch.linalg.qr(torch.randn(*shape, 3, 3, dtype=torch.float64, generator=generator)).Q
    return q * torch.linalg.det(q)[..., None, None]


def random_frames(generator: torch.Generator, *shape: int) -> Rigid:
    """Frames whose origins are some 8 A apart, float64."""
    origins = torch.randn(*shape, 3, dtype=torch.float64, generator=generator) * 8
    return Rigid(random_rotations(generator, *shape), origins)


def random_backbone(seed: int, steps: int, batch: int, length: int) -> dict[str, Any]:
    """Arguments of `backbone_fape` with everything known, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "predicted": random_frames(generator, steps, batch, length),
        "target": random_frames(generator, batch, length),
        "mask": torch.ones(batch, length, dtype=torch.bool),
    }


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", CLAMPS)
def test_backbone_equals_deepmind(stored_losses, kind: str, dtype: torch.dtype) -> None:
    for stored in stored_losses(f"fape_bb_{kind}"):
        target = stored("out_gt_rigidgroups_gt_frames", dtype)[:, :, 0]
        predicted = stored("out_pred_rigidgroups_frames", dtype)[:, :, 0]
        mask = stored("out_bb_mask", dtype)
        value = backbone_fape(rigid(predicted[None]), rigid(target), mask, clamp=CLAMPS[kind])
        assert value.item() == pytest.approx(stored.values[f"fape_bb_{kind}"], rel=TOLERANCE[dtype]), stored.name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", CLAMPS)
def test_side_chains_equal_deepmind(stored_losses, kind: str, dtype: torch.dtype) -> None:
    """The same function with all eight rigid groups and all atoms; symmetric atoms renamed beforehand."""
    for stored in stored_losses(f"fape_sc_{kind}"):
        better_alternative = stored("out_alt_naming_is_better", dtype)[..., None, None]
        target = (
            stored("out_gt_rigidgroups_gt_frames", dtype) * (1 - better_alternative)
            + stored("out_gt_rigidgroups_alt_gt_frames", dtype) * better_alternative
        ).flatten(1, 2)
        predicted = stored("out_pred_rigidgroups_frames", dtype).flatten(1, 2)
        atom14_of_37 = torch.tensor(stored.arrays["in_residx_atom14_to_atom37"])[None, ..., None].expand(-1, -1, -1, 3)
        value = fape(
            rigid(predicted),
            rigid(target),
            stored("out_sc_frames_mask", dtype),
            stored("in_pred_atom37", dtype).gather(2, atom14_of_37).flatten(1, 2),
            stored("out_renamed_atom14_gt_positions", dtype).flatten(1, 2),
            stored("out_sc_positions_mask", dtype),
            clamp=CLAMPS[kind],
        )
        assert value.item() == pytest.approx(stored.values[f"fape_sc_{kind}"], rel=TOLERANCE[dtype]), stored.name


def test_one_displaced_atom_has_a_closed_form() -> None:
    """Two residues with unit frames, the second 3 A off, then 50 A off: seen wrong from the first frame, and its own
    frame sees the first one wrong by as much."""
    unit = torch.eye(3, dtype=torch.float64).expand(1, 2, 3, 3)
    target = torch.tensor([[[0.0, 0, 0], [4, 0, 0]]], dtype=torch.float64)
    for shift, seen in ((3.0, math.sqrt(9 + 1e-4)), (50.0, 10.0)):
        predicted = target + torch.tensor([[0.0, 0, 0], [0, shift, 0]], dtype=torch.float64)
        value = backbone_fape(Rigid(unit[None], predicted[None]), Rigid(unit, target), torch.ones(1, 2))
        # Each frame sees its own origin rightly, up to the root of epsilon.
        expected = (2 * seen + 2 * math.sqrt(1e-4)) / (10 * (4 + 1e-4))
        assert value.item() == pytest.approx(expected, rel=1e-12)


def test_averaged_over_steps() -> None:
    inputs = random_backbone(0, steps=3, batch=2, length=6)
    whole = backbone_fape(**inputs)
    single = [backbone_fape(inputs["predicted"][s : s + 1], inputs["target"], inputs["mask"]) for s in range(3)]
    torch.testing.assert_close(whole, torch.stack(single).mean(dim=0))


def test_clamp_may_differ_between_samples() -> None:
    inputs = random_backbone(1, steps=2, batch=3, length=7)
    mixed = backbone_fape(**inputs, clamp=torch.tensor([10.0, math.inf, 10.0]))
    clamped, free = backbone_fape(**inputs), backbone_fape(**inputs, clamp=None)
    assert (clamped < free).all()
    torch.testing.assert_close(mixed, torch.stack([clamped[0], free[1], clamped[2]]))


def test_rigid_motion_of_the_prediction_changes_nothing() -> None:
    inputs = random_backbone(2, steps=1, batch=2, length=6)
    motion = random_frames(torch.Generator().manual_seed(3), 1, 1, 1)
    moved = {**inputs, "predicted": motion.compose(inputs["predicted"])}
    torch.testing.assert_close(backbone_fape(**moved), backbone_fape(**inputs))


def test_padding_and_missing_residues_take_no_part() -> None:
    """Masked residues may hold anything finite: the value is that of the others alone and they get no gradient."""
    inputs = random_backbone(4, steps=2, batch=1, length=9)
    keep = torch.tensor([0, 1, 3, 4, 6])
    inputs["mask"] = torch.zeros(1, 9, dtype=torch.bool).index_fill(1, keep, True)
    inputs["target"].translation[:, ~inputs["mask"][0]] = 1e4
    inputs["predicted"].translation.requires_grad_()
    value = backbone_fape(**inputs, clamp=None)  # a clamped error has no gradient
    alone = backbone_fape(
        inputs["predicted"][:, :, keep], inputs["target"][:, keep], torch.ones(1, len(keep)), clamp=None
    )
    torch.testing.assert_close(value, alone)
    (gradient,) = torch.autograd.grad(value.sum(), inputs["predicted"].translation)
    assert (gradient[:, :, ~inputs["mask"][0]] == 0).all()
    assert (gradient[:, :, keep] != 0).any(dim=-1).all()


@pytest.mark.parametrize("clamp", [10.0, None])
def test_gradient_equals_finite_differences(clamp: float | None) -> None:
    inputs = random_backbone(5, steps=2, batch=2, length=4)
    inputs["mask"][1, 2:] = False

    def value(rotation: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
        return backbone_fape(Rigid(rotation, translation), inputs["target"], inputs["mask"], clamp=clamp)

    arguments = [inputs["predicted"].rotation.requires_grad_(), inputs["predicted"].translation.requires_grad_()]
    assert torch.autograd.gradcheck(value, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("known", [True, False])
def test_finite_where_atoms_coincide(dtype: torch.dtype, length: int, known: bool) -> None:
    """All atoms in one place and exactly right, a chain of one residue, and a chain without a known residue."""
    unit = torch.eye(3, dtype=dtype).expand(1, length, 3, 3)
    points = torch.zeros(1, 1, length, 3, dtype=dtype, requires_grad=True)
    turns = unit[None].clone().requires_grad_()
    target = Rigid(unit, points.detach()[0])
    value = backbone_fape(Rigid(turns, points), target, torch.full((1, length), known))
    (value * 3).sum().backward()
    expected = math.sqrt(1e-4) / 10 * length**2 / (length**2 + 1e-4) if known else 0.0
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert points.grad.isfinite().all()
    assert turns.grad.isfinite().all()

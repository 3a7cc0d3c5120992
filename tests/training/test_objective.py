"""The structure loss of a batch, on outputs whose loss is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from protfold_peft.data import collate_chains, read_chains
from protfold_peft.structure.geometry import backbone_frames
from protfold_peft.training.objective import representative_atoms, structure_loss

WEIGHTS = {"fape": 1.0, "distogram": 0.3}


@pytest.fixture(scope="module")
def batch(structures) -> dict[str, torch.Tensor]:
    """Two example chains of different length, padded."""
    chains = sorted(read_chains(structures).chains, key=len)[:2]
    return {**collate_chains(chains), "clamped": torch.tensor([True, False])}


def output_at_truth(batch: dict[str, torch.Tensor], steps: int = 3) -> SimpleNamespace:
    """Frames of the experiment, turned and shifted as a whole, and a distogram that knows nothing."""
    target, _ = backbone_frames(batch["atom_positions"], batch["atom_mask"])
    half_turn = torch.tensor([[-1.0, 0, 0], [0, -1, 0], [0, 0, 1]])
    origins = target.translation @ half_turn.T + torch.tensor([5.0, 6, 7])
    frames = torch.cat([quaternions(half_turn @ target.rotation), origins], dim=-1)
    b, n = batch["input_ids"].shape
    return SimpleNamespace(frames=frames.expand(steps, -1, -1, -1), distogram_logits=torch.zeros(b, n, n, 64))


def quaternions(rotations: torch.Tensor) -> torch.Tensor:
    """`(..., 4)`: the eigenvector of Bar-Itzhack's matrix K (2000), by a route that the package does not take."""
    r = rotations.double()
    k = torch.stack(
        [
            torch.stack([r[..., 0, 0] + r[..., 1, 1] + r[..., 2, 2], *_differences(r)], dim=-1),
            *(
                torch.stack(
                    [
                        _differences(r)[i],
                        *(
                            r[..., i, j] + r[..., j, i] - (i == j) * (r[..., 0, 0] + r[..., 1, 1] + r[..., 2, 2])
                            for j in range(3)
                        ),
                    ],
                    dim=-1,
                )
                for i in range(3)
            ),
        ],
        dim=-2,
    )
    return torch.linalg.eigh(k).eigenvectors[..., -1].float()


def _differences(r: torch.Tensor) -> list[torch.Tensor]:
    return [r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]]


def test_the_truth_in_another_place_costs_the_root_of_epsilon(batch) -> None:
    loss = structure_loss(output_at_truth(batch), batch, WEIGHTS, scale_by_length=False)
    assert loss.terms["fape"].item() == pytest.approx(math.sqrt(1e-4) / 10, rel=1e-2)
    assert loss.terms["distogram"].item() == pytest.approx(math.log(64), rel=1e-5)
    assert loss.total.item() == pytest.approx(loss.terms["fape"].item() + 0.3 * math.log(64), rel=1e-5)


def test_only_unclamped_samples_see_large_errors(batch) -> None:
    output = output_at_truth(batch)
    output.frames = torch.cat([output.frames[..., :4], output.frames[..., 4:] * 100], dim=-1)
    values = {}
    for clamped in (True, False):
        one = {**batch, "clamped": torch.tensor([clamped, clamped])}
        values[clamped] = structure_loss(output, one, WEIGHTS, scale_by_length=False).terms["fape"].item()
    assert values[True] <= 1.0
    assert values[False] > 10.0
    mixed = structure_loss(output, batch, WEIGHTS, scale_by_length=False).terms["fape"].item()
    assert values[True] < mixed < values[False]


def test_scaled_by_the_root_of_the_unpadded_lengths(batch) -> None:
    output = output_at_truth(batch)
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths[0] != lengths[1]
    loss = structure_loss(output, batch, {"distogram": 1.0})
    assert loss.total.item() == pytest.approx(math.log(64) * lengths.sqrt().mean().item(), rel=1e-5)


def test_autocast_does_not_reach_the_loss(batch) -> None:
    output = output_at_truth(batch)
    expected = structure_loss(output, batch, WEIGHTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = structure_loss(output, batch, WEIGHTS)
    assert torch.equal(value.total, expected.total)


def test_virtual_cb_stands_in_for_a_missing_one(batch) -> None:
    """The ideal CB is within 0.25 A of the real one, and is what glycine and backbone-only files get."""
    positions, mask = batch["atom_positions"], batch["atom_mask"]
    with_cb, known = representative_atoms(positions, mask)
    bare = mask.clone()
    bare[..., 3:] = False
    ideal, still_known = representative_atoms(positions, bare)
    has_cb = mask[..., 3] & still_known
    assert has_cb.sum() > 20
    assert torch.equal(with_cb[has_cb], positions[..., 3, :][has_cb])
    assert (ideal - with_cb)[has_cb].norm(dim=-1).median() < 0.25
    glycine = known & ~mask[..., 3]
    assert torch.equal(with_cb[glycine], ideal[glycine])
    bare[..., 0] = False
    assert not representative_atoms(positions, bare)[1].any()

"""The structure loss of a batch, on outputs whose loss is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from protfold_peft.data import collate_chains, read_chains
from protfold_peft.structure.geometry import atom37_to_atom14, backbone_frames, rigid_groups, torsions
from protfold_peft.training.objective import representative_atoms, structure_loss
from protfold_peft.training.terms import STRUCTURE_TERMS

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


def whole_output_at_truth(batch: dict[str, torch.Tensor], shift: float = 5.0) -> SimpleNamespace:
    """What a model that places every atom of the experiment would give."""
    types = batch["input_ids"]
    output = output_at_truth(batch)
    known = torsions(batch["atom_positions"], batch["atom_mask"], types)
    target, _ = backbone_frames(batch["atom_positions"], batch["atom_mask"])
    groups = rigid_groups(target, known.sin_cos, types)
    atoms = atom37_to_atom14(batch["atom_positions"], types) + shift
    output.positions = atoms[None]
    matrix = torch.zeros(*groups.shape, 4, 4)
    matrix[..., :3, :3], matrix[..., :3, 3], matrix[..., 3, 3] = groups.rotation, groups.translation + shift, 1.0
    output.sidechain_frames = matrix[None]
    output.unnormalized_angles = known.sin_cos[None].expand(3, *known.sin_cos.shape)
    output.atom14_atom_exists = atom37_to_atom14(batch["atom_mask"], types)
    b, n = types.shape
    output.lddt_head = torch.zeros(3, b, n, 37, 50)
    output.ptm_logits = torch.zeros(b, n, n, 64)
    return output


def test_every_term_at_the_truth(batch) -> None:
    """Closed forms: nothing is wrong, and the heads know nothing."""
    output = whole_output_at_truth(batch)
    weights = dict.fromkeys(STRUCTURE_TERMS, 1.0)
    terms = structure_loss(output, batch, weights, scale_by_length=False).terms
    assert set(terms) == set(STRUCTURE_TERMS)
    # The groups here are those of ideal side chains; a degree off in one moves an atom 20 A away by 0.3 A.
    assert 0.001 < terms["side_chain_fape"].item() < 0.06
    assert terms["torsion"].item() == pytest.approx(0.0, abs=1e-4)
    assert terms["plddt"].item() == pytest.approx(math.log(50), rel=1e-5)
    assert terms["aligned_error"].item() == pytest.approx(math.log(64), rel=1e-5)
    soft = sum(1 / (1 + math.exp(threshold)) for threshold in (0.5, 1.0, 2.0, 4.0)) / 4
    assert terms["smooth_lddt"].item() == pytest.approx(soft, rel=1e-4)
    assert terms["violation"].item() < 0.5

    # A head that is sure of the right bin costs next to nothing: every atom is right, every error 0.
    output.lddt_head[..., 49] = 30.0
    output.ptm_logits[..., 0] = 30.0
    terms = structure_loss(output, batch, weights, scale_by_length=False).terms
    assert terms["plddt"].item() == pytest.approx(0.0, abs=1e-5)


def test_terms_without_a_weight_are_not_computed(batch) -> None:
    """The output here has only what FAPE and distogram need."""
    loss = structure_loss(output_at_truth(batch), batch, {"fape": 1.0, "violation": 0.0})
    assert set(loss.terms) == {"fape"}


def test_the_distance_to_the_base_model(batch) -> None:
    """KL of a sure head from an even one is log k; a uniform stretch by 1 % changes distances by 1 %."""
    output, base = whole_output_at_truth(batch), whole_output_at_truth(batch)
    base.distogram_logits = torch.zeros_like(output.distogram_logits)
    base.distogram_logits[..., 7] = 40.0
    output.positions = base.positions * 1.01
    weights = {"base_divergence": 1.0, "base_distance": 1.0}
    terms = structure_loss(output, batch, weights, base=base, scale_by_length=False).terms
    assert terms["base_divergence"].item() == pytest.approx(math.log(64), rel=1e-4)
    expected = []
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        ca = base.positions[-1, row, :length, 1].double()
        distances = torch.cdist(ca, ca)
        change = ((0.01 * distances) ** 2 + 1e-4).sqrt()
        expected.append(change[~torch.eye(length, dtype=torch.bool)].mean())
    assert terms["base_distance"].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-2)


@pytest.mark.parametrize("term", STRUCTURE_TERMS)
def test_chains_of_n_ca_c_give_finite_terms_and_gradients(batch, term) -> None:
    bare = {**batch, "atom_mask": batch["atom_mask"].clone()}
    bare["atom_mask"][..., 3:] = False
    output = whole_output_at_truth(batch)
    leaves = [name for name, value in vars(output).items() if value.is_floating_point()]
    for name in leaves:
        setattr(output, name, (getattr(output, name) + 0.1).requires_grad_(True))
    loss = structure_loss(output, bare, {term: 1.0})
    assert torch.isfinite(loss.total)
    loss.total.backward()
    gradients = [grad for name in leaves if (grad := getattr(output, name).grad) is not None]
    assert gradients
    assert all(grad.isfinite().all() for grad in gradients)

"""RMSD against stored values (Biopython) and live biotite, and exact cases."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_pairs import ca_of_file, perturbed, random_rotation, random_walk, real_chains, stored_json, stored_pairs

from protfold_peft.metrics import rmsd

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_stored_pairs(test_data: Path, dtype: torch.dtype) -> None:
    for pair in stored_pairs(test_data, dtype):
        expected = pair.expected["rmsd"]
        assert rmsd(*pair.ca).score.item() == pytest.approx(expected["ca"], abs=TOLERANCE[dtype]), pair.name
        heavy = rmsd(*pair.all_atoms)
        assert heavy.score.item() == pytest.approx(expected["heavy"], abs=TOLERANCE[dtype]), pair.name
        assert heavy.n_atoms.item() == expected["n_heavy"]


def test_stored_ensembles_and_mirror(test_data: Path) -> None:
    for name, ensemble in stored_json(test_data, "ensembles").items():
        path = test_data / "metrics" / "ensembles" / f"{name}.pdb"
        models = torch.tensor(np.stack([ca_of_file(path, k) for k in range(ensemble["n_models"])]))
        result = rmsd(models, models[:1].expand_as(models), torch.ones(models.shape[:2]))
        np.testing.assert_allclose(result.score, [value["rmsd_ca"] for value in ensemble["values"]], atol=1e-6)
    folder = test_data / "metrics" / "mirror"
    model, chain = (torch.tensor(ca_of_file(folder / f"{which}.pdb"))[None] for which in ("model", "ref"))
    expected = stored_json(test_data, "mirror")["rmsd_ca"]
    assert rmsd(model, chain, torch.ones(chain.shape[:2])).score.item() == pytest.approx(expected, abs=1e-6)


def test_live_biotite(structures: Path) -> None:
    biotite = pytest.importorskip("biotite.structure")
    rng = np.random.default_rng(2)
    for name, chain in real_chains(structures).items():
        model, _ = perturbed(chain, "drift", rng)
        fixed, mobile = chain.astype(np.float32), model.astype(np.float32)
        moved, _ = biotite.superimpose(fixed, mobile)
        ours = rmsd(torch.tensor(model)[None], torch.tensor(chain)[None], torch.ones(1, len(chain)))
        assert ours.score.item() == pytest.approx(float(biotite.rmsd(fixed, moved)), abs=1e-4), name


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(0, 5))
def test_symmetric_bounded_blind_to_motion_and_padding(seed: int, n: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    chain = torch.tensor(random_walk(n, rng))[None]
    model = chain + torch.tensor(rng.normal(size=(1, n, 3)))
    mask = torch.ones(1, n)
    score = rmsd(model, chain, mask).score
    torch.testing.assert_close(rmsd(chain, model, mask).score, score, atol=1e-9, rtol=0)
    assert 0 <= score.item() <= (model - chain).square().sum(-1).mean().sqrt().item() + 1e-12
    turn = torch.tensor(random_rotation(rng))
    pad = torch.full((1, more, 3), math.nan).double()
    wide = rmsd(
        torch.cat([model @ turn.mT - 9, pad], 1), torch.cat([chain, pad], 1), torch.cat([mask, torch.zeros(1, more)], 1)
    )
    torch.testing.assert_close(wide.score, score, atol=1e-9, rtol=0)
    assert wide.n_atoms.item() == n


def test_only_what_both_have_is_compared() -> None:
    chain = torch.tensor(random_walk(20, np.random.default_rng(0)))[None]
    model = chain.clone()
    model[0, :5] += 50
    present = torch.ones(1, 20)
    present[0, :5] = 0
    result = rmsd(model, chain, torch.ones(1, 20), present)
    assert result.score.item() == pytest.approx(0, abs=1e-9)
    assert result.n_atoms.item() == 15


def test_edges() -> None:
    chain = torch.randn(1, 3, 3)
    assert rmsd(chain, chain, torch.zeros(1, 3)).score.isnan().all()
    assert rmsd(chain[:, :1] + 4, chain[:, :1], torch.ones(1, 1)).score.item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="predicted"):
        rmsd(chain * math.nan, chain, torch.ones(1, 3))


def test_can_be_minimised() -> None:
    """The gradient leads to the reference, whatever its orientation."""
    rng = np.random.default_rng(1)
    chain = torch.tensor(random_walk(15, rng))[None]
    model = (
        chain @ torch.tensor(random_rotation(rng)).mT + torch.tensor(rng.normal(size=chain.shape))
    ).requires_grad_()
    first = rmsd(model, chain, torch.ones(1, 15)).score.item()
    for _ in range(60):
        score = rmsd(model, chain, torch.ones(1, 15)).score
        (gradient,) = torch.autograd.grad(score.sum(), model)
        model = (model - 0.5 * gradient).detach().requires_grad_()
    assert score.item() < 0.3 * first

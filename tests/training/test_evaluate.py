"""Scores of a run are those of the file that anybody would predict and score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from Bio.PDB import PDBParser
from tmtools import tm_align

from protfold_peft import load_model, predict, write_pdb
from protfold_peft.data import read_chains
from protfold_peft.training import evaluate, predictions
from protfold_peft.training.evaluate import Folded, calibration, fold_chains, mean_scores

NAME = "protfold-mini-untrained"


@pytest.fixture(scope="module")
def loaded():
    return load_model(NAME, device="cpu")


def test_atoms_and_scores_are_those_of_the_predicted_file(loaded, structures: Path, tmp_path: Path) -> None:
    """With an unknown residue, which the model gives a backbone; read back by Biopython."""
    chain = next(one for one in read_chains(structures).chains if one.name == "1LCD_A")
    letters = chain.sequence[:4] + "X" + chain.sequence[5:]
    aatype = chain.aatype.copy()
    aatype[4] = 20
    chain = replace(chain, sequence=letters, aatype=aatype)
    (folded,) = fold_chains(loaded.network, [chain], 0)
    write_pdb(predict(loaded, letters, recycles=0).structure, tmp_path / "one.pdb")
    residues = list(PDBParser(QUIET=True).get_structure("one", tmp_path / "one.pdb").get_residues())
    assert len(residues) == len(chain)
    for place, residue in enumerate(residues):
        np.testing.assert_allclose(residue["CA"].coord, folded.atoms[place, 1].numpy(), atol=1.1e-3)
        assert (folded.atoms[place] != 0).any(dim=-1).sum() == len(residue)
    assert folded.scores["plddt"] == pytest.approx(folded.plddt.mean().item())


def test_scores_of_chains_together_are_those_of_each(loaded, structures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of mixed lengths, some with gaps: in batches of several sizes, in the order that they were given."""
    chains = read_chains(structures).chains
    chains = sorted((one for one in chains if len(one) <= 130), key=lambda one: one.name)
    alone = list(fold_chains(loaded.network, chains, 0))
    assert [one.name for one in alone] == [one.name for one in chains]
    assert len({one.residues for one in alone}) > 4
    monkeypatch.setattr(evaluate, "_MOST", 300)
    for one, other in zip(alone, fold_chains(loaded.network, chains, 0, together=7), strict=True):
        assert (one.name, one.residues) == (other.name, other.residues)
        assert one.scores == pytest.approx(other.scores, abs=1e-9)
        torch.testing.assert_close(one.true_lddt, other.true_lddt, rtol=0, atol=1e-12, equal_nan=True)
        assert torch.equal(one.atoms, other.atoms)
        assert torch.equal(one.plddt, other.plddt)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_scored_on_a_gpu_have_the_scores_of_a_cpu(structures: Path) -> None:
    """Of the same coordinates: those that the GPU folded, scored on it together and on the CPU one by one."""
    chains = sorted(read_chains(structures).chains, key=lambda one: one.name)
    network = load_model(NAME, device="cuda").network
    for one, chain in zip(fold_chains(network, chains, 0), chains, strict=True):
        folded = evaluate._Prediction(chain, one.atoms.double(), (one.atoms != 0).any(dim=-1), one.plddt)
        (other,) = evaluate._scored([folded])
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


def test_batches_have_little_padding_and_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_MOST", 100)
    lengths = [60, 10, 30, 16, 14, 200, 32, 33, 35]
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches = list(evaluate._batches(by_length, lengths))
    found = [[lengths[place] for place in batch] for batch in batches]
    assert found == [[10, 14], [16], [30, 32, 33], [35], [60], [200]]


def test_structures_of_the_report_lie_on_the_experiment(structures: Path) -> None:
    """A turned and shifted copy of the experiment comes back onto it; TM-align agrees that it is the same."""
    chain = next(one for one in read_chains(structures).chains if one.name == "1LCD_A")
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    turn = turn * torch.linalg.det(turn).sign()
    atoms = torch.from_numpy(chain.atom_positions).double()
    known = torch.from_numpy(chain.atom_mask)
    moved = torch.where(known[..., None], atoms @ turn + 30, 0.0).float()
    n = len(chain)
    copy = Folded(chain.name, n, {}, moved, torch.full((n,), 77.0), torch.ones(n))
    true, base, adapted = predictions.superposed(chain, copy, copy)
    assert base == adapted

    def coordinates(text: str) -> np.ndarray:
        lines = [line for line in text.splitlines() if line.startswith("ATOM") and line[12:16].strip() == "CA"]
        return np.array([[float(line[30:38]), float(line[38:46]), float(line[46:54])] for line in lines])

    np.testing.assert_allclose(coordinates(base), coordinates(true), atol=5e-3)
    result = tm_align(coordinates(base), coordinates(true), chain.sequence, chain.sequence)
    assert result.tm_norm_chain1 == pytest.approx(1.0, abs=1e-4)
    assert " 77.00" in base


def test_predictions_read_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    folded = [
        Folded(
            name,
            n,
            {"lddt_ca": 0.5, "tm_score": None},
            torch.randn(n, 37, 3, generator=generator),
            torch.rand(n, generator=generator, dtype=torch.float64),
            torch.rand(n, generator=generator, dtype=torch.float64),
        )
        for name, n in (("a", 3), ("b <x>", 5))
    ]
    predictions.save(tmp_path / "base.safetensors", folded)
    for before, after in zip(folded, predictions.read(tmp_path / "base.safetensors"), strict=True):
        assert (before.name, before.residues, before.scores) == (after.name, after.residues, after.scores)
        assert torch.equal(before.atoms, after.atoms)
        assert torch.equal(before.true_lddt, after.true_lddt)


def test_calibration_is_over_all_residues_together() -> None:
    """Against NumPy: the chains' residues in one row, those without a true lDDT left out."""
    rng = np.random.default_rng(1)
    folded, plddt, true = [], [], []
    for n in (7, 12):
        own_plddt, own_true = rng.uniform(20, 90, n), rng.uniform(0.2, 0.9, n)
        own_true[2] = np.nan
        folded.append(
            Folded("x", n, {}, torch.zeros(n, 37, 3), torch.from_numpy(own_plddt), torch.from_numpy(own_true))
        )
        plddt.append(np.delete(own_plddt, 2))
        true.append(np.delete(own_true, 2))
    x, y = np.concatenate(plddt), 100 * np.concatenate(true)
    result = calibration(folded)
    assert result["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert result["error"] == pytest.approx(np.abs(x - y).mean())
    assert result["bias"] == pytest.approx((x - y).mean())
    assert mean_scores([])["lddt_ca"] is None

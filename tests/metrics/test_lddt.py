"""CA lDDT against biotite (stored and live), OpenStructure's counts, and cases that can be counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from protfold_peft.errors import NonFiniteError
from protfold_peft.metrics import lddt

CA = 1  # place of CA among the 37 atoms
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}


def reference_pairs(test_data: Path) -> dict[str, tuple[dict, dict[str, np.ndarray]]]:
    """name -> (expected values, arrays) of the stored pairs with a CA lDDT."""
    folder = test_data / "metrics"
    expected = json.loads((folder / "expected_pairs.json").read_text())
    return {
        name: (values["lddt_ca"], dict(np.load(folder / "pairs" / name / "arrays.npz")))
        for name, values in expected.items()
        if values.get("lddt_ca")
    }


def ca_tensors(arrays: dict[str, np.ndarray], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """(model, reference, reference mask, model mask) of one pair, batch of one; NaN where an atom is absent."""
    return (
        torch.tensor(arrays["model_atom37"][None, :, CA], dtype=dtype),
        torch.tensor(arrays["ref_atom37"][None, :, CA], dtype=dtype),
        torch.tensor(arrays["ref_mask37"][None, :, CA]),
        torch.tensor(arrays["model_mask37"][None, :, CA]),
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_biotite_and_openstructure_on_stored_pairs(test_data: Path, dtype: torch.dtype) -> None:
    pairs = reference_pairs(test_data)
    assert len(pairs) >= 13
    for name, (expected, arrays) in pairs.items():
        result = lddt(*ca_tensors(arrays, dtype))
        assert result.score.item() == pytest.approx(expected["biotite"], abs=TOLERANCE[dtype]), name
        counts = expected.get("openstructure")
        if counts and abs(counts["score"] - expected["biotite"]) < 1e-9:  # the two disagree on insertion codes (S22)
            assert result.n_pairs.item() * len((0.5, 1, 2, 4)) == counts["total"], name
            of_number = {int(number): place for place, number in enumerate(arrays["ref_seqid"])}
            for number, (conserved, total) in counts["per_residue_by_ref_number"].items():
                value = result.per_residue[0, of_number[int(number)]].item()
                assert value == pytest.approx(conserved / total, abs=TOLERANCE[dtype]), (name, number)


def test_padding_changes_nothing(test_data: Path) -> None:
    """One padded batch of all pairs gives what the pairs give alone, whatever stands in the padding."""
    inputs = {name: ca_tensors(arrays, torch.float64) for name, (_, arrays) in reference_pairs(test_data).items()}
    longest = max(tensors[2].shape[1] for tensors in inputs.values())
    padded = []
    for tensors in zip(*inputs.values()):
        fill = math.nan if tensors[0].is_floating_point() else False
        padded.append(torch.stack([_pad(tensor[0], longest, fill) for tensor in tensors]))
    together = lddt(*padded)
    for row, tensors in enumerate(inputs.values()):
        alone = lddt(*tensors)
        length = tensors[2].shape[1]
        assert together.score[row] == alone.score[0]
        assert together.n_pairs[row] == alone.n_pairs[0]
        torch.testing.assert_close(
            together.per_residue[row, :length], alone.per_residue[0], rtol=0, atol=0, equal_nan=True
        )


def _pad(tensor: torch.Tensor, length: int, fill: float) -> torch.Tensor:
    result = torch.full((length, *tensor.shape[1:]), fill, dtype=tensor.dtype)
    result[: len(tensor)] = tensor
    return result


@pytest.mark.parametrize("noise", [0.2, 1.0, 5.0])
def test_equals_live_biotite(structures: Path, noise: float) -> None:
    """Every example structure, shaken; biotite reads the file and scores it without our code."""
    structure_io = pytest.importorskip("biotite.structure.io")
    biotite = pytest.importorskip("biotite.structure")
    files = sorted(structures.glob("*.pdb"))
    assert files, f"no PDB files in {structures}"
    rng = np.random.default_rng(0)
    for path in files:
        atoms = structure_io.load_structure(path, model=1)
        atoms = atoms[(atoms.atom_name == "CA") & ~atoms.hetero]
        subject = atoms.copy()
        subject.coord = (atoms.coord + rng.normal(scale=noise, size=atoms.coord.shape)).astype(np.float32)
        ours = lddt(
            torch.tensor(subject.coord[None], dtype=torch.float64),
            torch.tensor(atoms.coord[None], dtype=torch.float64),
            torch.ones(1, len(atoms), dtype=torch.bool),
        )
        # biotite tells residues apart by chain and number; one CA each, so give every atom a residue of its own.
        atoms.res_id = subject.res_id = np.arange(len(atoms))
        theirs = biotite.lddt(atoms, subject)
        assert ours.score.item() == pytest.approx(float(theirs), abs=1e-6), path.name
        per_residue = biotite.lddt(atoms, subject, aggregation="residue")
        np.testing.assert_allclose(ours.per_residue[0].numpy(), per_residue, atol=1e-6)


def line(*x: float) -> torch.Tensor:
    """Residues on the x axis, in angstrom: `(1, n, 3)` float64."""
    positions = torch.zeros(1, len(x), 3, dtype=torch.float64)
    positions[0, :, 0] = torch.tensor(x)
    return positions


def test_counted_by_hand() -> None:
    """Three residues at 0, 4, 10; the third moves by 1.5: its two distances pass at 2 and 4 only, the other at all."""
    result = lddt(line(0, 4, 11.5), line(0, 4, 10), torch.ones(1, 3))
    assert result.n_pairs.item() == 3
    assert result.score.item() == pytest.approx((4 + 2 + 2) / 12)
    assert result.per_residue[0].tolist() == pytest.approx([6 / 8, 6 / 8, 4 / 8])


def test_float64_has_all_its_digits() -> None:
    """8 of 12 distances kept, and 2 of 3 thresholds: shares that float32 cannot hold."""
    result = lddt(line(0, 4, 11.5), line(0, 4, 10), torch.ones(1, 3))
    assert result.score.dtype == result.per_residue.dtype == torch.float64
    assert result.score.item() == 8 / 12
    thirds = lddt(line(0, 4, 8), line(0, 4, 8), torch.ones(1, 3), thresholds=(0.0, -1.0, 1.0))
    assert thirds.per_residue[0].tolist() == [2 / 3] * 3


def test_pooled_over_pairs_not_averaged_over_residues() -> None:
    """Residues 0 and 20 share no distance, 10 shares one with each: the mean over residues would be 0.5 here too only
    by accident, so the middle one gets more neighbours."""
    result = lddt(line(0, 1, 2, 12, 40), line(0, 1, 2, 12, 22), torch.ones(1, 5))
    conserved_pairs, pairs = 6, 7  # (0,1) (0,2) (0,12) (1,2) (1,12) (2,12) kept, (12,22) broken
    assert result.score.item() == pytest.approx(conserved_pairs / pairs)
    assert result.per_residue.mean().item() != pytest.approx(conserved_pairs / pairs)


def test_atoms_the_model_lacks_are_failures() -> None:
    reference = line(0, 4, 8)
    predicted = reference.clone()
    predicted[0, 2] = math.nan
    result = lddt(predicted, reference, torch.ones(1, 3), torch.tensor([[True, True, False]]))
    assert result.score.item() == pytest.approx(1 / 3)
    assert result.per_residue[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_distance_beyond_the_radius_is_not_judged() -> None:
    assert lddt(line(0, 15.0), line(0, 15.0), torch.ones(1, 2)).n_pairs.item() == 1
    assert lddt(line(0, 15.1), line(0, 15.1), torch.ones(1, 2)).n_pairs.item() == 0


@pytest.mark.parametrize("positions", [line(1.0), line(0, 20)])
def test_nothing_to_judge_is_nan(positions: torch.Tensor) -> None:
    result = lddt(positions, positions, torch.ones(positions.shape[:2]))
    assert result.n_pairs.item() == 0
    assert result.score.isnan().all()
    assert result.per_residue.isnan().all()


def test_rigid_motion_and_distance_from_the_origin_change_nothing() -> None:
    rng = np.random.default_rng(1)
    reference = torch.tensor(rng.normal(scale=12, size=(2, 60, 3)))
    predicted = reference + torch.tensor(rng.normal(scale=1.0, size=reference.shape))
    rotation = torch.linalg.qr(torch.tensor(rng.normal(size=(3, 3)))).Q
    mask = torch.ones(2, 60)
    expected = lddt(predicted, reference, mask).score
    torch.testing.assert_close(lddt(predicted @ rotation + 7.0, reference, mask).score, expected)
    far = lddt((predicted + 500).float(), (reference - 500).float(), mask).score
    assert far.dtype == torch.float32
    torch.testing.assert_close(far.double(), expected, atol=2e-4, rtol=0)


def test_nan_is_refused_and_named() -> None:
    predicted = line(0, 4, 8)
    predicted[0, 1, 2] = math.nan
    with pytest.raises(NonFiniteError, match="predicted coordinates of sample 0, residue 1"):
        lddt(predicted, line(0, 4, 8), torch.ones(1, 3))
    with pytest.raises(NonFiniteError, match="reference"):
        lddt(line(0, 4, 8), predicted, torch.ones(1, 3))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="two \\(batch, residues, 3\\)"):
        lddt(line(0, 1), line(0, 1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="mask"):
        lddt(line(0, 1), line(0, 1), torch.ones(2))

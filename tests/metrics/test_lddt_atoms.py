"""lDDT of several atoms per residue: biotite and OpenStructure, stored and live; naming; what holds for any input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_pairs import Pair, random_rotation, random_walk, stored_json, stored_pairs

from protfold_peft.metrics import lddt
from protfold_peft.metrics import neighbours as neighbours_module
from protfold_peft.metrics.naming import TWINS, twin_atoms
from protfold_peft.structure import read_structure
from protfold_peft.structure.geometry import restypes_of
from protfold_peft.structure.residues import ATOM_INDEX, ATOM_TYPES, ONE_TO_THREE, RESTYPES

SEEDS = st.integers(0, 2**32 - 1)
# Float32 coordinates move atoms by 4e-6 A: a few distances of a hundred thousand cross a threshold.
TOLERANCE = {torch.float64: 5e-6, torch.float32: 1e-5}


def one_count(pair: Pair) -> float:
    """The score of one distance at one threshold: other programs reckon in float32 and may see one differently."""
    return 1.1 / (4 * lddt(*pair.backbone).n_pairs.item())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_stored_backbone_and_heavy_atoms_as_named(test_data: Path, dtype: torch.dtype) -> None:
    for pair in stored_pairs(test_data, dtype):
        backbone = lddt(*pair.backbone).score.item()
        expected = pair.expected["lddt_backbone_NCACO"]["biotite"]
        assert backbone == pytest.approx(expected, abs=max(TOLERANCE[dtype], one_count(pair))), pair.name
        heavy = lddt(*pair.all_atoms)
        expected = pair.expected["lddt_heavy"]["biotite_no_symmetry"]
        assert heavy.score.item() == pytest.approx(expected, abs=TOLERANCE[dtype]), pair.name
        # Six decimals; a count more or less where biotite's float32 decides.
        judged = 1 / 1000
        per_residue = np.array(pair.expected["lddt_heavy"]["per_residue_biotite"], dtype=float)
        np.testing.assert_allclose(heavy.per_residue[0].numpy(), per_residue, atol=judged, err_msg=pair.name)
        assert np.median(np.abs(heavy.per_residue[0].numpy() - per_residue)) < 1e-6


@pytest.mark.parametrize("stereochemistry", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_stored_better_naming_equals_openstructure(test_data: Path, dtype: torch.dtype, stereochemistry: bool) -> None:
    compared = []
    for pair in stored_pairs(test_data, dtype):
        name = "openstructure_symmetry_stereo" if stereochemistry else "openstructure_symmetry"
        expected = pair.expected["lddt_heavy"][name]
        if expected is None:  # S26: shifted numbers, which it cannot match
            continue
        result = lddt(*pair.all_atoms, restypes=pair.restypes, stereochemistry=stereochemistry)
        if 4 * result.n_pairs.item() != expected["total"]:
            # S22: it takes residues 52 and 52A for one.
            assert any(not number.isdigit() for number in pair.reference_numbers), pair.name
            assert result.score.item() == pytest.approx(expected["score"], abs=2e-5)
            continue
        compared.append(pair.name)
        assert result.score.item() == pytest.approx(expected["score"], abs=TOLERANCE[dtype]), pair.name
        for number, (kept, total) in expected.get("per_residue_by_ref_number", {}).items():
            value = result.per_residue[0, pair.reference_numbers.index(number)].item()
            # One distance of thousands may fall on the other side of a threshold in its float32.
            assert value * total == pytest.approx(kept, abs=1.01 if dtype == torch.float64 else 2.01), (
                pair.name,
                number,
            )
    assert len(compared) == 11


def test_stored_ensemble(test_data: Path) -> None:
    for name, ensemble in stored_json(test_data, "ensembles").items():
        path = test_data / "metrics" / "ensembles" / f"{name}.pdb"
        chains = [read_structure(path, model=k + 1).chains[0] for k in range(ensemble["n_models"])]
        positions = torch.tensor(np.stack([chain.atom_positions for chain in chains]))
        mask = torch.tensor(np.stack([chain.atom_mask for chain in chains]))
        mask[..., ATOM_INDEX["OXT"]] = False  # left out of the stored values
        reference, reference_mask = positions[:1].expand_as(positions), mask[:1].expand_as(mask)
        heavy = lddt(positions, reference, reference_mask, mask).score
        ca = lddt(positions[:, :, 1], reference[:, :, 1], reference_mask[:, :, 1]).score
        np.testing.assert_allclose(ca, [value["lddt_ca"] for value in ensemble["values"]], atol=1e-6)
        expected = [value["lddt_heavy_no_symmetry"] for value in ensemble["values"]]
        # 20 residues: one of 40,296 counts is 2.5e-5.
        np.testing.assert_allclose(heavy, expected, atol=5e-5)
        assert np.median(np.abs(heavy.numpy() - expected)) < 1e-6


@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_live_biotite(structures: Path, noise: float) -> None:
    """All heavy atoms of the example structures, shaken; biotite reads the file and scores it without our code."""
    structure_io, biotite = pytest.importorskip("biotite.structure.io"), pytest.importorskip("biotite.structure")
    rng = np.random.default_rng(0)
    for path in sorted(structures.glob("*.pdb")):
        atoms = structure_io.load_structure(path, model=1)
        atoms = atoms[~atoms.hetero & np.isin(atoms.atom_name, ATOM_TYPES)]
        subject = atoms.copy()
        subject.coord = (atoms.coord + rng.normal(scale=noise, size=atoms.coord.shape)).astype(np.float32)
        places = biotite.get_residue_starts(atoms, add_exclusive_stop=True)
        row = np.repeat(np.arange(len(places) - 1), np.diff(places))
        column = [ATOM_INDEX[name] for name in atoms.atom_name]
        model, reference = np.zeros((2, len(places) - 1, 37, 3))
        mask = np.zeros(model.shape[:2], dtype=bool)
        model[row, column], reference[row, column], mask[row, column] = subject.coord, atoms.coord, True
        ours = lddt(torch.tensor(model)[None], torch.tensor(reference)[None], torch.tensor(mask)[None])
        atoms.res_id = subject.res_id = row
        theirs = float(biotite.lddt(atoms, subject))
        assert ours.score.item() == pytest.approx(theirs, abs=max(5e-6, 1 / ours.n_pairs.item())), path.name


def residues_of(sequence: str, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compact made-up residues with all their atoms: `(1, n, 37, 3)`, `(1, n, 37)`, `(1, n)`."""
    from protfold_peft.structure.residues import ATOM37_MASK

    rng = np.random.default_rng(seed)
    restypes = restypes_of(sequence)
    centres = random_walk(len(sequence), rng)
    positions = centres[:, None] + rng.normal(scale=1.5, size=(len(sequence), 37, 3))
    return torch.tensor(positions)[None], torch.tensor(np.array(ATOM37_MASK[restypes]))[None], restypes[None]


def exchanged(positions: torch.Tensor, restypes: torch.Tensor) -> torch.Tensor:
    """The same atoms with all twins' names exchanged."""
    return positions.gather(2, twin_atoms(restypes)[..., None].expand_as(positions))


def test_exchanged_names_cost_nothing_when_the_better_naming_is_taken() -> None:
    reference, mask, restypes = residues_of("".join(RESTYPES[:20]) * 2, 0)
    model = exchanged(reference, restypes)
    assert lddt(model, reference, mask).score.item() < 0.999
    assert lddt(model, reference, mask, restypes=restypes).score.item() == 1
    assert lddt(reference, reference, mask, restypes=restypes).score.item() == 1


def test_an_atom_may_stand_for_a_twin_that_the_reference_lacks() -> None:
    reference, mask, restypes = residues_of("AGDGA", 1)
    reference_mask = mask.clone()
    reference_mask[0, 2, ATOM_INDEX["OD2"]] = False
    model = exchanged(reference, restypes)
    assert lddt(model, reference, reference_mask, mask, restypes=restypes).score.item() == 1


def test_the_seven_residues_with_twins() -> None:
    assert {"D", "E", "F", "Y", "V", "L", "R"} == {one for one, three in ONE_TO_THREE.items() if three in TWINS}
    twins = twin_atoms(torch.arange(21)[None])[0]
    assert torch.equal(twins.gather(1, twins), torch.arange(37).repeat(21, 1))
    assert (twins != torch.arange(37)).sum().item() == 2 * (1 + 1 + 2 + 2 + 1 + 1 + 1)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 25), st.integers(0, 5), st.booleans())
def test_any_input(seed: int, n: int, more: int, naming: bool) -> None:
    """Bounds, rigid motion, mirror images, padding, and the sums over residues."""
    rng = np.random.default_rng(seed)
    sequence = "".join(rng.choice(list(RESTYPES[:20]), size=n))
    reference, mask, restypes = residues_of(sequence, seed)
    model = reference + torch.tensor(rng.normal(scale=rng.uniform(0.1, 3), size=reference.shape))
    present = mask & torch.tensor(rng.random(mask.shape) > 0.1)
    options = {"restypes": restypes} if naming else {}
    result = lddt(model, reference, mask, present, **options)
    assert 0 <= result.score.item() <= 1
    turn, shift = torch.tensor(random_rotation(rng)), torch.tensor(rng.normal(scale=30, size=3))
    for motion in (turn, -turn):
        moved = lddt(model @ motion.mT + shift, reference, mask, present, **options)
        torch.testing.assert_close(moved.score, result.score, atol=2 / result.n_pairs.item(), rtol=0)
    none = torch.zeros(1, more, 37, dtype=torch.bool)
    pad = torch.full((1, more, 37, 3), math.nan).double()
    if naming:
        options = {"restypes": torch.cat([torch.full((1, more), 3), restypes], 1)}
    wide = lddt(
        torch.cat([pad, model], 1),
        torch.cat([pad, reference], 1),
        torch.cat([none, mask], 1),
        torch.cat([none, present], 1),
        **options,
    )
    assert torch.equal(wide.score, result.score)
    assert torch.equal(wide.n_pairs, result.n_pairs)
    torch.testing.assert_close(wide.per_residue[:, more:], result.per_residue, rtol=0, atol=0, equal_nan=True)
    if naming:
        assert result.score >= lddt(model, reference, mask, present).score - 0.05


def test_symmetric_when_every_distance_is_judged() -> None:
    """Within a small ball all pairs are judged whichever structure is the reference."""
    rng = np.random.default_rng(4)
    one, other = (torch.tensor(rng.normal(scale=1.5, size=(1, 20, 3))) for _ in range(2))
    mask = torch.ones(1, 20)
    assert lddt(one, other, mask).n_pairs.item() == 190
    assert lddt(one, other, mask).score.item() == lddt(other, one, mask).score.item()


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, mask, restypes = residues_of("".join(RESTYPES[:20]) * 3, 5)
    model = reference + torch.randn(reference.shape, generator=torch.Generator().manual_seed(0)).double()
    batch = [torch.cat([x, x.flip(1)]) for x in (model, reference, mask)]
    types = torch.cat([restypes, restypes.flip(1)])
    expected = lddt(*batch, restypes=types)
    for budget in (1, 500, 10_000):
        monkeypatch.setattr(neighbours_module, "BLOCK_CPU", budget)
        result = lddt(*batch, restypes=types)
        assert torch.equal(result.per_residue, expected.per_residue)
        assert torch.equal(result.n_pairs, expected.n_pairs)


def test_bad_input_is_refused() -> None:
    reference, mask, restypes = residues_of("ACDEF", 0)
    with pytest.raises(ValueError, match="restypes"):
        lddt(reference[:, :, :4], reference[:, :, :4], mask[:, :, :4], restypes=restypes)
    with pytest.raises(ValueError, match="restypes"):
        lddt(reference, reference, mask, stereochemistry=True)
    with pytest.raises(ValueError, match="restypes"):
        lddt(reference[:, :, 1], reference[:, :, 1], mask[:, :, 1], restypes=restypes)
    spoilt = reference.clone()
    spoilt[0, 3, 1] = math.nan
    with pytest.raises(ValueError, match="sample 0, residue 3"):
        lddt(spoilt, reference, mask)
    assert lddt(torch.zeros(0, 4, 3), torch.zeros(0, 4, 3), torch.zeros(0, 4)).score.shape == (0,)
    assert lddt(reference, reference, torch.zeros_like(mask), restypes=restypes).score.isnan().all()

"""Interface scores against values of the DockQ program, OpenStructure's QS-score, and cases with exact answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_chains import moved, rotation, taken

from protfold_peft.evaluation.interfaces import score_complex
from protfold_peft.evaluation.matching import match_structures
from protfold_peft.metrics import NonFiniteCoordinatesError
from protfold_peft.metrics.interface import (
    ChainPositions,
    dockq,
    qs_score,
    residue_distances,
    score_interface,
)
from protfold_peft.structure import read_structure

# DockQ 2.1.3 (PyPI) on the files of expected_complexes.json, with the mapping of the chains given:
# python -m DockQ.DockQ model.pdb ref.pdb --mapping AB:AB (C5: CBA:ABC), its JSON: DockQ, iRMSD, LRMSD, fnat, fnonnat.
DOCKQ = {
    "C1_homodimer_m1": {"A-B": (0.43900855, 3.73204159, 9.98757067, 72 / 95, 0.20879121)},
    "C3_T0921-T0922_TS188": {"A-B": (0.25769542, 5.61219239, 11.35326109, 25 / 72, 0.609375)},
}


def case(test_data, name):
    folder = test_data / "metrics" / "complexes" / name
    model, reference = read_structure(folder / "model.pdb"), read_structure(folder / "ref.pdb")
    return match_structures(model, reference, way="auto", min_identity=0.4)[0]


def laid(reference, model=None):
    model = reference if model is None else model
    arrays = (reference.atom_positions, reference.atom_mask, model.atom_positions, model.atom_mask)
    return ChainPositions(*(torch.from_numpy(np.array(array)) for array in arrays))


@pytest.fixture(scope="module")
def dimer():
    """Two real chains that touch: the halves of one protein."""
    chain = read_structure(Path(__file__).resolve().parents[2] / "structures" / "1A7G_E.pdb").chains[0]
    return taken(chain, range(45), id="A"), taken(chain, range(48, 82), id="B")


@pytest.mark.parametrize("name", DOCKQ)
def test_dockq_of_real_complexes_is_that_of_the_program(test_data, name):
    scores = score_complex(case(test_data, name))
    assert [chains for chains, _, _ in scores.interfaces] == list(DOCKQ[name])
    for chains, _, interface in scores.interfaces:
        found = (interface.dockq, interface.irmsd, interface.lrmsd, interface.fnat, interface.fnonnat)
        # The program keeps coordinates in single precision.
        assert found == pytest.approx(DOCKQ[name][chains], abs=1e-5)
    assert scores.dockq == pytest.approx(np.mean([values[0] for values in DOCKQ[name].values()]), abs=1e-5)


def test_dockq_of_the_trimer(test_data):
    """DockQ 2.1.3 with the mapping ABC (reference) to BAC, which is as good as ours."""
    scores = score_complex(case(test_data, "C5_T0860_TS203"))
    assert [interface.n_contacts for _, _, interface in scores.interfaces] == [77, 77, 77]
    assert [interface.fnat for _, _, interface in scores.interfaces] == pytest.approx([37 / 77] * 3)
    assert [interface.irmsd for _, _, interface in scores.interfaces] == pytest.approx([2.14436] * 3, abs=1e-5)
    lrmsds = [interface.lrmsd for _, _, interface in scores.interfaces]
    assert lrmsds == pytest.approx([3.504633, 3.060959, 3.504634], abs=1e-5)
    values = [interface.dockq for _, _, interface in scores.interfaces]
    assert values == pytest.approx([0.554590, 0.564758, 0.554590], abs=1e-5)


def test_qs_score_is_openstructures(test_data):
    """Its coordinates are in single precision; a distance at the edge of 12 A weighs next to nothing."""
    expected = json.loads((test_data / "metrics" / "expected_complexes.json").read_text())
    for name, values in expected.items():
        scores = score_complex(case(test_data, name))
        assert scores.qs_score == pytest.approx(values["openstructure_2.3.1"]["qs_global"], abs=1e-5), name


def test_a_rigidly_moved_complex_is_perfect(dimer):
    first, second = dimer
    turn, shift = rotation(3), (10, 20, -30)
    found = score_interface(laid(first, moved(first, turn, shift)), laid(second, moved(second, turn, shift)))
    assert found is not None
    assert (found.fnat, found.fnonnat) == (1, 0)
    assert found.irmsd == pytest.approx(0, abs=1e-9)
    assert found.lrmsd == pytest.approx(0, abs=1e-9)
    assert found.dockq == pytest.approx(1)


@pytest.mark.parametrize("distance", [0.5, 3.0, 8.5, 40.0])
def test_a_shifted_ligand_has_that_lrmsd(dimer, distance):
    """The longer chain is the receptor and stays: LRMSD is how far the other one went."""
    first, second = dimer
    away = moved(second, np.eye(3), (0, 0, distance))
    found = score_interface(laid(first), laid(second, away))
    assert found is not None
    assert found.lrmsd == pytest.approx(distance)
    # The superposition can only make the distance of both halves smaller.
    assert 0 < found.irmsd < distance
    if distance == 40:
        assert found.fnat == 0
    expected = (found.fnat + 1 / (1 + (found.irmsd / 1.5) ** 2) + 1 / (1 + (distance / 8.5) ** 2)) / 3
    assert found.dockq == pytest.approx(expected)


def test_dockq_formula_at_its_scales():
    assert dockq(1, 0, 0) == 1
    assert dockq(0.5, 1.5, 8.5) == 0.5
    assert dockq(0, 1e9, 1e9) == pytest.approx(0)


def test_the_receptor_of_equal_chains_is_the_second():
    """Two chains of four residues; the second, being the receptor, is superposed exactly, so the first is off."""
    grid = np.zeros((4, 37, 3))
    for residue in range(4):
        for place, atom in enumerate((0, 1, 2, 4)):
            grid[residue, atom] = (3.8 * residue + 0.7 * place, 0.4 * place**2, 0.3 * place * residue)
    mask = np.zeros((4, 37), bool)
    mask[:, [0, 1, 2, 4]] = True
    first = tuple(torch.from_numpy(array) for array in (grid, mask))
    beside = torch.from_numpy(np.where(mask[..., None], grid + np.array([0, 0, 4]), 0.0))
    stretched = torch.from_numpy(np.where(mask[..., None], grid * np.array([1.1, 1, 1]), 0.0))
    found = score_interface(
        ChainPositions(first[0], first[1], stretched, first[1]), ChainPositions(beside, first[1], beside, first[1])
    )
    assert found is not None
    off = (stretched - first[0])[first[1]]
    assert found.lrmsd == pytest.approx(float(off.square().sum(-1).mean().sqrt()))


def test_chains_that_do_not_touch_have_no_interface(dimer):
    first, second = dimer
    assert score_interface(laid(first), laid(moved(second, np.eye(3), (200, 0, 0)))) is None


def test_a_missing_chain_has_lost_all(dimer):
    first, second = dimer
    gone = replace(second, atom_mask=np.zeros_like(second.atom_mask))
    found = score_interface(laid(first), laid(second, gone))
    assert found is not None
    assert (found.fnat, found.dockq) == (0, 0)
    assert np.isnan(found.lrmsd)


def test_residues_the_model_lacks_lose_their_contacts(dimer):
    first, second = dimer
    distances = residue_distances(
        *(torch.from_numpy(np.array(array)) for part in dimer for array in (part.atom_positions, part.atom_mask))
    )
    contacts = (distances < 5).numpy()
    mask = second.atom_mask.copy()
    mask[: len(second) // 2] = False
    found = score_interface(laid(first), laid(second, replace(second, atom_mask=mask)))
    assert found is not None
    assert found.fnat == contacts[:, len(second) // 2 :].sum() / contacts.sum()
    assert found.lrmsd == pytest.approx(0, abs=1e-9)


def test_residue_distances_by_brute_force(dimer):
    first, second = (taken(part, range(12)) for part in dimer)
    found = residue_distances(
        *(torch.from_numpy(np.array(a)) for part in (first, second) for a in (part.atom_positions, part.atom_mask))
    )
    for i in range(12):
        for j in range(12):
            one = first.atom_positions[i][first.atom_mask[i]]
            other = second.atom_positions[j][second.atom_mask[j]]
            assert found[i, j] == pytest.approx(np.linalg.norm(one[:, None] - other[None], axis=-1).min())


def points(*xyz):
    return torch.tensor(xyz, dtype=torch.float64), torch.ones(len(xyz), dtype=torch.bool)


def test_qs_score_of_two_residues_by_hand():
    """One contact of 7 A that becomes 9 A: the weights are exp(-2 ((d - 5) / 4.28)^2), and 2 A of 12 are lost."""
    reference = [points((0, 0, 0)), points((7, 0, 0))]
    model = [points((0, 0, 0)), points((9, 0, 0))]
    rows = torch.tensor([0])
    found = qs_score(reference, model, [(0, rows), (1, rows)])
    assert found.overall == found.best == pytest.approx(1 - 2 / 12)
    # A contact of a third chain that the reference lacks counts in the overall score alone.
    extra = [*model, points((12, 0, 0))]
    weight, added = np.exp(-2 * (2 / 4.28) ** 2), 1.0
    found = qs_score(reference, extra, [(0, rows), (1, rows)])
    assert found.best == pytest.approx(1 - 2 / 12)
    # The first and third chains are 12 A apart, which is no contact.
    assert found.overall == pytest.approx(weight * (1 - 2 / 12) / (weight + added))


def test_qs_score_without_contacts_is_undefined_and_lost_ones_score_nothing():
    rows = torch.tensor([0])
    apart = [points((0, 0, 0)), points((50, 0, 0))]
    near = [points((0, 0, 0)), points((6, 0, 0))]
    partners = [(0, rows), (1, rows)]
    assert np.isnan(qs_score(apart, apart, partners).overall)
    assert qs_score(near, apart, partners).overall == 0
    assert qs_score(apart, near, partners).best == 0
    assert qs_score(near, near[:1], [(0, rows), (-1, torch.tensor([-1]))]).overall == 0


def test_every_pair_of_chains_is_looked_at():
    reference = [points((0, 0, 5.0 * place)) for place in range(4)]
    rows = torch.tensor([0])
    model = [points((0, 0, 5.0 * place)) for place in (0, 1, 2, 30)]
    partners = [(place, rows) for place in range(4)]
    assert qs_score(reference, reference, partners).overall == pytest.approx(1)
    # Three contacts of 5 A and two of 10 A; the last chain takes one and one with it.
    near, far = 1.0, np.exp(-2 * (5 / 4.28) ** 2)
    expected = (2 * near + far) / (3 * near + 2 * far)
    assert qs_score(reference, model, partners).overall == pytest.approx(expected)


@pytest.mark.parametrize(("side", "what"), [("reference", "reference"), ("model", "predicted")])
def test_nan_is_refused_where_it_takes_part(dimer, side, what):
    first, second = (laid(part) for part in dimer)
    spoilt = getattr(second, side).clone()
    spoilt[3, 1, 2] = np.nan
    second = replace(second, **{side: spoilt})
    with pytest.raises(NonFiniteCoordinatesError, match=f"{what} coordinates of sample 0, residue 3"):
        score_interface(first, second)
    cb = [(getattr(chain, side)[:, 1], chain.reference_mask[:, 1]) for chain in (first, second)]
    whole = [(chain.reference[:, 1], chain.reference_mask[:, 1]) for chain in (first, first)]
    partners = [(place, torch.arange(len(first))) for place in range(2)]
    with pytest.raises(NonFiniteCoordinatesError, match=what):
        qs_score(*((cb, whole) if side == "reference" else (whole, cb)), partners)
    # Where the mask leaves it out, it does not matter.
    mask = second.model_mask.clone()
    mask[3, 1] = False
    absent = replace(second, **{f"{side}_mask": mask})
    assert score_interface(first, absent) is not None

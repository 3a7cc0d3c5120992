"""Chain mappings whose truth is known: complexes built from copies, exchanged, renamed and disturbed."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from made_chains import moved, renumbered, ring, rotation, taken

from protfold_peft.errors import StructureError
from protfold_peft.metrics.chain_mapping import map_chains
from protfold_peft.metrics.tm_score import tm_score
from protfold_peft.structure import read_structure

STRUCTURES = Path(__file__).resolve().parents[2] / "structures"


@pytest.fixture(scope="module")
def chain():
    return read_structure(STRUCTURES / "1A8O_A.pdb").chains[0]


@pytest.fixture(scope="module")
def other():
    return read_structure(STRUCTURES / "1A7G_E.pdb").chains[0]


def pairs(mapping, model, reference):
    return {reference[match.reference].id: model[match.model].id for match in mapping.matches}


def irregular(chain, n, seed=0):
    """Copies of a chain at places without any symmetry: one mapping is right and all others are wrong."""
    random = np.random.default_rng(seed)
    return [
        moved(chain, rotation(100 * seed + place), random.uniform(-60, 60, 3), id="ABCDEFGHIJ"[place])
        for place in range(n)
    ]


@pytest.mark.parametrize("order", list(permutations(range(4)))[1::3])
def test_exchanged_chains_are_found(chain, order):
    reference = irregular(chain, 4)
    turn = rotation(7)
    model = [moved(reference[i], turn, (5, -80, 3), id="WXYZ"[place]) for place, i in enumerate(order)]
    mapping = map_chains(model, reference)
    assert mapping.exact
    assert pairs(mapping, model, reference) == {reference[i].id: "WXYZ"[place] for place, i in enumerate(order)}


def test_more_chains_than_can_be_enumerated(chain):
    reference = irregular(taken(chain, range(30)), 8, seed=2)
    order = np.random.default_rng(1).permutation(8)
    noise = np.random.default_rng(2)
    model = [
        replace(
            moved(reference[i], rotation(3), (1, 2, 3), id="STUVWXYZ"[place]),
            atom_positions=reference[i].atom_positions @ rotation(3).T + noise.normal(0, 0.7, (30, 37, 3)),
        )
        for place, i in enumerate(order)
    ]
    mapping = map_chains(model, reference)
    assert not mapping.exact
    assert pairs(mapping, model, reference) == {reference[i].id: "STUVWXYZ"[place] for place, i in enumerate(order)}


def test_the_mapping_has_the_best_tm_score_of_all(chain):
    """Against every permutation, scored by the TM-score itself, on distorted models of poor quality."""
    short = taken(chain, range(0, 70, 2))
    for seed in range(3):
        random = np.random.default_rng(seed)
        reference = irregular(short, 3, seed=seed)
        model = [
            moved(part, rotation(50 + place), random.normal(0, 8, 3), id=part.id)
            if place == seed
            else replace(part, atom_positions=part.atom_positions + random.normal(0, 2, part.atom_positions.shape))
            for place, part in enumerate(reference)
        ]
        model = [replace(model[i], id="XYZ"[place]) for place, i in enumerate(random.permutation(3))]
        target = torch.from_numpy(np.concatenate([part.atom_positions[:, 1] for part in reference]))
        scores = {}
        for order in permutations(range(3)):
            mobile = torch.from_numpy(np.concatenate([model[i].atom_positions[:, 1] for i in order]))
            there = torch.ones(1, len(target), dtype=torch.bool)
            scores[order] = float(tm_score(mobile[None], target[None], there, search="irls").score)
        mapping = map_chains(model, reference)
        found = tuple(match.model for match in mapping.matches)
        assert scores[found] >= max(scores.values()) - 2e-3


def test_equally_good_mappings_keep_the_chain_ids(chain):
    reference = ring(chain, 3, 25)
    model = [moved(part, rotation(1), (3, 2, 1), id=part.id) for part in reference]
    mapping = map_chains(model[::-1], reference)
    assert pairs(mapping, model[::-1], reference) == {"A": "A", "B": "B", "C": "C"}


def test_sequences_decide_before_anything_else(chain, other):
    reference = [replace(chain, id="A"), moved(other, rotation(2), (40, 0, 0), id="B")]
    model = [moved(other, rotation(9), id="A"), moved(chain, rotation(8), (0, 30, 0), id="B")]
    mapping = map_chains(model, reference)
    assert pairs(mapping, model, reference) == {"A": "B", "B": "A"}


def test_shifted_numbers_and_missing_residues_do_not_matter(chain, other):
    reference = [replace(chain, id="A"), moved(other, rotation(2), (40, 0, 0), id="B")]
    model = [renumbered(taken(other, range(10, 70)), 300), renumbered(taken(chain, range(5, 70)), -20)]
    mapping = map_chains(model, reference)
    assert [match.residues.n_matched for match in mapping.matches] == [65, 60]
    assert {match.residues.matched_by for match in mapping.matches} == {"alignment"}


def test_chains_left_over_on_either_side(chain):
    reference = irregular(chain, 4)
    model = [moved(reference[i], rotation(4), id=reference[i].id) for i in (3, 1)]
    mapping = map_chains(model, reference)
    assert pairs(mapping, model, reference) == {"B": "B", "D": "D"}
    back = map_chains(reference, model)
    assert pairs(back, reference, model) == {"D": "D", "B": "B"}


def test_a_truncated_copy_is_still_a_candidate(chain):
    reference = irregular(chain, 2)
    model = [
        moved(taken(reference[1], range(25, 70)), rotation(4), id="A"),
        moved(reference[0], rotation(4), id="B"),
    ]
    mapping = map_chains(model, reference)
    assert pairs(mapping, model, reference) == {"A": "B", "B": "A"}


def test_unrelated_complexes_are_refused(chain, other):
    with pytest.raises(StructureError, match="identity"):
        map_chains([chain, chain], [other])


def test_real_complexes_map_as_openstructure_and_us_align_map_them(test_data):
    folder = test_data / "metrics"
    expected = json.loads((folder / "expected_complexes.json").read_text())
    for name, values in expected.items():
        model = read_structure(folder / "complexes" / name / "model.pdb").chains
        reference = read_structure(folder / "complexes" / name / "ref.pdb").chains
        mapping = map_chains(model, reference)
        found = pairs(mapping, model, reference)
        theirs = values["openstructure_2.3.1"]["chain_mapping_ref_to_model"]
        # The trimer has three equivalent mappings: the cyclic order is what can be right or wrong.
        if len(theirs) == 3:
            cycle = [{"A": a, "B": b, "C": c} for a, b, c in ("BAC", "ACB", "CBA")]
            assert theirs in cycle
            assert found in cycle
        else:
            assert found == theirs

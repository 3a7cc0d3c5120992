"""Which residue stands for which: the truth is known because the second chain is made from the first."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from Bio.Align import PairwiseAligner, substitution_matrices
from made_chains import renumbered, taken

from protfold_peft.errors import StructureError
from protfold_peft.metrics.correspondence import correspond
from protfold_peft.structure import read_structure
from protfold_peft.structure.residues import ONE_TO_THREE


@pytest.fixture(scope="module")
def chain():
    return read_structure(Path(__file__).resolve().parents[2] / "structures" / "1A7G_E.pdb").chains[0]


def mutated(chain, rows, letter="W"):
    letters = list(chain.sequence)
    names = list(chain.residue_names)
    for row in rows:
        letters[row] = letter if letters[row] != letter else "A"
        names[row] = ONE_TO_THREE[letters[row]]
    return replace(chain, sequence="".join(letters), residue_names=tuple(names))


def test_equal_numbers_and_names_match_by_number(chain):
    found = correspond(chain, chain)
    assert found.matched_by == "number"
    assert found.model_index.tolist() == list(range(len(chain)))
    assert found.coverage == found.identity == 1


@pytest.mark.parametrize("rows", [range(10, 60), [0, 3, 4, 5, *range(20, 82)], range(81)])
def test_residues_the_model_lacks_have_no_partner(chain, rows):
    rows = list(rows)
    found = correspond(taken(chain, rows), chain)
    expected = np.full(len(chain), -1)
    expected[rows] = np.arange(len(rows))
    assert found.matched_by == "number"
    assert found.model_index.tolist() == expected.tolist()
    assert found.coverage == len(rows) / len(chain)


def test_residues_the_reference_lacks_are_left_out(chain):
    rows = np.arange(20, 70)
    found = correspond(chain, taken(chain, rows))
    assert found.model_index.tolist() == rows.tolist()
    assert found.n_model == len(chain)
    assert found.coverage == 1


@pytest.mark.parametrize("shift", [1, -1, 7, 100, -300])
def test_shifted_numbers_are_not_believed(chain, shift):
    found = correspond(renumbered(chain, shift), chain)
    assert found.matched_by == "alignment"
    assert found.model_index.tolist() == list(range(len(chain)))
    forced = correspond(renumbered(chain, 1), chain, way="number")
    assert forced.matched_by == "number"
    assert forced.identity < 0.3
    assert forced.model_index.tolist() == [-1, *range(len(chain) - 1)]


def test_insertion_codes_are_part_of_a_number(chain):
    part = taken(chain, range(30))
    numbers = np.array([*range(1, 11), *[10] * 5, *range(11, 26)])
    codes = ("",) * 10 + tuple("ABCDE") + ("",) * 15
    reference = replace(part, residue_numbers=numbers, insertion_codes=codes)
    without = taken(reference, [*range(11), *range(13, 30)])
    found = correspond(without, reference)
    assert found.matched_by == "number"
    assert found.model_index.tolist() == [*range(11), -1, -1, *range(11, 28)]


def test_point_mutations_keep_the_numbers_and_count_in_the_identity(chain):
    found = correspond(mutated(chain, [5, 30, 60]), chain)
    assert found.matched_by == "number"
    assert found.identity == (len(chain) - 3) / len(chain)
    # A third mutated is no longer the same protein by name; the alignment finds the same pairs.
    far = correspond(mutated(chain, range(0, len(chain), 3)), chain)
    assert far.matched_by == "alignment"
    assert far.model_index.tolist() == list(range(len(chain)))
    assert far.identity == pytest.approx(1 - 28 / 82)


def test_unknown_residues_speak_neither_for_nor_against(chain):
    unknown = list(range(0, len(chain), 2))
    letters = "".join("X" if row in unknown else letter for row, letter in enumerate(chain.sequence))
    blurred = replace(chain, sequence=letters, residue_names=("UNK",) * len(chain))
    found = correspond(blurred, chain)
    assert (found.matched_by, found.identity) == ("number", 1)
    shifted = correspond(renumbered(blurred, 5), chain)
    assert shifted.matched_by == "alignment"
    assert shifted.model_index.tolist() == list(range(len(chain)))


def test_chains_of_unknown_residues_match_by_name_and_number_only(chain):
    nameless = replace(chain, sequence="X" * len(chain), residue_names=("UNK",) * len(chain))
    assert correspond(nameless, nameless).matched_by == "number"
    with pytest.raises(StructureError, match="does not match"):
        correspond(renumbered(nameless, 200), nameless)
    # Against a named chain nothing can be compared: only force does it.
    with pytest.raises(StructureError, match="an unknown part"):
        correspond(nameless, chain)
    assert correspond(nameless, chain, way="number").n_matched == len(chain)


def test_modified_residues_match_their_parents(chain):
    names = tuple("MSE" if name == "MET" else name for name in chain.residue_names)
    assert correspond(replace(chain, residue_names=names), chain).identity == 1


def test_few_shared_numbers_give_way_to_the_alignment(chain):
    # Ten of the numbers are shared, and all their names agree; but the whole model is the reference's second half.
    reference = taken(chain, range(40))
    model = replace(reference, residue_numbers=np.array([*range(1001, 1031), *reference.residue_numbers[30:]]))
    found = correspond(model, reference)
    assert found.matched_by == "alignment"
    assert found.n_matched == 40


@pytest.mark.parametrize("cut", range(20, 40))
def test_a_gap_is_put_where_the_chain_is_broken(chain, cut):
    """In a run of one letter every place of the gap scores the same; the coordinates tell."""
    letters = "".join("G" if 18 <= row < 45 else letter for row, letter in enumerate(chain.sequence))
    names = tuple(ONE_TO_THREE[letter] for letter in letters)
    reference = replace(chain, sequence=letters, residue_names=names)
    rows = [*range(cut), *range(cut + 5, len(chain))]
    model = taken(reference, rows, residue_numbers=np.arange(500, 500 + len(rows)))
    found = correspond(model, reference)
    expected = np.full(len(chain), -1)
    expected[rows] = np.arange(len(rows))
    assert found.model_index.tolist() == expected.tolist()
    # The other way round: the model has what the reference lacks.
    back = correspond(renumbered(reference, 1000), taken(reference, rows))
    assert back.model_index.tolist() == rows


def test_alignment_has_the_score_of_biopython_with_free_ends(chain):
    """Ours may differ in where an undecided gap stands, never in the score."""
    model = mutated(taken(chain, [*range(5, 30), *range(38, 80)]), range(0, 60, 7))
    found = correspond(renumbered(model, 33), chain)
    aligner = PairwiseAligner(mode="global", substitution_matrix=substitution_matrices.load("BLOSUM62"))
    aligner.open_gap_score, aligner.extend_gap_score, aligner.end_gap_score = -11, -0.1, 0
    best = aligner.score(model.sequence, chain.sequence)
    rows = np.flatnonzero(found.model_index >= 0)
    matrix = substitution_matrices.load("BLOSUM62")
    score = sum(matrix[model.sequence[found.model_index[row]], chain.sequence[row]] for row in rows)
    for row, after in pairwise(rows):
        for skipped in (after - row - 1, found.model_index[after] - found.model_index[row] - 1):
            score -= 0 if skipped == 0 else 10.9 + 0.1 * skipped
    assert score == pytest.approx(best)


def test_short_chains(chain):
    one = taken(chain, [4])
    assert correspond(one, one).matched_by == "number"
    assert correspond(renumbered(one, 3), one).n_matched == 1
    assert correspond(renumbered(taken(chain, range(4)), 50), taken(chain, range(4))).n_matched == 4
    # Three letters turn up somewhere in any protein.
    with pytest.raises(StructureError, match="does not match"):
        correspond(renumbered(taken(chain, range(3)), 500), chain)


def test_no_shared_number_is_an_error_where_numbers_are_forced(chain):
    with pytest.raises(StructureError, match="no residue number"):
        correspond(renumbered(chain, 5000), chain, way="number")
    with pytest.raises(ValueError, match="way"):
        correspond(chain, chain, way="guess")


def test_another_protein_is_refused_with_the_identity_found(structures):
    one = read_structure(structures / "1A7G_E.pdb").chains[0]
    other = read_structure(structures / "1A8O_A.pdb").chains[0]
    with pytest.raises(StructureError, match=r"\d+ % identity over \d+ aligned residues"):
        correspond(one, other)


def test_unrelated_casp_targets_are_never_matched(test_data):
    """Every 37th of the 8,190 ordered pairs of domains; repeats of one protein are related and left out."""
    chains = [
        read_structure(path).chains[0]
        for path in sorted((test_data / "casp14").glob("*.pdb"))
        if path.stem not in ("T1061-D0", "T1091-D4")
    ]
    pairs = list(permutations(chains, 2))[::37]
    assert len(pairs) > 200
    for model, reference in pairs:
        with pytest.raises(StructureError, match="identity"):
            correspond(model, reference)


def test_casp_targets_match_their_deleted_and_shifted_selves(test_data):
    random = np.random.default_rng(0)
    for path in sorted((test_data / "casp14").glob("*.pdb")):
        chain = read_structure(path).chains[0]
        start = int(random.integers(0, len(chain) // 2))
        rows = [*range(start), *range(start + len(chain) // 6, len(chain))]
        found = correspond(renumbered(taken(chain, rows), 1000), chain)
        expected = np.full(len(chain), -1)
        expected[rows] = np.arange(len(rows))
        wrong = found.model_index != expected
        assert found.matched_by == "alignment"
        # Where the deleted stretch starts with the letters that follow it, one chain break may be as good as another.
        assert wrong.sum() <= 2, path.stem

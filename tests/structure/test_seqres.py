"""Placing residues in their full sequence: exact where it is determined, said where it is not."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protfold_peft.structure import read_structure
from protfold_peft.structure.seqres import Placement, place_in_sequence


def place(
    letters: str,
    full: str,
    numbers: list[int] | None = None,
    breaks: tuple[int, ...] = (),
    labels: list[int] | None = None,
) -> Placement | None:
    """Place residues bonded throughout but before those at `breaks`."""
    joined = np.array([i > 0 and i not in breaks for i in range(len(letters))])
    return place_in_sequence(
        letters,
        full,
        np.array(numbers if numbers is not None else range(1, len(letters) + 1)),
        joined,
        list(labels) if labels is not None else [None] * len(letters),
    )


def test_unresolved_ends() -> None:
    result = place("KVT", "MGKVTAA")
    assert result is not None
    assert (result.places.tolist(), result.n_wrong, result.n_open) == ([2, 3, 4], 0, 0)


def test_numbers_say_how_wide_a_gap_is() -> None:
    """G...G: which of the four glycines are missing only the numbers can say."""
    result = place("AGGT", "AGGGGT", numbers=[1, 2, 5, 6], breaks=(2,))
    assert result is not None
    assert (result.places.tolist(), result.n_open) == ([0, 1, 4, 5], 0)
    result = place("AGGT", "AGGGGT", numbers=[1, 4, 5, 6], breaks=(1,))
    assert result is not None
    assert result.places.tolist() == [0, 3, 4, 5]


def test_a_break_without_a_jump_is_still_a_gap() -> None:
    result = place("AKLW", "AKVVVLW", numbers=[1, 2, 3, 4], breaks=(2,))
    assert result is not None
    assert result.places.tolist() == [0, 1, 5, 6]


def test_a_jump_over_an_intact_bond_is_no_gap() -> None:
    """Author numbers may skip (61 of the training chains do) while the sequence goes on."""
    result = place("AKLW", "AKLWAKLW"[:4], numbers=[1, 2, 60, 61])
    assert result is not None
    assert result.places.tolist() == [0, 1, 2, 3]


def test_repeats_are_open() -> None:
    result = place("GSGS", "GSGSGSGS")
    assert result is not None
    assert (result.places.tolist(), result.n_open) == ([0, 1, 2, 3], 4)


def test_stated_places_win() -> None:
    result = place("GSGS", "GSGSGSGS", labels=[3, 4, 7, 8])
    assert result is not None
    assert (result.places.tolist(), result.n_open) == ([2, 3, 6, 7], 0)


@pytest.mark.parametrize("labels", [[4, 3, 2, 1], [0, 1, 2, 3], [6, 7, 8, 9], [1, 1, 2, 3]])
def test_impossible_stated_places_do_not(labels: list[int]) -> None:
    result = place("KVTA", "MGKVTAAA", labels=labels)
    assert result is not None
    assert result.places.tolist() == [2, 3, 4, 5]


def test_what_does_not_fit() -> None:
    assert place("KVTA", "WWWWWWWW") is None
    assert place("KVTA", "KVT") is None
    result = place("KVTALLLLLLLL", "MKVWALLLLLLLLM")
    assert result is not None
    assert (result.places[0], result.n_wrong) == (1, 1)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_deleted_stretches_are_found_again(data: st.DataObject) -> None:
    """Residues left out of a random sequence, numbers kept: the places are known exactly."""
    full = data.draw(st.text(alphabet="ACDEFGHIKLMNPQRSTVWY", min_size=12, max_size=60))
    keep = np.ones(len(full), dtype=bool)
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(full) - 1))
        keep[start : start + data.draw(st.integers(1, 6))] = False
    places = np.flatnonzero(keep)
    if len(places) < 4:
        return
    letters = "".join(full[i] for i in places)
    breaks = tuple(int(i) + 1 for i in np.flatnonzero(np.diff(places) > 1))
    result = place(letters, full, numbers=(places + 17).tolist(), breaks=breaks)
    assert result is not None
    assert result.n_wrong == 0
    if result.n_open == 0:
        np.testing.assert_array_equal(result.places, places)
    else:
        # Repeats: another offset fits as well, but the gaps are as wide as the numbers say.
        assert (np.diff(result.places) == np.diff(places)).all()


@pytest.mark.parametrize("name", ["4CUP_A.cif", "2OFG_X.cif"])
def test_alignment_agrees_with_the_labels_and_with_gemmi(structures: Path, name: str) -> None:
    chain = read_structure(structures / name).chains[0]
    assert chain.seqres is not None
    assert chain.seqres_index is not None
    result = place(chain.sequence, chain.seqres, numbers=chain.residue_numbers.tolist())
    assert result is not None
    np.testing.assert_array_equal(result.places, chain.seqres_index)
    # gemmi: 1 marks the first sequence, the full one; gaps in the second are the unresolved residues.
    theirs = gemmi.align_string_sequences(list(chain.seqres), list(chain.sequence), [])
    aligned = theirs.add_gaps(chain.sequence, 2)
    assert [i for i, letter in enumerate(aligned) if letter != "-"] == result.places.tolist()

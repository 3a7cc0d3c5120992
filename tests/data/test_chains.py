"""A chain laid along its sequence: what is unresolved, where the gaps are, and what is never trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protfold_peft.data import TrainingChain, training_chain
from protfold_peft.structure import read_structure
from protfold_peft.structure.residues import RESTYPES


def test_unresolved_residues_are_in_the_input_and_masked(make_chain) -> None:
    chain = training_chain(make_chain("AGW", seqres="XAAGGWA", seqres_index=[1, 3, 5]), "one")
    assert chain.sequence == "XAAGGWA"
    assert "".join(RESTYPES[i] for i in chain.aatype) == "XAAGGWA"
    assert chain.residue_index.tolist() == list(range(7))
    assert chain.has_frame.tolist() == [False, True, False, True, False, True, False]
    assert chain.atom_positions[~chain.has_frame].sum() == 0
    # Centred, and otherwise as it was.
    np.testing.assert_allclose(chain.atom_positions[[1, 3, 5], 1, 0], [-3.8, 0, 3.8], atol=1e-6)


def test_author_numbers_are_not_used(make_chain) -> None:
    """Real files jump over intact bonds and run backwards."""
    chain = training_chain(make_chain("AGWA", numbers=[90, 20, 500, 3]), "one")
    assert chain.residue_index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("step", "jump"),
    [(3.8, 1), (4.9, 1), (5.1, 2), (7.6, 2), (7.7, 3), (38.0, 10)],
)
def test_a_gap_jumps_by_the_fewest_residues_that_bridge_it(make_chain, step: float, jump: int) -> None:
    """C to N is the step less 2.95 A here; above 2 A the chain is broken. A residue reaches 3.8 A."""
    chain = training_chain(make_chain("AGWA", ca_x=[0, 3.8, 3.8 + step, 7.6 + step]), "one")
    assert chain.residue_index.tolist() == [0, 1, 1 + jump, 2 + jump]


def test_without_c_or_n_the_ca_tell(make_chain) -> None:
    source = make_chain("AGWA", ca_x=[0, 3.8, 13.8, 17.6])
    source.atom_mask[:, [0, 2]] = False
    chain = training_chain(source, "one")
    assert chain.residue_index.tolist() == [0, 1, 4, 5]
    assert not chain.has_frame.any()


def test_masked_coordinates_never_get_through(make_chain) -> None:
    source = make_chain("AGW")
    source.atom_positions[1, 5] = np.nan
    assert np.isfinite(training_chain(source, "one").atom_positions).all()


def test_far_from_the_origin_keeps_its_digits(make_chain) -> None:
    source = make_chain("AGWA")
    near = training_chain(source, "near")
    source.atom_positions[source.atom_mask] += 9000.0
    np.testing.assert_allclose(training_chain(source, "far").atom_positions, near.atom_positions, atol=1e-6)


def test_real_structures(test_data) -> None:
    """A complete chain, and one of 117 residues of which 115 were seen."""
    folder = test_data / "metrics" / "io"
    chain = whole_chain(folder / "1aho.pdb")
    assert (len(chain), chain.has_frame.sum()) == (64, 64)
    chain = whole_chain(folder / "4CUP.cif.gz")
    assert (len(chain), chain.atom_mask.any(axis=1).sum(), chain.has_frame.sum()) == (117, 115, 115)
    assert chain.residue_index.tolist() == list(range(117))


def whole_chain(path: Path) -> TrainingChain:
    (chain,) = read_structure(path).chains
    return training_chain(chain, path.stem)

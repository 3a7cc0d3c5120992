"""Residue tables against those of transformers' copy of OpenFold, which the package itself does not use."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from transformers.models.esm.openfold_utils import residue_constants as oracle

from protfold_peft.structure import residues
from protfold_peft.structure.components import atom_aliases, other_kind, parent, written_atom


def test_orders_are_alphafolds() -> None:
    assert list(residues.RESTYPES) == oracle.restypes_with_x
    assert list(residues.ATOM_TYPES) == oracle.atom_types
    assert {r: residues.ONE_TO_THREE[r] for r in residues.RESTYPES[:20]} == oracle.restype_1to3
    assert residues.ONE_TO_THREE["X"] == oracle.unk_restype


def test_atom14_names() -> None:
    assert {name: list(atoms) for name, atoms in residues.ATOM14_NAMES.items()} == oracle.restype_name_to_atom14_names


def test_chi_angles() -> None:
    names = {
        residue: [path.split()[i : i + 4] for i in range(len(path.split()) - 3)]
        for residue, path in residues.CHI_PATHS.items()
    }
    assert names == oracle.chi_angles_atoms
    np.testing.assert_array_equal(residues.CHI_MASK[:20], np.array(oracle.chi_angles_mask, dtype=bool))
    np.testing.assert_array_equal(residues.CHI_PI_PERIODIC, np.array(oracle.chi_pi_periodic, dtype=bool))
    # transformers leaves the atom names unmapped in its index table; spell them out.
    for kind, three in enumerate(list(residues.ONE_TO_THREE.values())[:20]):
        for chi, atoms in enumerate(oracle.chi_angles_atoms[three]):
            assert [residues.ATOM_TYPES[i] for i in residues.CHI_ATOMS[kind, chi]] == atoms


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ATOM37_MASK", "restype_atom37_mask"),
        ("ATOM14_MASK", "restype_atom14_mask"),
        ("ATOM37_GROUP", "restype_atom37_to_rigid_group"),
        ("ATOM14_GROUP", "restype_atom14_to_rigid_group"),
        ("ATOM37_POSITIONS", "restype_atom37_rigid_group_positions"),
        ("ATOM14_POSITIONS", "restype_atom14_rigid_group_positions"),
        ("ATOM14_AMBIGUOUS", "restype_atom14_ambiguous_atoms"),
        ("ATOM14_SWAP", "restype_atom14_ambiguous_atoms_swap_idx"),
    ],
)
def test_tables(ours: str, theirs: str) -> None:
    np.testing.assert_allclose(getattr(residues, ours).astype(float), getattr(oracle, theirs), atol=1e-6)


def test_default_frames() -> None:
    """Equal where a group exists; the other places are the identity here and zero there."""
    exists = oracle.restype_rigid_group_default_frame[..., 3, 3] == 1
    np.testing.assert_allclose(
        residues.GROUP_FRAMES[exists], oracle.restype_rigid_group_default_frame[exists], atol=1e-6
    )
    assert (residues.GROUP_FRAMES[~exists] == np.eye(4)).all()
    np.testing.assert_array_equal(exists[:20, 4:], residues.CHI_MASK[:20])


def test_index_tables_invert_each_other() -> None:
    for kind in range(20):
        places = residues.ATOM14_TO_ATOM37[kind, residues.ATOM14_MASK[kind]]
        np.testing.assert_array_equal(residues.ATOM37_TO_ATOM14[kind, places], np.arange(len(places)))
        assert residues.ATOM37_MASK[kind].sum() == len(places)


def test_heavy_atom_counts_agree_with_formulas() -> None:
    """gemmi knows the hydrogens and weight of free amino acids: weight minus hydrogens leaves the heavy atoms."""
    weights = {"C": 12.011, "N": 14.007, "O": 15.999, "S": 32.06}
    for three, names in residues.ATOM14_NAMES.items():
        if three == "UNK":
            continue
        info = gemmi.find_tabulated_residue(three)
        heavy = sum(weights[name[0]] for name in names if name) + weights["O"]  # the free acid has OXT
        assert info.weight - info.hydrogen_count * 1.008 == pytest.approx(heavy, abs=0.05)


def test_tables_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        residues.ATOM14_POSITIONS[0, 0, 0] = 1.0


def test_sequence_to_restypes() -> None:
    assert residues.sequence_to_restypes("ARVXBU-").tolist() == [0, 1, 19, 20, 20, 20, 20]
    assert residues.sequence_to_restypes("").shape == (0,)


@pytest.mark.parametrize(
    ("name", "letter"),
    [
        *[(three, one) for three, one in residues.THREE_TO_ONE.items()],
        *[("MSE", "M"), ("SEP", "S"), ("TPO", "T"), ("PTR", "Y"), ("CSO", "C"), ("HYP", "P"), ("MLY", "K")],
        *[("DAL", "A"), ("PCA", "E"), ("HSD", "H"), ("HIE", "H"), ("CYX", "C"), ("ASH", "D"), ("GLH", "E")],
        *[("SEC", "C"), ("PYL", "K"), ("ASX", "X"), ("GLX", "X")],
        *[("HOH", None), ("DA", None), ("U", None), ("NAG", None), ("ACE", None), ("HEM", None), ("QQQ", None)],
    ],
)
def test_parents(name: str, letter: str | None) -> None:
    assert parent(name, {}) == letter


def test_the_file_explains_unknown_names() -> None:
    assert parent("QQQ", {"QQQ": "TRP"}) == "W"
    assert parent("QQQ", {"QQQ": "HEM"}) is None
    # A standard residue is what it is, whatever a MODRES record (glycosylation sites) says.
    assert parent("ASN", {"ASN": "GLN"}) == "N"


@pytest.mark.parametrize(
    ("name", "kind"), [("HOH", "water"), ("DA", "nucleic acid"), ("ZN", "ligand"), ("QQQ", "unknown")]
)
def test_other_kinds(name: str, kind: str) -> None:
    assert other_kind(name) == kind


def test_atom_aliases() -> None:
    assert atom_aliases("MSE", {"N", "CA", "SE"}) == {"SE": "SD"}
    assert atom_aliases("ILE", {"CD", "O"}) == {"CD": "CD1"}
    assert atom_aliases("ILE", {"CD1", "O"}) == {}
    assert atom_aliases("PHE", {"OT1", "OT2"}) == {"OT1": "O", "OT2": "OXT"}
    assert atom_aliases("PHE", {"O", "OT1", "OT2"}) == {}
    assert written_atom("MSE", "SD") == ("SE", "SE")
    assert written_atom("MET", "SD") == ("SD", "S")

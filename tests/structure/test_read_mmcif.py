"""What the reader makes of mmCIF files: numbering, entities, missing values, odd but legal syntax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gemmi
import numpy as np
import pytest

from protfold_peft.errors import StructureError
from protfold_peft.structure import Structure, read_structure

POLYPEPTIDE = "_entity_poly.entity_id 1\n_entity_poly.type polypeptide(L)\n"
Read = Callable[..., Structure]


def site(name: str = "CA", residue: str = "ALA", place: int = 1, **values: object) -> dict[str, str]:
    """One atom_site row as a mapping; `place` is the label number and the place along x."""
    row = {
        "group_PDB": "ATOM",
        "id": "1",
        "type_symbol": name[0],
        "label_atom_id": name,
        "label_alt_id": ".",
        "label_comp_id": residue,
        "label_asym_id": "A",
        "label_entity_id": "1",
        "label_seq_id": str(place),
        "pdbx_PDB_ins_code": "?",
        "Cartn_x": f"{3.8 * place:.3f}",
        "Cartn_y": "0.800",
        "Cartn_z": "0.100",
        "occupancy": "1.00",
        "B_iso_or_equiv": "10.00",
        "auth_seq_id": str(place),
        "auth_asym_id": "A",
        "pdbx_PDB_model_num": "1",
    }
    return {**row, **{key: str(value) for key, value in values.items()}}


COLUMNS = tuple(site())


def cif(rows: Sequence[Mapping[str, str]], *, extra: str = "", without: Sequence[str] = ()) -> str:
    columns = [column for column in COLUMNS if column not in without]
    body = "\n".join(" ".join(row[column] for column in columns) for row in rows)
    return "data_made\n" + extra + "\nloop_\n" + "\n".join(f"_atom_site.{c}" for c in columns) + f"\n{body}\n"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def reader(*args: object, **options: object) -> Structure:
        path = tmp_path / "made.cif"
        keep = {key: options.pop(key) for key in ("extra", "without") if key in options}
        path.write_text(args[0] if isinstance(args[0], str) else cif(args[0], **keep))  # type: ignore[arg-type]
        return read_structure(path, **options)  # type: ignore[arg-type]

    return reader


def test_author_numbering_is_kept_and_labels_place_in_the_sequence(read: Read) -> None:
    poly = """
loop_
_entity_poly.entity_id
_entity_poly.type
1 'polypeptide(L)'
loop_
_entity_poly_seq.entity_id
_entity_poly_seq.num
_entity_poly_seq.mon_id
_entity_poly_seq.hetero
1 1 MSE n
1 2 ALA n
1 3 GLY y
1 3 SER y
1 4 ALA n
1 5 TRP n
"""
    rows = [
        site(residue="ALA", place=2, auth_seq_id=-7, auth_asym_id="LA0"),
        site(residue="ALA", place=4, auth_seq_id=100, pdbx_PDB_ins_code="B", auth_asym_id="LA0"),
    ]
    chain = read(rows, extra=poly).chains[0]
    assert (chain.id, chain.sequence, chain.seqres) == ("LA0", "AA", "MAGAW")
    assert chain.residue_numbers.tolist() == [-7, 100]
    assert chain.insertion_codes == ("", "B")
    assert chain.seqres_index is not None
    assert chain.seqres_index.tolist() == [1, 3]


def test_without_author_columns_the_labels_serve(read: Read) -> None:
    rows = [site(place=i, label_asym_id="Xy") for i in (3, 4)]
    chain = read(rows, without=["auth_seq_id", "auth_asym_id", "pdbx_PDB_model_num", "label_alt_id"]).chains[0]
    assert (chain.id, chain.residue_numbers.tolist()) == ("Xy", [3, 4])


def test_a_missing_author_value_takes_the_label(read: Read) -> None:
    chain = read([site(place=3, auth_seq_id="?", auth_asym_id=".")]).chains[0]
    assert (chain.id, chain.residue_numbers.tolist()) == ("A", [3])


def test_entities_decide_what_is_polymer(read: Read) -> None:
    """A free amino acid, a water and a sugar share the author's chain with the protein."""
    poly = "loop_\n_entity_poly.entity_id\n_entity_poly.type\n1 polypeptide(L)\n"
    rows = [
        site(place=1),
        site(place=2, residue="SEP", group_PDB="HETATM"),
        site(residue="GLU", place=9, label_seq_id=".", label_entity_id=2, label_asym_id="B", group_PDB="HETATM"),
        site("O", "HOH", 1, label_seq_id=".", label_entity_id=3, label_asym_id="C", group_PDB="HETATM"),
        site("P", "DA", 1, label_entity_id=4, label_asym_id="D", auth_asym_id="D"),
    ]
    structure = read(rows, extra=poly)
    assert [(chain.id, chain.sequence) for chain in structure.chains] == [("A", "AS")]
    assert any("free amino acid" in line for line in structure.notes)
    assert any("nucleic acid" in line for line in structure.notes)


def test_without_entities_bonds_decide(read: Read) -> None:
    rows = [
        *[site(place=i) for i in (1, 2)],
        site(residue="SEP", place=3, group_PDB="HETATM"),
        site(residue="GLU", place=30, group_PDB="HETATM"),
    ]
    assert read(rows).chains[0].sequence == "AAS"


def test_unknown_residue_names_are_explained_by_the_file(read: Read) -> None:
    extra = "loop_\n_chem_comp.id\n_chem_comp.mon_nstd_parent_comp_id\nZZ9 TRP\nALA ?\n"
    poly = "loop_\n_entity_poly.entity_id\n_entity_poly.type\n1 polypeptide(L)\n"
    assert read([site(place=1), site(residue="ZZ9", place=2)], extra=extra + poly).chains[0].sequence == "AW"
    poly = (
        "_entity_poly.entity_id 1\n_entity_poly.type polypeptide(L)\n_entity_poly.pdbx_seq_one_letter_code_can AK\n"
        "loop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n_entity_poly_seq.mon_id\n1 1 ALA\n1 2 ZZ9\n"
    )
    assert read([site(place=1), site(residue="ZZ9", place=2)], extra=poly).chains[0].sequence == "AK"


def test_one_letter_sequence_serves_without_entity_poly_seq(read: Read) -> None:
    poly = POLYPEPTIDE + "_entity_poly.pdbx_seq_one_letter_code_can\n;GA\nAW\n;\n"
    chain = read([site(place=2), site(place=3)], extra=poly).chains[0]
    assert chain.seqres == "GAAW"
    assert chain.seqres_index is not None
    assert chain.seqres_index.tolist() == [1, 2]


def test_quotes_uncertainties_and_odd_case(read: Read) -> None:
    text = cif([site(Cartn_x="1.500(3)", label_comp_id="'ALA'", auth_asym_id='"A\'"', B_iso_or_equiv="2.5(1)")])
    chain = read(text.replace("_atom_site.Cartn_x", "_ATOM_SITE.cartn_X")).chains[0]
    assert chain.id == "A'"
    assert chain.atom_positions[0, 1, 0] == 1.5
    assert chain.b_factors[0, 1] == 2.5


def test_a_single_atom_written_as_pairs(read: Read) -> None:
    row = site()
    text = "data_one\n" + "\n".join(f"_atom_site.{key} {value}" for key, value in row.items()) + "\n"
    assert read(text).chains[0].sequence == "A"


def test_models(read: Read) -> None:
    rows = [site(pdbx_PDB_model_num=model, Cartn_y=model) for model in (5, 9)]
    structure = read(rows)
    assert (structure.model, structure.n_models, structure.chains[0].atom_positions[0, 1, 1]) == (5, 2, 5.0)
    assert read(rows, model=9).chains[0].atom_positions[0, 1, 1] == 9.0
    with pytest.raises(StructureError, match="no model 1; the file has 5, 9"):
        read(rows, model=1)


@pytest.mark.parametrize("value", ["?", ".", "nan", "inf", "********", "abc", "1_0"])
@pytest.mark.parametrize("axis", "xyz")
def test_coordinates_that_are_none(read: Read, value: str, axis: str) -> None:
    with pytest.raises(StructureError, match=rf"made\.cif: atom_site row 2 \(atom 77\): Cartn_{axis}"):
        read([site(), site("C", id=77, **{f"Cartn_{axis}": value})])


def test_broken_values(read: Read) -> None:
    with pytest.raises(StructureError, match=r"row 1 .*occupancy"):
        read([site(occupancy="x")])
    with pytest.raises(StructureError, match="auth_seq_id"):
        read([site(auth_seq_id="5A")])
    assert read([site(occupancy="?", B_iso_or_equiv=".")]).chains[0].b_factors.sum() == 0


def test_coordinates_of_waters_do_not_matter(read: Read) -> None:
    assert len(read([site(), site("O", "HOH", 2, Cartn_x="?", group_PDB="HETATM")]).chains[0]) == 1


def test_two_data_blocks(read: Read) -> None:
    text = (
        "data_empty\n_cell.length_a 1\n" + cif([site()]) + cif([site(auth_asym_id="Z")]).replace("data_made", "data_b")
    )
    structure = read(text)
    assert [chain.id for chain in structure.chains] == ["A"]
    assert any("2 data blocks" in line for line in structure.notes)


def test_one_author_chain_in_two_label_chains(read: Read) -> None:
    """Different residues are one chain; the same residues elsewhere are refused."""
    rows = [site(place=1), site(place=2, label_asym_id="B")]
    assert len(read(rows).chains[0]) == 2
    same = [*rows, site(place=1, label_asym_id="C")]
    assert any("repeated" in line for line in read(same).notes)
    with pytest.raises(StructureError, match=r"chain A residue 1 \(ALA\) occurs twice"):
        read([*rows, site(place=1, label_asym_id="C", Cartn_y=50)])


def test_label_numbers_that_contradict_the_sequence_are_not_trusted(read: Read) -> None:
    poly = (
        "_entity_poly.entity_id 1\n_entity_poly.type polypeptide(L)\n_entity_poly.pdbx_seq_one_letter_code_can GGAAAW\n"
    )
    rows = [site(place=i, label_seq_id=i) for i in (1, 2, 3)]
    chain = read(rows, extra=poly).chains[0]
    assert chain.seqres_index is not None
    assert chain.seqres_index.tolist() == [2, 3, 4]


def test_resolution_and_release(read: Read) -> None:
    extra = """
_refine.ls_d_res_high .
_em_3d_reconstruction.resolution 3.25
loop_
_pdbx_audit_revision_history.ordinal
_pdbx_audit_revision_history.revision_date
2 2011-07-13
1 1998-10-14
"""
    structure = read([site()], extra=extra)
    assert (structure.resolution, structure.release_date) == (3.25, "1998-10-14")


@pytest.mark.parametrize("name", ["3JQH_A.cif", "4CUP_A.cif", "2OFG_X.cif"])
def test_examples_as_gemmi_reads_them(structures: Path, name: str) -> None:
    ours = read_structure(structures / name).chains[0]
    theirs = gemmi.read_structure(str(structures / name))
    theirs.setup_entities()
    polymer = theirs[0][0].get_polymer()
    assert [(str(r.seqid), r.name) for r in polymer] == [
        (f"{number}{code}", residue)
        for number, code, residue in zip(ours.residue_numbers, ours.insertion_codes, ours.residue_names, strict=True)
    ]
    assert ours.seqres_index is not None
    assert (ours.seqres_index + 1).tolist() == [r.label_seq for r in polymer]
    expected = np.array([r["CA"][0].pos.tolist() for r in polymer])
    np.testing.assert_allclose(ours.atom_positions[:, 1], expected)

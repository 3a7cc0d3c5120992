"""PDB files as others read them, and what does not fit the columns."""

from __future__ import annotations

import gzip
import warnings
from dataclasses import replace
from pathlib import Path

import biotite.structure.io.pdb as biotite_pdb
import gemmi
import numpy as np
import pytest
from Bio.PDB import PDBParser
from Bio.PDB.Atom import Atom
from structure.made import assert_same

from protfold_peft.errors import StructureError
from protfold_peft.structure import Structure, read_structure, residues, write_pdb


def rows(structure: Structure) -> list[tuple[str, int, str, str, str]]:
    """Chain, number, insertion code, residue and atom of every atom, as a file spells them."""
    selenium = {("MSE", "SD"): "SE"}
    return [
        (chain.id, int(chain.residue_numbers[i]), chain.insertion_codes[i], name, selenium.get((name, a), a))
        for chain in structure.chains
        for i, name in enumerate(chain.residue_names)
        for j, a in enumerate(residues.ATOM_TYPES)
        if chain.atom_mask[i, j]
    ]


def biopython_rows(atoms: list[Atom]) -> list[tuple[str, int, str, str, str]]:
    """The same of Bio.PDB atoms."""
    found = []
    for atom in atoms:
        residue = atom.get_parent()
        found.append((residue.get_parent().id, residue.id[1], residue.id[2].strip(), residue.resname, atom.id))
    return found


def coordinates(structure: Structure) -> np.ndarray:
    return np.concatenate([chain.atom_positions[chain.atom_mask] for chain in structure.chains])


@pytest.fixture
def written(tmp_path: Path, made_structure: Structure) -> Path:
    path = tmp_path / "made.pdb"
    write_pdb(made_structure, path, remarks=["made for a test\nwith two lines", "\u00e9 is no ASCII " + "x" * 90])
    return path


def test_round_trip(made_structure: Structure, written: Path) -> None:
    assert_same(made_structure, read_structure(written))


def test_examples_round_trip(example: Path, tmp_path: Path) -> None:
    structure = read_structure(example)
    write_pdb(structure, tmp_path / "x.pdb")
    again = read_structure(tmp_path / "x.pdb")
    # 3JQH's full sequence is one repeat after another: only mmCIF says which one is seen.
    assert_same(structure, again, full=not example.name.startswith("3JQH"))
    assert again.resolution == pytest.approx(structure.resolution, abs=0.005) if structure.resolution else True


def test_biopython_reads_the_same(made_structure: Structure, written: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = PDBParser(PERMISSIVE=False).get_structure("x", written)
    atoms = list(theirs.get_atoms())
    assert biopython_rows(atoms) == rows(made_structure)
    np.testing.assert_allclose([a.coord for a in atoms], coordinates(made_structure), atol=5.1e-4)
    assert {a.element for a in atoms if a.id == "SE"} <= {"SE"}


def test_biotite_reads_the_same(made_structure: Structure, written: Path) -> None:
    theirs = biotite_pdb.PDBFile.read(written).get_structure(model=1, extra_fields=["b_factor", "occupancy"])
    assert list(
        zip(theirs.chain_id, theirs.res_id, theirs.ins_code, theirs.res_name, theirs.atom_name, strict=True)
    ) == rows(made_structure)
    np.testing.assert_allclose(theirs.coord, coordinates(made_structure), atol=6e-4)
    b = np.concatenate([chain.b_factors[chain.atom_mask] for chain in made_structure.chains])
    np.testing.assert_allclose(theirs.b_factor, b, atol=5.1e-3)
    assert (theirs.occupancy == 1).all()


def test_gemmi_reads_the_same(made_structure: Structure, written: Path) -> None:
    theirs = gemmi.read_structure(str(written))
    found = [
        (cra.chain.name, cra.residue.seqid.num, cra.residue.seqid.icode.strip(), cra.residue.name, cra.atom.name)
        for cra in theirs[0].all()
    ]
    assert found == rows(made_structure)
    theirs.setup_entities()
    assert theirs.entities[0].full_sequence == ["GLY", "MSE", "ALA", "UNK", "TRP", "LYS", "SER", "VAL"]
    assert [m.res_id.name for m in theirs.mod_residues] == ["MSE"]


def test_layout(written: Path) -> None:
    lines = written.read_text(encoding="ascii").splitlines()
    assert {len(line) for line in lines} == {80}
    assert lines[-1].strip() == "END"
    ters = [line for line in lines if line.startswith("TER")]
    assert [line[17:27] for line in ters] == ["VAL A   6 ", "GLU b9999 "]
    serials = [int(line[6:11]) for line in lines if line[:4] in ("ATOM", "TER ")]
    assert serials == list(range(1, len(serials) + 1))
    remarks = [line[11:].strip() for line in lines if line.startswith("REMARK  99")]
    assert remarks[:2] == ["made for a test", "with two lines"]
    assert "? is no ASCII" in remarks[2]


def test_gzip(tmp_path: Path, made_structure: Structure) -> None:
    write_pdb(made_structure, tmp_path / "x.pdb.gz")
    assert_same(made_structure, read_structure(tmp_path / "x.pdb.gz"))
    first = (tmp_path / "x.pdb.gz").read_bytes()
    write_pdb(made_structure, tmp_path / "x.pdb.gz")
    assert (tmp_path / "x.pdb.gz").read_bytes() == first
    assert gzip.decompress(first).endswith(b"END" + b" " * 77 + b"\n")


def test_blank_chain(tmp_path: Path, made_structure: Structure) -> None:
    structure = replace(made_structure, chains=(replace(made_structure.chains[1], id=""),))
    write_pdb(structure, tmp_path / "x.pdb")
    assert_same(structure, read_structure(tmp_path / "x.pdb"))


def changed(structure: Structure, **fields: object) -> Structure:
    """The structure with fields of its first chain replaced."""
    return replace(structure, chains=(replace(structure.chains[0], **fields), *structure.chains[1:]))  # type: ignore[arg-type]


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.reshape(len(array), 37, -1)[2, 1, -1] = value  # CA of UNK 5, z where there is one
    return array


@pytest.mark.parametrize("value", [9999.999, -999.999, 9999.9994, -0.0001, -999.9994])
def test_coordinates_that_just_fit(tmp_path: Path, made_structure: Structure, value: float) -> None:
    structure = changed(made_structure, atom_positions=with_value(made_structure.chains[0].atom_positions, value))
    write_pdb(structure, tmp_path / "x.pdb")
    assert read_structure(tmp_path / "x.pdb").chains[0].atom_positions[2, 1, 2] == pytest.approx(value, abs=5.1e-4)
    assert "-0.000" not in (tmp_path / "x.pdb").read_text()


@pytest.mark.parametrize("value", [9999.9996, 10000.0, -999.9996, -1000.0, 1e8])
def test_coordinates_that_do_not_fit(tmp_path: Path, made_structure: Structure, value: float) -> None:
    structure = changed(made_structure, atom_positions=with_value(made_structure.chains[0].atom_positions, value))
    with pytest.raises(StructureError, match=r"x\.pdb: chain A residue UNK 5 atom CA: .*write mmCIF"):
        write_pdb(structure, tmp_path / "x.pdb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [999.99, -99.99, 0.0])
def test_b_factors_that_fit(tmp_path: Path, made_structure: Structure, value: float) -> None:
    structure = changed(made_structure, b_factors=with_value(made_structure.chains[0].b_factors, value))
    write_pdb(structure, tmp_path / "x.pdb")
    assert read_structure(tmp_path / "x.pdb").chains[0].b_factors[2, 1] == value


@pytest.mark.parametrize("value", [999.996, 1000.0, -100.0])
def test_b_factors_that_do_not_fit(tmp_path: Path, made_structure: Structure, value: float) -> None:
    structure = changed(made_structure, b_factors=with_value(made_structure.chains[0].b_factors, value))
    with pytest.raises(StructureError, match=r"UNK 5 atom CA.*B-factor"):
        write_pdb(structure, tmp_path / "x.pdb")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["atom_positions", "b_factors"])
def test_values_that_are_not_finite(tmp_path: Path, made_structure: Structure, field: str, value: float) -> None:
    structure = changed(made_structure, **{field: with_value(getattr(made_structure.chains[0], field), value)})
    with pytest.raises(StructureError, match=r"chain A residue UNK 5 atom CA .* not finite"):
        write_pdb(structure, tmp_path / "x.pdb")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id": "AA"}, "chain id 'AA'"),
        ({"residue_numbers": np.array([-1000, -2, 5, 5, 5, 6])}, "MSE -1000"),
        ({"residue_numbers": np.array([1, 2, 3, 4, 5, 10000])}, "VAL 10000"),
        ({"residue_names": ("MSE", "ALA", "UNK", "TRPX", "SER", "VAL")}, "TRPX"),
        ({"id": "b"}, "chain b occurs twice"),
        ({"atom_mask": np.zeros((6, 37), dtype=bool)}, "no atoms"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, made_structure: Structure, fields: dict[str, object], words: str) -> None:
    with pytest.raises(StructureError, match=words):
        write_pdb(changed(made_structure, **fields), tmp_path / "x.pdb")
    assert list(tmp_path.iterdir()) == []


def test_too_many_atoms(tmp_path: Path, made_structure: Structure) -> None:
    big = replace(
        made_structure.chains[1],
        sequence="A" * 9000,
        residue_names=("ALA",) * 9000,
        residue_numbers=np.arange(9000),
        insertion_codes=("",) * 9000,
        atom_positions=np.ones((9000, 37, 3)),
        atom_mask=np.ones((9000, 37), dtype=bool),
        b_factors=np.zeros((9000, 37)),
    )
    with pytest.raises(StructureError, match="333001 atom records"):
        write_pdb(Structure("big", (big,)), tmp_path / "x.pdb")


def test_no_chains(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="no chains"):
        write_pdb(Structure("x", ()), tmp_path / "x.pdb")


def test_an_existing_file_survives_a_refusal(tmp_path: Path, made_structure: Structure) -> None:
    path = tmp_path / "x.pdb"
    path.write_text("old")
    with pytest.raises(StructureError):
        write_pdb(changed(made_structure, id="AA"), path)
    assert path.read_text() == "old"


def test_reading_a_written_file_takes_no_decisions_but_on_names(written: Path) -> None:
    assert read_structure(written).notes == ("chain A: MSE read as M at -3", "chain A: UNK read as X at 5")
    assert written.read_text().startswith("TITLE     made ")

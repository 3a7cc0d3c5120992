"""The bridge to Bio.PDB, against Biopython's own parsers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from Bio.PDB import PDBIO, MMCIFParser, PDBParser
from Bio.PDB.Model import Model
from Bio.PDB.Structure import Structure as BioStructure
from structure.made import assert_same, residue_lines

from protfold_peft.errors import StructureError
from protfold_peft.structure import Structure, from_biopython, read_structure, to_biopython, write_pdb


def parsed(path: Path) -> BioStructure:
    parser = PDBParser(QUIET=True) if path.suffix == ".pdb" else MMCIFParser(QUIET=True)
    return parser.get_structure(path.stem, path)


def test_to_biopython_is_what_its_parser_gives(example: Path) -> None:
    ours, theirs = to_biopython(read_structure(example)), parsed(example)
    for a, b in zip(ours.get_atoms(), theirs.get_atoms(), strict=True):
        assert a.full_id[2:] == b.full_id[2:]
        assert (a.element, a.fullname.strip(), a.get_parent().resname) == (
            b.element,
            b.fullname.strip(),
            b.get_parent().resname,
        )
        np.testing.assert_allclose(a.coord, b.coord, atol=1e-4)
        assert a.bfactor == pytest.approx(b.bfactor)


def test_from_biopython_is_what_our_reader_gives(example: Path) -> None:
    ours = read_structure(example)
    theirs = from_biopython(parsed(example))
    # Biopython holds single precision and no full sequence.
    assert_same(ours, theirs, tolerance=1e-4, full=False)
    assert theirs.source is None


def test_there_and_back(made_structure: Structure) -> None:
    assert_same(made_structure, from_biopython(to_biopython(made_structure)), tolerance=0, full=False)


def test_the_policies_apply(tmp_path: Path) -> None:
    """Alternate locations, heterogeneity, waters and free amino acids as from a file."""
    lines = [
        *residue_lines(number=1, altloc="A", occupancy=0.4),
        *residue_lines(number=1, altloc="B", occupancy=0.6, shift=(0, 0, 1)),
        *residue_lines("SER", number=2, altloc="A", occupancy=0.3),
        *residue_lines("PRO", number=2, altloc="B", occupancy=0.7),
        "TER",
        *residue_lines("GLU", number=90, record="HETATM"),
        *residue_lines("HOH", number=91, atoms=("O",), record="HETATM"),
    ]
    path = tmp_path / "x.pdb"
    path.write_text("\n".join(lines))
    assert_same(read_structure(path), from_biopython(parsed(path)), tolerance=1e-4)
    assert from_biopython(parsed(path)).chains[0].residue_names == ("ALA", "PRO")


def test_coordinates_that_are_not_finite(made_structure: Structure) -> None:
    structure = to_biopython(made_structure)
    next(structure.get_atoms()).coord[1] = np.nan
    with pytest.raises(StructureError, match="made: chain A residue MSE -3 atom N: y is 'nan'"):
        from_biopython(structure)


def test_no_protein() -> None:
    empty = BioStructure("nothing")
    empty.add(Model(0))
    with pytest.raises(StructureError, match="nothing: there is no protein chain"):
        from_biopython(empty)
    with pytest.raises(StructureError, match="no model at index 1; the structure has 1"):
        from_biopython(empty, model=1)


def test_biopython_writes_what_we_wrote(tmp_path: Path, made_structure: Structure) -> None:
    write_pdb(made_structure, tmp_path / "ours.pdb")
    writer = PDBIO()
    writer.set_structure(to_biopython(made_structure))
    writer.save(str(tmp_path / "theirs.pdb"))
    assert_same(read_structure(tmp_path / "ours.pdb"), read_structure(tmp_path / "theirs.pdb"), full=False)

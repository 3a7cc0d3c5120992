"""Files that cannot be read rightly end in one line that names the file and the place: never a traceback."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structure.made import atom_line, chain_lines

from protfold_peft.errors import StructureError
from protfold_peft.structure import Structure, find_structure_files, read_structure

STRUCTURES = Path(__file__).resolve().parents[2] / "structures"


def message_of(path: Path | str) -> str:
    with pytest.raises(StructureError) as caught:
        read_structure(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"  \n\n", "empty"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML"),
        (b"\n<HTML>ATOM</HTML>", "HTML"),
        (b"<?xml version='1.0'?><a/>", "XML"),
        (b'{"detail": "Not found"}', "JSON"),
        (b">1ABC\nMKV\n", "FASTA"),
        (b"404: Not Found\n", "not a structure"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "binary"),
        (bytes(range(256)) * 4, "binary"),
        (b"BZh91AY", "bzip2"),
        (b"PK\x03\x04rest", "zip"),
        (b"%PDF-1.4", "PDF document"),
        ("HEADER\nATOM".encode("utf-16"), "binary"),
        (b"HEADER    VIRAL PROTEIN                           27-MAR-98   1A8O\n", "no ATOM"),
        (b"MODEL        1\nENDMDL\nEND\n", "no ATOM"),
        (b"data_x\n_cell.length_a 1\n", "no atom_site"),
        (b"data_x\nloop_\n_atom_site.id\n_atom_site.Cartn_x\n1\n", "valid mmCIF"),
        (b"loop_\n_atom_site.id\n1\n", "valid mmCIF"),
        (b"data_x\nloop_\n_atom_site.id\n1\n", "Cartn_x"),
        (gzip.compress(b"HEADER " * 500, mtime=0)[:-20], "cut short"),
        (gzip.compress(b"HEADER " * 500, mtime=0)[:30] + b"garbage" * 9, "damaged"),
        (gzip.compress(b"", mtime=0), "empty"),
    ],
)
def test_what_is_no_structure(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.pdb"
    path.write_bytes(content)
    assert words in message_of(path)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in message_of(tmp_path / "absent.pdb")
    assert "folder" in message_of(tmp_path)
    assert "no such file" in message_of(str(tmp_path / "absent.pdb"))
    assert "cannot be read" in message_of(Path(os.devnull) / "x.pdb")
    with pytest.raises(StructureError):
        read_structure("a\x00b.pdb")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_permission(tmp_path: Path) -> None:
    path = tmp_path / "x.pdb"
    path.write_text("ATOM")
    path.chmod(0)
    assert "cannot be read" in message_of(path)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    "text", ["        ", "********", "     nan", "     NaN", "     inf", "  1_0.00", "1.0e+300", "   1.2.3"]
)
def test_coordinates_that_are_none(refused: Callable[..., str], axis: int, text: str) -> None:
    fields = ["   1.000"] * 3
    fields[axis] = text
    message = refused([*chain_lines(["ALA"]), atom_line("N", number=2, xyz="".join(fields))])
    assert "line 6" in message
    assert f"{'xyz'[axis]} (columns" in message


@pytest.mark.parametrize("length", [5, 30, 53])
def test_cut_lines(refused: Callable[..., str], length: int) -> None:
    lines = chain_lines(["ALA", "GLY"])
    assert "line 7 is cut short" in refused([*lines[:6], lines[6][:length]])


def test_a_shifted_line(refused: Callable[..., str]) -> None:
    lines = chain_lines(["ALA"])
    assert "line 3" in refused([*lines[:2], lines[2].replace("ATOM  ", "ATOM   "), *lines[3:]])


def test_placeholders_at_the_origin(refused: Callable[..., str]) -> None:
    message = refused(
        [*chain_lines(["ALA"]), atom_line("N", number=2, xyz=(0, 0, 0)), atom_line(number=2, xyz=(0, 0, 0))]
    )
    assert "line 6" in message
    assert "0, 0, 0" in message


def test_one_atom_at_the_origin_is_fine(read_pdb: Callable[..., Structure]) -> None:
    structure = read_pdb(
        [*chain_lines(["ALA"]), atom_line("N", number=2, xyz=(0, 0, 0)), atom_line(number=2, xyz=(1, 0, 0))]
    )
    assert len(structure.chains[0].sequence) == 2
    assert not structure.chains[0].atom_positions[1, 0].any()


def test_nothing_but_ligands(refused: Callable[..., str]) -> None:
    message = refused([atom_line("C7", "LIG", "B", 101, record="HETATM")])
    assert "no protein chain" in message
    assert "LIG" in message


def test_nothing_but_nucleic_acid(refused: Callable[..., str]) -> None:
    assert "nucleic acid" in refused([atom_line("P", "DA", "B", 1), atom_line("P", "DG", "B", 2)])


def test_a_free_amino_acid_is_no_chain(refused: Callable[..., str]) -> None:
    assert "free amino acid" in refused(chain_lines(["GLU"], record="HETATM"))


def test_bytes_outside_utf8_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "x.pdb"
    path.write_bytes(b"REMARK   1 \xc5ngstr\xf6m\n" + "\n".join(chain_lines(["ALA"])).encode())
    assert len(read_structure(path).chains[0]) == 1
    cif = (STRUCTURES / "3JQH_A.cif").read_bytes()
    path = tmp_path / "x.cif"
    path.write_bytes(b"\xef\xbb\xbf# \xc5ngstr\xf6m\n" + cif)
    assert len(read_structure(path).chains[0]) == 23


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".txt", ".gz", ""])
def test_the_content_tells_the_format_and_compression(tmp_path: Path, suffix: str) -> None:
    for source in ("1A8O_A.pdb", "3JQH_A.cif"):
        data = (STRUCTURES / source).read_bytes()
        for content in (data, gzip.compress(data)):
            path = tmp_path / f"x{suffix}"
            path.write_bytes(content)
            assert read_structure(path).chains[0].sequence == read_structure(STRUCTURES / source).chains[0].sequence


@pytest.mark.parametrize(
    ("name", "short"),
    [("1abc.pdb", "1abc"), ("a.b.CIF.gz", "a.b"), ("x.ent", "x"), ("model", "model"), (".pdb", ".pdb")],
)
def test_short_names(tmp_path: Path, name: str, short: str) -> None:
    path = tmp_path / name
    path.write_text("\n".join(chain_lines(["ALA"])))
    assert read_structure(path).name == short
    assert read_structure(path).source == path


def test_finding_files(tmp_path: Path) -> None:
    for name in ("b.pdb", "a.CIF.gz", "c.ent", "d.mmcif", "notes.txt", ".hidden.pdb", "deep/e.pdb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.pdb").mkdir()
    assert [path.name for path in find_structure_files(tmp_path)] == ["a.CIF.gz", "b.pdb", "c.ent", "d.mmcif"]
    assert [path.name for path in find_structure_files(tmp_path, recursive=True)][-1] == "e.pdb"
    with pytest.raises(StructureError, match="no such folder"):
        find_structure_files(tmp_path / "absent")
    with pytest.raises(StructureError, match=r"holds no \.pdb"):
        find_structure_files(tmp_path / "folder.pdb")


SMALL_PDB = "\n".join((STRUCTURES / "1AS5_A.pdb").read_text().splitlines()[:70]).encode()
PIECES = [b"nan", b"\r\n", b"TER\n", b"END\n", b"MODEL 2\n", b"\xff", b"loop_\n"]
SMALL_CIF = (STRUCTURES / "3JQH_A.cif").read_bytes()


@pytest.mark.parametrize("data", [SMALL_PDB, SMALL_CIF], ids=["pdb", "mmcif"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=False))
def test_damage_is_read_rightly_or_refused(tmp_path: Path, data: bytes, random: Random) -> None:
    """Bytes changed, lines dropped, repeated and cut: whatever comes back is finite, the rest is a StructureError."""
    damaged = bytearray(data)
    for _ in range(random.randint(1, 4)):
        kind = random.randint(0, 4)
        place = random.randrange(len(damaged)) if damaged else 0
        if kind == 0:
            damaged[place : place + 1] = bytes([random.choice(b" \n\t.?*-0A'\"_;#")])
        elif kind == 1:
            del damaged[place : place + random.randint(1, 90)]
        elif kind == 2:
            damaged[place:place] = damaged[place : place + random.randint(1, 200)]
        elif kind == 3:
            del damaged[place:]
        else:
            damaged[place:place] = random.choice(
                [b"nan", b"\r\n", b"TER\n", b"END\n", b"MODEL 2\n", b"\xff", b"loop_\n"]
            )
    path = tmp_path / "x"
    path.write_bytes(bytes(damaged))
    try:
        structure = read_structure(path)
    except StructureError as caught:
        # A cause means that the reader stumbled over something it did not foresee.
        if "\n" in str(caught) or caught.__cause__ is not None:
            raise
        return
    for chain in structure.chains:
        n = len(chain)
        assert n == len(chain.residue_names) == len(chain.residue_numbers) == len(chain.insertion_codes) > 0
        assert chain.atom_positions.shape == (n, 37, 3)
        assert np.isfinite(chain.atom_positions).all()
        assert np.isfinite(chain.b_factors).all()
        assert chain.atom_mask[:, :5].any(1).all()
        if chain.seqres_index is not None:
            assert (np.diff(chain.seqres_index) > 0).all()

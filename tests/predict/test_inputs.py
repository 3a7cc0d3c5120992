"""Names and duplicates: every record gets one name that is a file name and stays the same from run to run."""

from __future__ import annotations

import io
import string
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protfold_peft.folding.inputs import MAX_NAME_LENGTH, gather, safe_name


def gather_text(tmp_path, text, **options):
    path = tmp_path / "in.fasta"
    path.write_text(text, encoding="utf-8")
    return gather([str(path)], **options)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("sp|P0CG48|UBC_HUMAN Polyubiquitin-C OS=Homo sapiens", "sp_P0CG48_UBC_HUMAN"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("CON", "CON_"),
        ("nul.1", "nul_.1"),
        ("a:b?c*d", "a_b_c_d"),
        ("ends.", "ends"),
        ("\u00e9\u00e8", ""),
        ("   ", ""),
        ("", ""),
    ],
)
def test_a_header_becomes_a_file_name(header, name):
    assert safe_name(header) == name


@given(st.text(max_size=300))
def test_no_header_makes_an_unsafe_name(header):
    name = safe_name(header)
    assert len(name) <= MAX_NAME_LENGTH + 1
    assert set(name) <= set(string.ascii_letters + string.digits + "._-")
    assert not name.startswith((".", "-"))
    assert not name.endswith(".")


def test_same_name_with_another_sequence_gets_a_suffix_and_takes_no_other_name(tmp_path):
    found = gather_text(tmp_path, ">a\nMK\n>A\nMKT\n>a_2\nMKTA\n>a\nMKTAY\n")
    assert [(record.name, record.sequence) for record in found.records] == [
        ("a", "MK"),
        ("A_3", "MKT"),
        ("a_2", "MKTA"),
        ("a_4", "MKTAY"),
    ]
    assert len({record.name.lower() for record in found.records}) == 4


def test_the_same_record_twice_is_folded_once_and_noted(tmp_path):
    found = gather_text(tmp_path, ">a one\nMK\n>b\nMK\n>a two\nmk\n")
    assert [record.name for record in found.records] == ["a", "b"]
    assert any("record 3" in note and "folded once" in note for note in found.notes)


def test_long_names_stay_apart(tmp_path):
    long = "x" * 150
    found = gather_text(tmp_path, f">{long}1\nMK\n>{long}2\nMKT\n")
    names = [record.name for record in found.records]
    assert len(set(names)) == 2
    assert max(map(len, names)) <= MAX_NAME_LENGTH


def test_a_bad_record_costs_no_other_and_takes_no_name(tmp_path):
    found = gather_text(tmp_path, ">a\nMK1\n>a\nMKT\n>\nMK\n>c\n>d\nMKTA:KK\n", max_length=5)
    assert [(record.name, record.sequence) for record in found.records] == [("a", "MKT")]
    errors = {each.name: each.error for each in found.rejected}
    path = tmp_path / "in.fasta"
    assert errors == {
        "a_2": f"{path}: record 1 ('a', line 1): digit '1' at position 3 is no amino acid "
        "(20 letters, X B U O Z, ':' between chains)",
        "record_3": f"{path}: record 3 (line 5): the header is empty: give it a name after '>'",
        "c": f"{path}: record 4 ('c', line 7): the sequence is empty",
        "d": f"{path}: record 5 ('d', line 8): 6 residues, more than --max-length 5",
    }


def test_files_folders_and_standard_input_together(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.fa").write_text(">b\nMKB\n")
    (folder / "a.fasta").write_text(">a\nMKA\n")
    (folder / "notes.txt").write_text("no sequence here")
    single = tmp_path / "single.txt"
    single.write_text(">s\nMKS\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b">i\nMKI\n")))
    found = gather([str(folder), str(single), "-", str(folder / "a.fasta"), "-"])
    assert [record.name for record in found.records] == ["a", "b", "s", "i"]
    assert found.n_files == 4
    assert [note for note in found.notes if "named twice" in note] == [
        f"{folder / 'a.fasta'}: named twice, read once",
        "-: named twice, read once",
    ]
    assert not found.rejected


def test_a_file_that_cannot_be_read_is_reported_beside_the_others(tmp_path):
    good = tmp_path / "good.fasta"
    good.write_text(">g\nMKG\n")
    empty = tmp_path / "folder"
    empty.mkdir()
    found = gather([str(tmp_path / "gone.fa"), str(good), str(empty)])
    assert [record.name for record in found.records] == ["g"]
    assert [each.name for each in found.rejected] == ["gone.fa", "folder"]
    assert found.n_files == 1

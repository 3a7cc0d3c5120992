"""Reading FASTA: what is accepted, what is refused, and that the refusal says where."""

from __future__ import annotations

import gzip
import io

import pytest
from Bio import SeqIO

from protfold_peft.errors import SequenceError
from protfold_peft.structure.fasta import clean_sequence, is_fasta_name, parse_fasta, read_fasta

TEXT = ">first some words\nMKTAYIAK\nQRQISF\n\n>sp|P69905|HBA_HUMAN Hemoglobin\nVLSPADKTNV\n"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(TEXT.encode(), id="plain"),
        pytest.param(TEXT.replace("\n", "\r\n").encode(), id="crlf"),
        pytest.param(TEXT.replace("\n", "\r").encode(), id="old-mac"),
        pytest.param(b"\xef\xbb\xbf" + TEXT.encode(), id="bom"),
        pytest.param(TEXT.encode("utf-16"), id="utf-16"),
        pytest.param(b"\n\n" + TEXT.encode(), id="blank-lines-first"),
        pytest.param(TEXT.rstrip().encode(), id="no-final-newline"),
        pytest.param(gzip.compress(TEXT.encode()), id="gzip-without-the-suffix"),
    ],
)
def test_records_are_those_that_biopython_reads(tmp_path, data):
    path = tmp_path / "in.fasta"
    path.write_bytes(data)
    expected = [(record.description, str(record.seq)) for record in SeqIO.parse(io.StringIO(TEXT), "fasta")]
    assert [(entry.header, entry.sequence) for entry in read_fasta(path)] == expected


def test_entries_know_their_place():
    entries = parse_fasta(TEXT, "x.fasta")
    assert [(entry.source, entry.position, entry.line) for entry in entries] == [("x.fasta", 1, 1), ("x.fasta", 2, 5)]


def test_a_header_in_latin_1_is_read(tmp_path):
    path = tmp_path / "in.fa"
    path.write_bytes(">prot\u00e9ine\nMK\n".encode("latin-1"))
    assert read_fasta(path)[0].header == "prot\u00e9ine"


def test_a_line_separator_inside_a_header_ends_no_line():
    entries = parse_fasta(">a \u2028 b \x0c c\nMK\n", "x")
    assert [entry.sequence for entry in entries] == ["MK"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.fasta", b"", "empty"),
        ("a.fasta", b" \n\n", "empty"),
        ("a.fasta", b"; only a comment\n", "empty"),
        ("a.fasta", b"<!DOCTYPE html><html>404</html>", "HTML"),
        ("a.fasta", b"HEADER    HYDROLASE\nATOM      1  N\n", "PDB"),
        ("a.fasta", b"data_1UBQ\n#\n", "mmCIF"),
        ("a.fasta", b"MKTAYIAKQR\n", "line 1 is 'MKTAYIAKQR'"),
        ("a.fasta", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "binary"),
        ("a.fasta", gzip.compress(b">a\nMK\n", mtime=0)[:-9], "damaged gzip"),
        ("a.fasta.gz", b">a\nMK\n", "not a gzip"),
        ("a.fasta.gz", b"\x1f\x8bgarbage", "damaged gzip"),
    ],
)
def test_a_file_that_is_no_fasta_is_one_clear_line(tmp_path, name, data, words):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SequenceError) as caught:
        read_fasta(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(SequenceError, match=r"gone\.fasta: no such file"):
        read_fasta(tmp_path / "gone.fasta")
    with pytest.raises(SequenceError, match="cannot be read"):
        read_fasta(tmp_path)


def test_all_letters_of_proteins_pass():
    sequence = "ACDEFGHIKLMNPQRSTVWYXBUOZ"
    assert clean_sequence(sequence) == (sequence, ())


@pytest.mark.parametrize(
    ("raw", "sequence", "note"),
    [
        ("mkta", "MKTA", "lower case"),
        ("MKTA*", "MKTA", "stop sign"),
        ("MK*:TA*", "MK:TA", "stop sign"),
        ("ACGT" * 10, "ACGT" * 10, "DNA"),
    ],
)
def test_changes_are_noted(raw, sequence, note):
    cleaned, notes = clean_sequence(raw)
    assert cleaned == sequence
    assert len(notes) == 1
    assert note in notes[0]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("", "empty"),
        ("*", "empty"),
        (":", "empty"),
        ("MK7A", "digit '7' at position 3"),
        ("MKJA", "letter 'J' at position 3"),
        ("M-KA", "gap '-' at position 2"),
        ("MK.A", "gap '.' at position 3"),
        ("M*KA", "stop sign '*' at position 2"),
        ("MK::TA", "chain 2 of 3 is empty"),
        ("MK:", "chain 2 of 2 is empty"),
        ("MK:T1", "position 5"),
        ("MK*:T1", "position 6"),
        # upper() makes "SS" of the first and "I" of the second: both would fold as something else.
        ("MK\u00dfA", "at position 3"),
        ("MK\u0131A", "at position 3"),
        ("MK\x00A", "U+0000"),
    ],
)
def test_what_cannot_be_folded_is_refused_with_its_position(raw, words):
    with pytest.raises(SequenceError) as caught:
        clean_sequence(raw)
    assert words in str(caught.value)


def test_which_files_of_a_folder_count(tmp_path):
    names = ["a.fa", "b.FASTA", "c.faa.gz", "d.txt", ".e.fa", "f.fastq", "g.pdb"]
    assert [name for name in names if is_fasta_name(tmp_path / name)] == ["a.fa", "b.FASTA", "c.faa.gz"]


def test_the_example_sequences_are_as_their_headers_say(structures):
    lengths = {}
    for entry in read_fasta(structures / "examples.fasta"):
        sequence, notes = clean_sequence(entry.sequence)
        assert not notes
        chains = [len(chain) for chain in sequence.split(":")]
        assert entry.header.endswith(f"{' + '.join(map(str, chains))} residues")
        lengths[entry.header.split()[0]] = chains
    assert lengths["insulin"] == [21, 30]
    assert len(lengths) == 8

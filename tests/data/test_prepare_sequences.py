"""Full sequences from a FASTA file among the structures, on files whose sequences are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from made_structures import pdb_text, random_sequence
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.data.prepare import PrepareResult, PrepareSettings, run_prepare
from protfold_peft.errors import ConfigError

FULL = [random_sequence(60, seed) for seed in range(8)]
# Places without coordinates: a gap inside and both ends.
MISSING = (0, 1, 20, 21, 22, 59)


def run(tmp_path: Path, fasta: str, name: str = "out", **options) -> PrepareResult:
    path = tmp_path / "full.fasta"
    path.write_text(fasta)
    structures = options.pop("structures", (tmp_path / "in", path))
    defaults = {"search": "builtin", "processes": 1, "validation": 0.0}
    return run_prepare(PrepareSettings(structures=structures, out=tmp_path / name, **{**defaults, **options}))


def write(tmp_path: Path, name: str, *sequences: str, **options) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(pdb_text(*sequences, **{"seqres": False, "missing": MISSING, **options}))


def rows(out: Path) -> dict[str, dict]:
    return {row["name"]: row for row in load_from_disk(str(out))["train"]}


def rejected(out: Path) -> dict[str, tuple[str, str]]:
    with (out / "rejected.csv").open(newline="") as handle:
        return {row["name"]: (row["reason"], row["detail"]) for row in csv.DictReader(handle)}


def unresolved(row: dict) -> list[int]:
    mask = np.array(row["atom_mask"]).reshape(len(row["sequence"]), 37)
    return np.flatnonzero(~mask[:, 1]).tolist()


def test_sequences_go_to_structures_and_chains_of_their_name(tmp_path: Path) -> None:
    write(tmp_path, "one.pdb", FULL[0])
    write(tmp_path, "two.pdb", FULL[1], FULL[2])
    write(tmp_path, "both.pdb", FULL[3], FULL[4])
    # This name ends as that of a chain of `two` would.
    write(tmp_path, "two_C.pdb", FULL[5])
    fasta = [
        f">one some protein\n{FULL[0][:30].lower()}\n{FULL[0][30:]}*",
        f">two_A\n{FULL[1]}\n>two_B\n{FULL[2]}\n>two_C\n{FULL[5]}",
        f">both\n{FULL[3]}:{FULL[4]}",
    ]
    result = run(tmp_path, "\n".join(fasta))
    assert result.exit_status == 0
    assert result.report["sequences_given"] == 5
    assert result.report["without_sequence"] == []
    got = rows(tmp_path / "out")
    wanted = dict(zip(("one", "two_A", "two_B", "both_A", "both_B", "two_C"), FULL, strict=False))
    assert {name: row["sequence"] for name, row in got.items()} == wanted
    assert all(unresolved(row) == list(MISSING) for row in got.values())
    assert rejected(tmp_path / "out") == {}


def test_what_matches_nothing_is_told_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "one.pdb", FULL[0])
    write(tmp_path, "two.pdb", FULL[1], FULL[2])
    write(tmp_path, "without.pdb", FULL[3])
    (tmp_path / "in" / "bad.pdb").write_text("<html>404</html>")
    result = run(tmp_path, f">one\n{FULL[0]}\n>two_B\n{FULL[2]}\n>two_Z\nACDE\n>nobody\nACD:EF\n>bad_A\nAC\n")
    why = rejected(tmp_path / "out")
    assert why.pop("bad.pdb")[0] == "unreadable"
    assert why == {
        "two_Z": ("no structure", "structure 'two' has no chain 'Z' that is read"),
        "nobody": ("no structure", "no structure is called 'nobody'"),
    }
    assert result.report["without_sequence"] == ["two_A", "without"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == result.report
    assert (
        "2 chains have no sequence in the FASTA files and keep their file's: two_A, without" in capsys.readouterr().err
    )
    got = rows(tmp_path / "out")
    assert len(got["two_A"]["sequence"]) == 60 - len(MISSING)
    assert got["two_B"]["sequence"] == FULL[2]


def test_a_sequence_that_does_not_fit_is_told_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path, "good.pdb", FULL[0])
    write(tmp_path, "other.pdb", FULL[1])
    write(tmp_path, "shorter.pdb", FULL[2])
    write(tmp_path, "pair.pdb", FULL[3], FULL[4])
    write(tmp_path, "mixed.pdb", FULL[5], FULL[6])
    fasta = f">good\n{FULL[0]}\n>other\n{FULL[7]}\n>shorter\n{FULL[2][:40]}\n>pair\n{FULL[3]}\n"
    result = run(tmp_path, f"{fasta}>mixed_A\n{FULL[5]}\n>mixed_B\n{FULL[7]}\n")
    assert result.exit_status == 1
    assert rows(tmp_path / "out").keys() == {"good", "mixed_A"}
    why = rejected(tmp_path / "out")
    assert {reason for reason, _ in why.values()} == {"sequence does not fit"}
    folder = tmp_path / "in"
    several = "holds 2 chains ('A', 'B'), and the sequence given for it is of one chain: give each its own"
    misfit = "does not fit the sequence given for it"
    assert {name: detail.removeprefix(f"{folder}/") for name, (_, detail) in why.items()} == {
        "other": f"other.pdb: chain 'A' {misfit}: more than a tenth of its residues differ",
        "shorter": f"shorter.pdb: chain 'A' {misfit}: it has 54 residues, the sequence 40",
        "pair_A": f"pair.pdb: {several}",
        "pair_B": f"pair.pdb: {several}",
        "mixed_B": f"mixed.pdb: chain 'B' {misfit}: more than a tenth of its residues differ",
    }


def test_tables_and_fasta_files_go_together(tmp_path: Path) -> None:
    """A table's name is the name; a sequence of a table stands."""
    write(tmp_path, "one.pdb", FULL[0])
    write(tmp_path, "two.pdb", FULL[1], FULL[2])
    table = tmp_path / "in" / "chains.csv"
    table.write_text(f"file,chain,name,sequence\none.pdb,,mine,\ntwo.pdb,A,,\ntwo.pdb,B,,{FULL[2]}\n")
    fasta = f">mine\n{FULL[0]}\n>two_A\n{FULL[1]}\n>two_B\n{FULL[7]}\n"
    result = run(tmp_path, fasta, structures=(table, tmp_path / "full.fasta"))
    assert {name: row["sequence"] for name, row in rows(tmp_path / "out").items()} == {
        "mine": FULL[0],
        "two_A": FULL[1],
        "two_B": FULL[2],
    }
    assert result.report["rejected"] == {}


def test_a_changed_sequence_reads_its_own_structures_again(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, f"s{number}.pdb", FULL[number])
    fasta = [f">s{number}\n{FULL[number]}" for number in range(4)]
    run(tmp_path, "\n".join(fasta))
    fasta[1] += "GSHHHHHH"
    del fasta[2]
    again = run(tmp_path, "\n".join(fasta))
    assert (again.history["files_read"], again.history["files_unchanged"]) == (2, 2)
    fresh = run(tmp_path, "\n".join(fasta), "fresh")
    assert again.report == fresh.report
    assert rows(tmp_path / "out") == rows(tmp_path / "fresh")
    assert rows(tmp_path / "out")["s1"]["sequence"] == FULL[1] + "GSHHHHHH"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("ACDE", "not FASTA: line 1"),
        (">one\nACDE\n>\nAC\n", "line 3: the record has no name"),
        (">one\nAC-D\n", "line 1: 'one': gap '-' at position 3"),
        (">one\nACD\n>one again\nACE\n", "'one' has another sequence here than before"),
    ],
)
def test_fasta_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "one.pdb", FULL[0])
    with pytest.raises(ConfigError, match=message) as error:
        run(tmp_path, text)
    assert str(tmp_path / "full.fasta") in str(error.value)


def test_fasta_files_count_only_where_they_are_named(tmp_path: Path) -> None:
    """One that lies in a folder of structures may be meant for anything."""
    write(tmp_path, "one.pdb", FULL[0])
    (tmp_path / "in" / "one.fasta").write_text(f">one\n{FULL[7]}\n")
    result = run(tmp_path, "", structures=(tmp_path / "in",))
    assert result.report["sequences_given"] == 0
    alone = CliRunner().invoke(app, ["prepare", str(tmp_path / "in" / "one.fasta"), "--out", str(tmp_path / "x")])
    assert alone.exit_code == 2
    assert "only FASTA files are named: name the structures" in alone.stderr
    absent = CliRunner().invoke(app, ["prepare", "absent.fasta", str(tmp_path / "in"), "--out", str(tmp_path / "x")])
    assert (absent.exit_code, "absent.fasta: no such file" in absent.stderr) == (2, True)

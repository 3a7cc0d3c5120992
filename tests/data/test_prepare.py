"""`protfold prepare` from files to a dataset, on structures of which everything is known."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from made_structures import mutated, pdb_text, random_sequence
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.data import read_chains, training_chain
from protfold_peft.data.prepare import Filters, PrepareSettings, load_prepared, run_prepare
from protfold_peft.data.prepare.inputs import read_table
from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.structure import read_structure


def protfold(*arguments: object):
    return CliRunner().invoke(app, ["prepare", *[str(argument) for argument in arguments]])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def rejected(out: Path) -> dict[str, tuple[str, str]]:
    return {row["name"]: (row["reason"], row["detail"]) for row in table(out / "rejected.csv")}


def names(out: Path) -> set[str]:
    return {row["name"] for row in table(out / "chains.csv")}


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Path]:
    """Run on `tmp_path/in`; built-in search, one process, no validation unless told otherwise."""

    def run(name: str = "out", **options) -> Path:
        defaults = {"search": "builtin", "processes": 1, "validation": 0.0}
        settings = PrepareSettings(
            structures=options.pop("structures", (tmp_path / "in",)), out=tmp_path / name, **{**defaults, **options}
        )
        run_prepare(settings)
        return tmp_path / name

    (tmp_path / "in").mkdir()
    return run


def write(tmp_path: Path, name: str, *sequences: str, **options) -> None:
    text = pdb_text(*sequences, **options)
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def test_records_hold_what_the_files_say(prepare, tmp_path: Path) -> None:
    first, second, third = (random_sequence(40, seed) for seed in (1, 2, 3))
    write(tmp_path, "deep/er/1abc.pdb.gz", first, missing=[0, 1, 20], resolution=2.5, date="07-MAR-19")
    write(tmp_path, "two.pdb", second, third)
    out = prepare()
    rows = {row["name"]: row for row in load_from_disk(str(out))["train"]}
    assert rows.keys() == {"1abc", "two_A", "two_B"}
    row = rows["1abc"]
    assert row["sequence"] == first
    assert (row["resolution"], row["date"], row["chain"], row["resolved"]) == (2.5, "2019-03-07", "A", 37)
    assert row["file"].endswith("deep/er/1abc.pdb.gz")
    mask = np.array(row["atom_mask"]).reshape(40, 37)
    assert np.flatnonzero(~mask[:, :3].all(axis=1)).tolist() == [0, 1, 20]
    assert not mask[:, 3:].any()
    assert row["residue_index"] == list(range(40))
    # The zigzag of the file: 3.7 A along x from residue to residue; coordinates are centred on the CA.
    positions = np.zeros((40, 37, 3))
    positions[mask] = np.array(row["coordinates"]).reshape(-1, 3)
    x = 3.7 * np.arange(40)
    seen = mask[:, 1]
    np.testing.assert_allclose(positions[seen, 1, 0], x[seen] - x[seen].mean(), atol=1e-3)
    assert rows["two_A"]["resolution"] is None
    assert rows["two_A"]["date"] is None
    assert rows["two_B"]["sequence"] == third


def test_chains_come_back_as_they_were_read(prepare, tmp_path: Path, structures: Path) -> None:
    out = prepare(structures=(structures,), filters=Filters(min_length=1, max_missing=1), processes=2)
    chains = load_prepared(out)
    assert len(chains) == len(table(out / "chains.csv")) >= 6
    files = {row["name"]: row for row in table(out / "chains.csv")}
    for chain in chains:
        source = read_structure(files[chain.name]["file"]).chain(files[chain.name]["chain"])
        expected = training_chain(source, chain.name)
        assert chain.sequence == expected.sequence
        for field in ("aatype", "residue_index", "atom_positions", "atom_mask"):
            got, wanted = getattr(chain, field), getattr(expected, field)
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)
    assert [chain.name for chain in chains[1:3]] == [chains[1].name, chains[2].name]
    assert chains[-1].name == chains[len(chains) - 1].name
    # Training takes the folder for a folder of structures.
    assert [chain.name for chain in read_chains(out).chains] == [chain.name for chain in chains]
    longest = max(len(chain) for chain in chains)
    short = read_chains(out, max_length=longest - 1)
    assert len(short.chains) < len(chains)
    assert all("residues, more than" in skipped.reason for skipped in short.skipped)


def test_every_rejection_has_its_reason(prepare, tmp_path: Path) -> None:
    write(tmp_path, "good.pdb", random_sequence(60, 1), resolution=2.0, date="01-JAN-10")
    write(tmp_path, "short.pdb", random_sequence(19, 2))
    write(tmp_path, "long.pdb", random_sequence(101, 3))
    write(tmp_path, "holes.pdb", random_sequence(60, 4), missing=range(10, 41))
    write(tmp_path, "unknown.pdb", random_sequence(53, 5) + "X" * 7)
    write(tmp_path, "coarse.pdb", random_sequence(60, 6), resolution=3.51)
    write(tmp_path, "nmr.pdb", random_sequence(60, 7))
    write(tmp_path, "undated.pdb", random_sequence(60, 8), resolution=2.0)
    write(tmp_path, "new.pdb", random_sequence(60, 9), resolution=2.0, date="01-MAY-20")
    write(tmp_path, "old.pdb", random_sequence(60, 10), resolution=3.5, date="30-APR-20")
    (tmp_path / "in" / "broken.pdb").write_text("<html>404</html>")
    filters = {"max_length": 100, "max_resolution": 3.5, "released_before": "2020-05-01"}
    out = prepare(filters=Filters(**filters))
    assert names(out) == {"good", "old"}
    why = rejected(out)
    assert {name: reason for name, (reason, _) in why.items()} == {
        "short": "too short",
        "long": "too long",
        "holes": "missing residues",
        "unknown": "unknown residues",
        "coarse": "resolution",
        "nmr": "no resolution",
        "undated": "undated",
        "new": "too new",
        "broken.pdb": "unreadable",
    }
    assert why["holes"][1] == "31 of 60 residues without N, CA and C (0.517 > 0.5)"
    assert why["new"][1] == "of 2020-05-01, not before 2020-05-01"
    report = json.loads((out / "report.json").read_text())
    assert (report["files"], report["chains_read"], report["chains"]) == (11, 10, 2)
    assert sum(report["rejected"].values()) == 9
    kept = prepare("kept", filters=Filters(**filters, keep_undated=True, keep_unknown_resolution=True))
    assert names(kept) == {"good", "old", "nmr", "undated"}


def test_of_duplicates_the_best_resolved_is_kept(prepare, tmp_path: Path) -> None:
    sequence = random_sequence(50, 1)
    write(tmp_path, "a.pdb", sequence, missing=[3], resolution=1.0)
    write(tmp_path, "b.pdb", sequence, resolution=2.5)
    write(tmp_path, "c.pdb", sequence, resolution=1.5)
    write(tmp_path, "d.pdb", sequence, sequence)
    write(tmp_path, "other.pdb", random_sequence(50, 2))
    out = prepare()
    assert names(out) == {"c", "other"}
    assert {name: detail for name, (_, detail) in rejected(out).items()} == dict.fromkeys(
        ("a", "b", "d_A", "d_B"), "the same sequence as c"
    )


@pytest.mark.parametrize("kind", ["fasta", "structures"])
def test_nothing_that_resembles_the_excluded_is_left(prepare, tmp_path: Path, kind: str) -> None:
    target = random_sequence(100, 1)
    write(tmp_path, "same.pdb", target)
    write(tmp_path, "relative.pdb", mutated(target, 0.45, 2))
    write(tmp_path, "inside.pdb", random_sequence(200, 3) + target + random_sequence(100, 4))
    write(tmp_path, "third.pdb", target[:33] + random_sequence(67, 5))
    write(tmp_path, "far.pdb", random_sequence(100, 6))
    other = random_sequence(80, 7)
    if kind == "fasta":
        exclude = tmp_path / "keep_out.fasta"
        exclude.write_text(f">T1 a target\n{target}\n>T2\n{other}\n")
    else:
        exclude = tmp_path / "keep_out"
        exclude.mkdir()
        (exclude / "T1.pdb").write_text(pdb_text(target, missing=range(20)))
        (exclude / "T2.fa").write_text(f">T2\n{other}\n")
    out = prepare(exclude=(exclude,))
    assert names(out) == {"third", "far"}
    why = rejected(out)
    assert {reason for reason, _ in why.values()} == {"resembles excluded"}
    assert why["same"][1].startswith("like T1: identity 1.000, coverage 1.000, E ")
    assert why["inside"][1].startswith("like T1: identity 1.000, coverage 1.000, E ")
    assert json.loads((out / "report.json").read_text())["excluded_sequences"] == 2


def test_no_family_is_in_both_splits(prepare, tmp_path: Path) -> None:
    for number in range(12):
        parent = random_sequence(70, 100 + number)
        for member in range(1 + number % 3):
            write(tmp_path, f"f{number}_{member}.pdb", mutated(parent, 0.7, 10 * number + member))
    out = prepare(validation=0.25, seed=1)
    rows = table(out / "chains.csv")
    assert sum(row["split"] == "validation" for row in rows) == 6
    of_family: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        of_family.setdefault(row["name"].split("_")[0], set()).add((row["cluster"], row["split"]))
    assert all(len(places) == 1 for places in of_family.values())
    assert len({cluster for places in of_family.values() for cluster, _ in places}) == 12
    splits = load_from_disk(str(out))
    assert set(splits["train"]["name"]) == {row["name"] for row in rows if row["split"] == "train"}
    sizes = dict(zip(splits["train"]["name"], splits["train"]["cluster_size"]))
    assert all(size == 1 + int(name[1:].split("_")[0]) % 3 for name, size in sizes.items())
    # The same seed, more processes: the same rows. Another seed: others.
    again = prepare("again", validation=0.25, seed=1, processes=2)
    assert (again / "chains.csv").read_text() == (out / "chains.csv").read_text()
    other = prepare("other", validation=0.25, seed=2)
    assert (other / "chains.csv").read_text() != (out / "chains.csv").read_text()


def test_a_table_names_chains_sequences_and_dates(prepare, tmp_path: Path) -> None:
    first, second = random_sequence(40, 1), random_sequence(40, 2)
    write(tmp_path, "two.pdb", first, second, missing=[0, 1, 7], seqres=False)
    write(tmp_path, "one.pdb", second, seqres=False)
    path = tmp_path / "in" / "chains.csv"
    path.write_text(
        "# chains\nfile,chain,sequence,name,resolution,date,remark\n"
        f"two.pdb,A,{first},,1.8,2018-02-03,x\none.pdb,,,mine,,,\none.pdb,,{random_sequence(40, 9)},wrong,,,\n"
    )
    out = prepare(structures=(path,))
    rows = {row["name"]: row for row in load_from_disk(str(out))["train"]}
    assert rows.keys() == {"two_A", "mine"}
    assert (rows["two_A"]["sequence"], rows["two_A"]["date"]) == (first, "2018-02-03")
    assert rows["two_A"]["resolution"] == pytest.approx(1.8)
    mask = np.array(rows["two_A"]["atom_mask"]).reshape(40, 37)
    assert np.flatnonzero(~mask[:, 1]).tolist() == [0, 1, 7]
    assert rejected(out)["wrong"][0] == "sequence does not fit"
    assert "does not fit the sequence" in rejected(out)["wrong"][1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("chain\nA\n", "no column 'file'"),
        ("file\n", "a header and no row"),
        ("file,chain\na.pdb,A,B\n", "line 2: has 3 cells under 2 columns"),
        ("file,chain\n#\n,A\n", "line 3: names no file"),
        ("file,sequence\na.pdb,AC-D\n", "line 2: gap '-' at position 3"),
        ("file,resolution\na.pdb,x\n", "line 2: 'x' is no resolution"),
        ("file,date\na.pdb,2020-1-1\n", "line 2: '2020-1-1' is no date"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_chains_of_one_name_are_told_apart(prepare, tmp_path: Path) -> None:
    for seed, name in enumerate(("a/x.pdb", "b/x.pdb", "c/x.ent")):
        write(tmp_path, name, random_sequence(40, seed))
    assert names(prepare()) == {"x", "x~2", "x~3"}


def test_command_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(5):
        write(tmp_path, f"s{seed}.pdb", random_sequence(40, seed))
    out = tmp_path / "out"
    arguments = (tmp_path / "in", "--out", out, "--search", "builtin", "--processes", 1)
    result = protfold(*arguments, "--validation", 0.2)
    assert result.exit_code == 0, result.output
    assert "5 files, 5 chains read" in result.stdout
    assert "kept: 5 chains in 5 clusters, the largest of 1; 4 train, 1 validation" in result.stdout
    assert {path.name for path in out.iterdir()} == {
        "chains.csv",
        "dataset_dict.json",
        "rejected.csv",
        "report.json",
        "run.json",
        "train",
        "validation",
    }
    # A dataset is only replaced on request, and anything else never.
    result = protfold(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "holds a dataset made with other --validation" in result.stderr
    assert "replace it with --overwrite" in result.stderr
    (tmp_path / "in" / "bad.pdb").write_text("nothing")
    result = protfold(*arguments, "--overwrite", "--validation", 0)
    assert result.exit_code == 1
    assert "left out: 1 unreadable" in result.stdout
    assert "bad.pdb" in result.stderr
    assert not (out / "validation").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-length", "50", "--max-length", "40"], "--max-length 40 is below"),
        (["--identity", "30"], "--identity 30: use a fraction"),
        (["--released-before", "1.5.2020"], "--released-before '1.5.2020': write the date as YYYY-MM-DD"),
        (["--keep-undated"], "--keep-undated changes nothing without"),
        (["--validation", "1"], "--validation 1: use a fraction"),
        (["--search", "blast"], "--search 'blast': use auto"),
        (["--exclude", "absent.fasta"], "absent.fasta: there is no such file or folder"),
        (["--min-length", "41"], "no chain is left (1 too short); the first: s: 40 residues with N, CA and C"),
        (["--max-resolution", "0"], "above 0 angstrom"),
    ],
)
def test_what_cannot_run_is_told_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    write(tmp_path, "s.pdb", random_sequence(40, 0))
    result = protfold(tmp_path / "in", "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    # What was read stays for a run with other filters.
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "out.parsed"}


def test_what_is_no_dataset_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path, "s.pdb", random_sequence(40, 0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    result = protfold(tmp_path / "in", "--out", tmp_path / "mine", "--overwrite")
    assert result.exit_code == 2
    assert "holds something else" in result.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    with pytest.raises(ConfigError, match="is no dataset"):
        load_prepared(tmp_path / "mine")


def test_an_excluded_sequence_that_cannot_be_read_stops_the_run(tmp_path: Path, prepare) -> None:
    write(tmp_path, "s.pdb", random_sequence(40, 0))
    (tmp_path / "bad.fasta").write_text(">one\nACDEF\n>two\nAC1\n")
    with pytest.raises(ProtfoldError, match=r"bad\.fasta: record 2 \(two\): digit '1' at position 3"):
        prepare(exclude=(tmp_path / "bad.fasta",))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_thousands_of_real_chains_go_through_in_one_run(tmp_path: Path, test_data: Path) -> None:
    result = protfold(test_data / "structures" / "train", "--out", tmp_path / "out", "--search", "builtin")
    assert result.exit_code == 0, result.output
    with (test_data / "structures" / "manifest.tsv").open() as handle:
        sequences = {row["name"]: row["sequence"] for row in csv.DictReader(handle, delimiter="\t")}
    splits = load_from_disk(str(tmp_path / "out"))
    for split in splits.values():
        assert all(sequences[name] == sequence for name, sequence in zip(split["name"], split["sequence"]))
    assert splits["train"].num_rows + splits["validation"].num_rows == len(sequences) == 3161
    assert not set(splits["train"]["cluster"]) & set(splits["validation"]["cluster"])

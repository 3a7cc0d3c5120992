"""Whole runs with a stand-in for the model: what is skipped, redone, reported, and how shards add up."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from Bio.PDB import MMCIFParser, PDBParser

from protfold_peft.errors import ConfigError, NonFiniteError, ProtfoldError
from protfold_peft.folding import outputs, run
from protfold_peft.folding.inputs import gather
from protfold_peft.folding.lock import LOCK_NAME, writing_alone
from protfold_peft.folding.run import run_prediction
from protfold_peft.folding.settings import RunSettings

TEXT = ">mono first\nMKTAYIAKQR\n>duo second\nMKTA:YIAKQ\n>other\nMKTAYI\n"


@pytest.fixture
def fasta(tmp_path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(TEXT)
    return path


def go(fasta: Path, out: Path, **options):
    values = {"plots": False, "report": False, "device": "cpu"}
    return run_prediction(RunSettings((str(fasta),), out, **{**values, **options}))


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as handle:
        return {row["name"]: row for row in csv.DictReader(handle)}


def test_files_hold_what_the_model_gave(tmp_path, fasta, stand_in):
    out = tmp_path / "out"
    result = go(fasta, out, formats=("pdb", "cif"), plots=True, report=True)
    assert (result.folded, result.skipped, result.failed, result.exit_status) == (3, 0, 0, 0)
    records = {record.name: record for record in gather([str(fasta)]).records}
    batches = [[records[name] for name in names] for names in stand_in.batches]
    predictions = {each.record.name: each for batch in batches for each in stand_in.predict(batch, None)}
    assert set(predictions) == {"mono", "duo", "other"}
    rows = table(out / "summary.csv")
    assert list(rows) == ["mono", "duo", "other"]
    for name, prediction in predictions.items():
        scores = json.loads((out / f"{name}_scores.json").read_text())
        np.testing.assert_allclose(scores["plddt"], prediction.plddt, atol=0.00501)
        np.testing.assert_allclose(scores["pae"], prediction.pae, atol=0.00501)
        assert scores["max_pae"] == 31.75
        assert scores["ptm"] == pytest.approx(prediction.ptm, abs=5e-5)
        assert scores["provenance"]["model"] == "stand-in"
        assert "UNTRAINED" in scores["provenance"]["warning"]
        [layout] = json.loads((out / f"{name}_predicted_aligned_error_v1.json").read_text())
        assert set(layout) == {"predicted_aligned_error", "max_predicted_aligned_error"}
        assert layout["predicted_aligned_error"] == scores["pae"]
        row = rows[name]
        assert row["status"] == "done"
        assert float(row["plddt"]) == pytest.approx(prediction.plddt.mean(), abs=0.00501)
        assert int(row["length"]) == len(prediction.plddt)
        for parser, suffix in ((PDBParser(QUIET=True), ".pdb"), (MMCIFParser(QUIET=True), ".cif")):
            model = parser.get_structure(name, out / f"{name}{suffix}")[0]
            ca = [atom for atom in model.get_atoms() if atom.get_id() == "CA"]
            np.testing.assert_allclose([atom.get_bfactor() for atom in ca], prediction.plddt, atol=0.0051)
            assert [chain.id for chain in model] == [chain.id for chain in prediction.structure.chains]
            positions = np.concatenate([chain.atom_positions[:, 1] for chain in prediction.structure.chains])
            np.testing.assert_allclose([atom.coord for atom in ca], positions, atol=0.00051)
        for suffix in ("_plddt.png", "_pae.png"):
            assert (out / f"{name}{suffix}").read_bytes().startswith(b"\x89PNG")
    scores = json.loads((out / "duo_scores.json").read_text())
    assert scores["chain_ids"] == ["A", "B"]
    assert scores["chain_lengths"] == [4, 5]
    assert np.shape(scores["chain_pair_iptm"]) == (2, 2)
    assert rows["mono"]["iptm"] == ""
    assert float(rows["duo"]["iptm"]) == scores["iptm"]
    remarks = [line for line in (out / "mono.pdb").read_text().splitlines() if line.startswith("REMARK")]
    assert any("UNTRAINED" in line for line in remarks)
    assert any("stand-in" in line for line in remarks)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [LOCK_NAME]


def test_finished_records_are_skipped(tmp_path, fasta, stand_in):
    go(fasta, tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("mono*")}
    stand_in.batches.clear()
    result = go(fasta, tmp_path / "out")
    assert (result.folded, result.skipped, stand_in.batches) == (0, 3, [])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert go(fasta, tmp_path / "out", overwrite=True).folded == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda out, model: {"recycles": 1}, "recycles was 3, is 1"),
        (lambda out, model: setattr(model, "id", "another") or {}, "model was stand-in, is another"),
        (lambda out, model: setattr(model, "adapter_hash", "abc") or {}, "adapter was none, is abc"),
        (lambda out, model: setattr(model, "precision", "bf16/bf16") or {}, "precision was fp32/fp32, is bf16/bf16"),
        (lambda out, model: {"formats": ("pdb", "cif")}, "mono.cif is missing"),
        (lambda out, model: [p.unlink() for p in out.glob("*.pdb")] and {}, "mono.pdb is missing"),
    ],
    ids=["recycles", "model", "adapter", "precision", "formats", "deleted"],
)
def test_what_was_made_otherwise_is_made_again_and_said(tmp_path, fasta, stand_in, capsys, change, reason):
    out = tmp_path / "out"
    go(fasta, out)
    result = go(fasta, out, **change(out, stand_in))
    assert (result.folded, result.skipped) == (3, 0)
    assert f"mono: folded again: {reason}" in capsys.readouterr().err


def test_another_sequence_of_the_same_name_is_folded_and_leaves_nothing_of_the_first(tmp_path, fasta, stand_in, capsys):
    out = tmp_path / "out"
    go(fasta, out, formats=("pdb", "cif"))
    fasta.write_text(">mono\nMKTAY\n")
    result = go(fasta, out)
    assert result.folded == 1
    assert "mono: folded again: the sequence differs" in capsys.readouterr().err
    assert not (out / "mono.cif").exists()
    assert (out / "duo.cif").exists()
    # The table keeps what earlier runs left in the folder.
    assert {name: row["length"] for name, row in table(out / "summary.csv").items()} == {
        "mono": "5",
        "duo": "9",
        "other": "6",
    }


def test_fewer_files_asked_for_is_no_reason_to_fold_and_plots_are_drawn_afterwards(tmp_path, fasta, stand_in):
    out = tmp_path / "out"
    go(fasta, out, formats=("pdb", "cif"))
    assert go(fasta, out, formats=("cif",)).skipped == 3
    assert not (out / "mono_pae.png").exists()
    assert go(fasta, out, plots=True).skipped == 3
    assert (out / "mono_pae.png").exists()
    assert "mono_pae.png" in json.loads((out / "mono.done.txt").read_text())["files"]


def test_failed_and_invalid_records_are_in_the_table_and_in_the_status(tmp_path, fasta, stand_in, monkeypatch, capsys):
    fasta.write_text(TEXT + ">broken\nMK-TA\n>huge\n" + "A" * 50 + "\n>nan\nMKTAYIA\n")
    whole = stand_in.predict

    def predict(model, batch, recycles):
        if any(record.name == "huge" for record in batch):
            raise torch.OutOfMemoryError("CUDA out of memory")
        if any(record.name == "nan" for record in batch):
            raise NonFiniteError("nan: the model's PAE hold NaN or infinity")
        return whole(batch, recycles)

    monkeypatch.setattr(run, "predict_batch", predict)
    out = tmp_path / "out"
    result = go(fasta, out)
    assert (result.folded, result.failed, result.invalid, result.exit_status) == (3, 2, 1, 1)
    rows = table(out / "summary.csv")
    assert {name: row["status"] for name, row in rows.items()} == {
        "mono": "done",
        "duo": "done",
        "other": "done",
        "huge": "failed",
        "nan": "failed",
        "broken": "invalid",
    }
    assert "out of memory" in rows["huge"]["error"]
    assert "gap '-' at position 3" in rows["broken"]["error"]
    assert "NaN" in rows["nan"]["error"]
    assert (out / "huge.failed.txt").exists()
    assert not (out / "huge.pdb").exists()
    errors = capsys.readouterr().err
    assert "huge: failed: out of memory" in errors
    assert f"{fasta}: record 4 ('broken', line 7)" in errors

    # The next run tries the failed ones again, and forgets that they failed.
    monkeypatch.setattr(run, "predict_batch", lambda model, batch, recycles: whole(batch, recycles))
    result = go(fasta, out)
    assert (result.folded, result.skipped, result.failed) == (2, 3, 0)
    assert not list(out.glob("*.failed.txt"))
    assert table(out / "summary.csv")["huge"]["status"] == "done"


def test_shards_make_the_files_of_the_whole(tmp_path, fasta, stand_in):
    fasta.write_text("".join(f">r{n}\n{'MKTAYIAKQR'[: 2 + n % 8]}\n" for n in range(17)) + ">bad\nMK1\n")
    one, many = tmp_path / "one", tmp_path / "many"
    go(fasta, one, max_tokens_per_batch=12)
    results = []
    for shard in range(3):
        assert not (many / "summary.csv").exists()
        results.append(go(fasta, many, max_tokens_per_batch=12, num_shards=3, shard=shard))
    assert sum(result.folded for result in results) == 17
    assert [result.exit_status for result in results] == [1, 0, 0]
    parts = [table(many / f"summary.shard-{shard}-of-3.csv") for shard in range(3)]
    assert sum(map(len, parts)) == 18
    # The last one to end writes the table of all, in the order of the input.
    assert list(table(many / "summary.csv")) == list(table(one / "summary.csv"))
    for path in one.glob("*.pdb"):
        assert path.read_bytes() == (many / path.name).read_bytes()
    assert sorted(path.name for path in many.glob("log*")) == [f"log.shard-{shard}-of-3.txt" for shard in range(3)]


def test_more_shards_than_batches_is_no_error(tmp_path, fasta, stand_in):
    result = go(fasta, tmp_path / "out", num_shards=50, shard=49)
    assert (result.folded, result.exit_status) == (0, 0)


def test_two_runs_do_not_write_the_same_results(tmp_path, fasta, stand_in):
    out = tmp_path / "out"
    out.mkdir()
    with writing_alone(out, ""):
        with pytest.raises(ProtfoldError, match="another run is writing"):
            go(fasta, out)
        with pytest.raises(ProtfoldError, match="another run is writing"):
            go(fasta, out, num_shards=2, shard=0)
    with writing_alone(out, ".shard-0-of-2"):
        with pytest.raises(ProtfoldError, match="another run is writing"):
            go(fasta, out, num_shards=2, shard=0)
        assert go(fasta, out, num_shards=2, shard=1).exit_status == 0
    assert go(fasta, out).exit_status == 0


def test_results_of_a_full_disk(tmp_path, fasta, stand_in, monkeypatch):
    out = tmp_path / "out"
    write = outputs.write_text
    calls = 0

    def full(path, text):
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, text)

    monkeypatch.setattr(outputs, "write_text", full)
    with pytest.raises(ProtfoldError, match=r"cannot write .*No space left on device"):
        go(fasta, out, max_tokens_per_batch=10)
    done = [path.name for path in out.glob("*.done.txt")]
    written = {path.name.split(".")[0].split("_")[0] for path in out.glob("*.pdb")}
    assert {name.removesuffix(".done.txt") for name in done} == written
    monkeypatch.undo()


def test_a_folder_that_cannot_be_made_stops_before_the_model_is_loaded(tmp_path, fasta, monkeypatch):
    monkeypatch.setattr(run, "load_model", lambda *args, **options: pytest.fail("loaded"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ProtfoldError, match="cannot write"):
        go(fasta, blocked / "out")


def test_nothing_readable_stops_and_only_invalid_records_do_not(tmp_path, stand_in, monkeypatch):
    with pytest.raises(ProtfoldError, match="no such file"):
        go(tmp_path / "gone.fasta", tmp_path / "out")
    bad = tmp_path / "bad.fasta"
    bad.write_text(">x\nMK1\n")
    result = go(bad, tmp_path / "out")
    assert (result.invalid, result.exit_status, stand_in.batches) == (1, 1, [])
    assert table(tmp_path / "out" / "summary.csv")["x"]["status"] == "invalid"


def test_an_interruption_leaves_a_table(tmp_path, fasta, stand_in, monkeypatch):
    whole = stand_in.predict

    def predict(model, batch, recycles):
        if any(record.name == "duo" for record in batch):
            raise KeyboardInterrupt
        return whole(batch, recycles)

    monkeypatch.setattr(run, "predict_batch", predict)
    with pytest.raises(KeyboardInterrupt):
        go(fasta, tmp_path / "out", max_tokens_per_batch=10)
    statuses = {name: row["status"] for name, row in table(tmp_path / "out" / "summary.csv").items()}
    assert statuses == {"mono": "done", "duo": "pending", "other": "done"}


@pytest.mark.parametrize("options", [{"recycles": 1}, {"overwrite": True}], ids=["settings", "overwrite"])
def test_interrupted_before_the_first_batch_no_earlier_result_passes_for_a_new_one(
    tmp_path, fasta, stand_in, monkeypatch, options
):
    def interrupted(model, batch, recycles):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    go(fasta, out)
    with monkeypatch.context() as patch:
        patch.setattr(run, "predict_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go(fasta, out, **options)
    assert {row["status"] for row in table(out / "summary.csv").values()} == {"pending"}
    options.pop("overwrite", None)
    assert go(fasta, out, **options).folded == 3


def test_plots_that_cannot_be_drawn_from_a_damaged_scores_file_are_made_by_folding(tmp_path, fasta, stand_in):
    out = tmp_path / "out"
    go(fasta, out)
    (out / "mono_scores.json").write_text("{")
    result = go(fasta, out, plots=True)
    assert (result.folded, result.skipped) == (1, 2)
    assert json.loads((out / "mono_scores.json").read_text())["mean_plddt"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"formats": ("pdb", "xyz")}, "unknown format 'xyz'"),
        ({"formats": ()}, "unknown format"),
        ({"num_shards": 2, "shard": 2}, "0 to 1"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_impossible_settings(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        RunSettings(("x",), tmp_path, **{"device": "cpu", **options})

"""The command line as a user meets it: help, errors in one line, exit statuses, and real predictions end to end."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import biotite.structure.io.pdb as pdb_io
import biotite.structure.io.pdbx as pdbx_io
import numpy as np
import pytest
from biotite.structure import get_residues
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.cli.predict import parse_chunk_size, parse_formats
from protfold_peft.errors import ConfigError
from protfold_peft.folding import run
from protfold_peft.folding.load import load_model

UNREAL = "UNTRAINED"


def protfold(*arguments: object, stdin: bytes | None = None):
    """Run a command in this process; standard output and error apart."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture
def program(tmp_path) -> list[str]:
    """The console script, as an installation makes it."""
    script = tmp_path / "bin" / "protfold"
    script.parent.mkdir()
    script.write_text("from protfold_peft.cli.main import main\n\nmain()\n")
    return [sys.executable, str(script)]


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture(scope="module")
def mini():
    return load_model("protfold-mini-untrained", device="cpu")


@pytest.fixture
def one_load(mini, monkeypatch):
    """Load the built-in model once for all tests of this file."""
    monkeypatch.setattr(run, "load_model", lambda model, *, adapter, **options: mini)


def test_help_imports_no_torch_and_names_every_command():
    code = (
        "import sys; sys.argv = ['protfold', '--help']\n"
        "from protfold_peft.cli.main import app\n"
        "app(standalone_mode=False)\n"
        "print('HEAVY', [name for name in ('torch', 'transformers', 'peft', 'numpy') if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
    for word in ("predict", "finetune", "convert"):
        assert word in done.stdout
    assert "HEAVY []" in done.stdout


def test_version(program):
    done = subprocess.run([*program, "--version"], env=environment(), capture_output=True, text=True, check=True)
    assert re.fullmatch(r"protfold \d+\.\d+\.\d+\n", done.stdout)


def test_help_of_predict_lists_its_options():
    text = protfold("predict", "--help").output
    for option in ("--model", "--adapter", "--recycles", "--max-tokens", "--chunk-size", "--format", "--num-shards"):
        assert option in text


def test_real_predictions_of_a_chain_and_a_complex(tmp_path, one_load):
    fasta = tmp_path / "in.fasta.gz"
    fasta.write_bytes(gzip.compress(b"\xef\xbb\xbf>trp cage\r\nnlyiqwlkdggpssgrppps*\r\n>two\r\nMKTAX:UYIAK\r\n"))
    out = tmp_path / "out"
    result = protfold("predict", fasta, "--out", out, "--format", "pdb,cif", "--recycles", 0, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"2 folded, 0 skipped (finished before), 0 failed; results in {out}\n"
    assert UNREAL in result.stderr

    expected = {"trp": [("A", 20)], "two": [("A", 5), ("B", 5)]}
    for name, chains in expected.items():
        scores = json.loads((out / f"{name}_scores.json").read_text())
        n = sum(length for _, length in chains)
        assert np.shape(scores["pae"]) == (n, n)
        assert UNREAL in scores["provenance"]["warning"]
        assert scores["provenance"]["recycles"] == "0"
        for structure in (
            pdb_io.PDBFile.read(out / f"{name}.pdb").get_structure(model=1, extra_fields=["b_factor"]),
            pdbx_io.get_structure(pdbx_io.CIFFile.read(out / f"{name}.cif"), model=1, extra_fields=["b_factor"]),
        ):
            ca = structure[structure.atom_name == "CA"]
            assert [(c, int((ca.chain_id == c).sum())) for c in dict.fromkeys(ca.chain_id)] == chains
            np.testing.assert_allclose(ca.b_factor, scores["plddt"], atol=0.011)
            assert np.isfinite(structure.coord).all()
    pdb = pdb_io.PDBFile.read(out / "trp.pdb")
    assert "".join(get_residues(pdb.get_structure(model=1))[1][:3]) == "ASNLEUTYR"
    assert any(UNREAL in line for line in pdb.lines if line.startswith("REMARK"))
    with (out / "summary.csv").open(newline="") as handle:
        rows = {row["name"]: row for row in csv.DictReader(handle)}
    assert {name: row["status"] for name, row in rows.items()} == {"trp": "done", "two": "done"}
    assert UNREAL in (out / "report.html").read_text()
    assert "trp" in (out / "log.txt").read_text()
    assert (out / "two_pae.png").read_bytes().startswith(b"\x89PNG")

    again = protfold("predict", fasta, "-o", out, "--recycles", 0, "--device", "cpu")
    assert again.stdout.startswith("0 folded, 2 skipped")
    assert again.exit_code == 0


def test_standard_input_and_a_bad_record_give_status_1(tmp_path, one_load):
    stdin = b">good\nMKTAYIAK\n>bad\nMK-T\n"
    result = protfold("predict", "-", "-o", tmp_path / "out", "--recycles", 0, "--no-plots", "--no-report", stdin=stdin)
    assert result.exit_code == 1
    assert "1 folded" in result.stdout
    assert "1 invalid" in result.stdout
    assert "standard input: record 2 ('bad', line 3): gap '-' at position 3" in result.stderr
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.fasta"], "error: gone.fasta: no such file"),
        (["ok.fasta", "--format", "xyz"], "error: unknown format 'xyz'"),
        (["ok.fasta", "--chunk-size", "0"], "error: --chunk-size '0'"),
        (["ok.fasta", "--device", "tpu"], "error: unknown device 'tpu'"),
        (["ok.fasta", "--dtype", "fp8"], "error: unknown dtype 'fp8'"),
        (["ok.fasta", "--num-shards", "2", "--shard", "2"], "error: shard 2 of 2"),
        (["ok.fasta", "--model", "./no-such-folder", "--device", "cpu"], "no-such-folder"),
        (["ok.fasta", "--adapter", "./no-such-folder", "--device", "cpu"], "no-such-folder"),
        (["empty.fasta"], "error: empty.fasta: the file is empty"),
        (["page.html"], "error: page.html: not FASTA: line 1 looks like an HTML"),
    ],
)
def test_nothing_could_start_is_one_line_and_status_2(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("ok.fasta").write_text(">a\nMKTAYI\n")
    Path("empty.fasta").write_text("")
    Path("page.html").write_text("<html><body>404</body></html>")
    result = protfold("predict", *arguments, "--out", "out")
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert not list(Path().glob("out/*.pdb"))
    assert not Path("out/summary.csv").exists()


def test_debug_shows_the_traceback(tmp_path):
    result = protfold("predict", tmp_path / "gone.fasta", "--out", tmp_path / "out", "--debug")
    assert type(result.exception).__name__ == "ProtfoldError"


def test_interruption_is_status_130(tmp_path, monkeypatch):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKTAYI\n")

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "load_model", interrupted)
    result = protfold("predict", fasta, "--out", tmp_path / "out", "--device", "cpu")
    assert (result.exit_code, result.stderr.strip()) == (130, "interrupted")


def test_an_unexpected_error_is_one_line_too(tmp_path, monkeypatch):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKTAYI\n")
    monkeypatch.setattr(run, "load_model", lambda *args, **options: {}["missing"])
    result = protfold("predict", fasta, "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 2
    assert result.stderr.strip() == "error: unexpected KeyError: 'missing' (--debug shows where)"


def test_option_values():
    assert [parse_chunk_size(text) for text in ("auto", "None", " 64 ")] == ["auto", None, 64]
    for text in ("", "-1", "1.5", "\u0663"):
        with pytest.raises(ConfigError):
            parse_chunk_size(text)
    assert parse_formats("CIF, .pdb,,cif") == ("cif", "pdb")


@pytest.mark.slow
def test_the_program_killed_at_random_moments_ends_with_the_same_files(program, tmp_path):
    fasta = tmp_path / "in.fasta"
    sequence = "NLYIQWLKDGGPSSGRPPPS"
    fasta.write_text("".join(f">r{n}\n{sequence[: 6 + n]}\n" for n in range(14)))
    command = [*program, "predict", str(fasta), "--recycles", "0", "--max-tokens-per-batch", "40", "--device", "cpu"]

    def start(out: str) -> subprocess.Popen:
        return subprocess.Popen([*command, "--out", str(tmp_path / out)], env=environment(), stdout=subprocess.DEVNULL)

    def files(out: str) -> dict[str, bytes]:
        names = [p for p in (tmp_path / out).iterdir() if p.suffix in {".pdb", ".json", ".png"}]
        return {path.name: path.read_bytes() for path in names}

    assert start("whole").wait() == 0
    for files_before_kill in (1, 9, 30):
        process = start("killed")
        while len(list((tmp_path / "killed").glob("r*"))) < files_before_kill and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.wait()
    assert start("killed").wait() == 0
    assert files("killed") == files("whole")
    assert len(files("whole")) == 14 * 5

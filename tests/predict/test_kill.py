"""A run killed at any moment and started again leaves the files of an uninterrupted one.

The killed run is a forked process that sends itself SIGKILL just before its n-th change of the file system; every n
is tried.
"""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from protfold_peft.folding.lock import LOCK_NAME
from protfold_peft.folding.run import run_prediction
from protfold_peft.folding.settings import RunSettings

FASTA = ">a\nMKTAYI\n>b\nMKTA\n>c\nMK:TAY\n>d\nMKTAYIAKQRQISFVKSHFS\n>bad\nMK1\n"
# What may differ: times.
SECONDS = re.compile(r'"(seconds|finished)": [^\n]*')


@pytest.fixture
def fasta(tmp_path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


def settings_for(fasta: Path, out: Path, **options) -> RunSettings:
    # Batches of up to two records: a kill falls between the records of a batch, and between batches.
    values = {"max_tokens_per_batch": 59, "plots": False, "report": False, "formats": ("pdb",), "device": "cpu"}
    return RunSettings((str(fasta),), out, **{**values, **options})


def contents(folder: Path) -> dict[str, str]:
    """Every file but the log, without times."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("log"):
            continue
        text = path.read_bytes().decode("latin-1")
        if path.name == "summary.csv":
            text = re.sub(r",[0-9.]*(,[^,\n]*)$", r",\1", text, flags=re.MULTILINE)
        elif path.name == "report.html":
            text = re.sub(r'"seconds": [0-9.]+', "", text)
        found[path.name] = SECONDS.sub("", text) if path.name.endswith(".done.txt") else text
    return found


def run_and_die(settings: RunSettings, at: int) -> bool:
    """Run in a forked process that kills itself at its `at`-th file operation; whether it got that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def deadly(function):
            def wrapped(*args, **options):
                nonlocal count
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **options)

            return wrapped

        os.replace = deadly(os.replace)
        os.unlink = deadly(os.unlink)
        os.fsync = deadly(os.fsync)
        os._exit(run_prediction(settings).exit_status)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_file_operation(tmp_path, fasta, stand_in):
    whole = tmp_path / "whole"
    assert run_prediction(settings_for(fasta, whole)).exit_status == 1
    expected = contents(whole)
    assert {"a.pdb", "a_scores.json", "a.done.txt", "summary.csv"} <= set(expected)

    points = 0
    for at in range(1, 1000):
        out = tmp_path / f"killed-{at}"
        settings = settings_for(fasta, out)
        if not run_and_die(settings, at):
            break
        points += 1
        # No file is half there: what has its final name can be read.
        for path in out.glob("[!.]*.json"):
            json.loads(path.read_text())
        for path in out.glob("[!.]*.done.txt"):
            assert all((out / name).is_file() for name in json.loads(path.read_text())["files"])
        run_prediction(settings)
        assert contents(out) == expected, f"killed at operation {at}"
    # Four records with three files and a marker each, and the summary; fsync and replace for each of them.
    assert points >= (4 * 4 + 1) * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_with_plots_and_report_while_results_are_replaced(tmp_path, fasta, stand_in):
    out, whole = tmp_path / "out", tmp_path / "whole"
    options = {"plots": True, "report": True}
    run_prediction(settings_for(fasta, whole, recycles=1, **options))
    run_prediction(settings_for(fasta, out, recycles=2, **options))
    for at in (3, 25, 50):
        assert run_and_die(settings_for(fasta, out, recycles=1, **options), at)
    run_prediction(settings_for(fasta, out, recycles=1, **options))
    assert contents(out) == contents(whole)


def test_an_unfinished_batch_is_folded_whole_and_a_finished_one_is_not(tmp_path, fasta, stand_in):
    out = tmp_path / "out"
    run_prediction(settings_for(fasta, out))
    assert stand_in.batches == [["b", "a"], ["d"], ["c"]]
    (out / "a.done.txt").unlink()
    before = (out / "b.pdb").stat().st_mtime_ns
    stand_in.batches.clear()
    result = run_prediction(settings_for(fasta, out))
    assert stand_in.batches == [["b", "a"]]
    assert (result.folded, result.skipped) == (1, 3)
    assert (out / "b.pdb").stat().st_mtime_ns == before


def test_temporary_files_of_a_killed_run_are_removed_and_those_of_others_are_not(tmp_path, fasta, stand_in):
    out = tmp_path / "out"
    out.mkdir()
    mine = [".0123abcd.tmp.a.pdb", ".0123abcd.tmp.d_scores.json", ".0123abcd.tmp.summary.csv"]
    others = [".0123abcd.tmp.other.pdb", ".hidden", ".0123abcd.tmp.a.txt"]
    for name in [*mine, *others]:
        (out / name).write_text("half")
    run_prediction(settings_for(fasta, out))
    left = {path.name for path in out.iterdir() if path.name.startswith(".")}
    assert left == {*others, LOCK_NAME}

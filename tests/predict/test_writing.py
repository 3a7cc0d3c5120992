"""Results written by processes beside: the same files, and nothing lost when one of them, or the run, ends early."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protfold_peft.errors import ProtfoldError
from protfold_peft.folding import run
from protfold_peft.folding.inputs import gather
from protfold_peft.folding.markers import Done, Failed
from protfold_peft.folding.recovery import Folded
from protfold_peft.folding.run import run_prediction
from protfold_peft.folding.settings import RunSettings
from protfold_peft.folding.types import Prediction
from protfold_peft.folding.writing import Writers, WriteSettings, default_writers

TEXT = ">a\nMKTAYI\n>b\nMKTA\n>c\nMK:TAY\n>d\nMKTAYIAKQRQISFVKSHFS\n>e\nMKTAYIAKQRQISFVKSHFSMK\n"
SECONDS = re.compile(r'"(seconds|finished)": [^\n]*')


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(TEXT)
    return path


def settings_for(fasta: Path, out: Path, writers: int, **options) -> RunSettings:
    values = {"max_tokens_per_batch": 60, "plots": False, "report": False, "device": "cpu"}
    return RunSettings((str(fasta),), out, writers=writers, **{**values, **options})


def contents(folder: Path) -> dict[str, str]:
    """Every file of the records, without times."""
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(("log", "summary", ".protfold"))]
    return {path.name: SECONDS.sub("", path.read_bytes().decode("latin-1")) for path in files}


def outcomes(stand_in, fasta: Path) -> list[Folded]:
    return [Folded(stand_in.predict([record], None)[0], 1.0) for record in gather([str(fasta)]).records]


def test_the_files_are_those_of_a_run_without_them(tmp_path: Path, fasta: Path, stand_in) -> None:
    formats = ("pdb", "cif")
    alone = run_prediction(settings_for(fasta, tmp_path / "alone", 0, plots=True, formats=formats))
    beside = run_prediction(settings_for(fasta, tmp_path / "beside", 2, plots=True, formats=formats))
    assert (beside.folded, beside.failed) == (alone.folded, alone.failed) == (5, 0)
    expected = contents(tmp_path / "alone")
    assert contents(tmp_path / "beside") == expected
    assert len(expected) == 5 * 7
    # And it counts as finished.
    assert run_prediction(settings_for(fasta, tmp_path / "beside", 2, plots=True, formats=formats)).skipped == 5


def test_what_cannot_be_written_is_marked_as_failed(tmp_path: Path, fasta: Path, stand_in, monkeypatch) -> None:
    def predict(model, batch, recycles) -> list[Prediction]:
        predictions = model.predict(batch, recycles)
        for prediction in predictions:
            if prediction.record.name == "b":
                prediction.plddt[2] = float("nan")
        return predictions

    monkeypatch.setattr(run, "predict_batch", predict)
    result = run_prediction(settings_for(fasta, tmp_path / "out", 1))
    assert (result.folded, result.failed) == (4, 1)
    failed = json.loads((tmp_path / "out" / "b.failed.txt").read_text())
    assert failed["error"] == "b: pLDDT holds NaN or infinity"


@pytest.mark.parametrize("given_before", [0, 2])
def test_a_process_that_ends_early_loses_nothing(tmp_path: Path, fasta: Path, stand_in, caplog, given_before) -> None:
    given = outcomes(stand_in, fasta)
    how = WriteSettings(tmp_path, {"model": "m"}, ("pdb",), plots=False)
    told: list[Done | Failed] = []
    with Writers(how, 1) as writers:
        for outcome in given[:given_before]:
            told += writers.put(outcome)
        writers._beside[0]._process.kill()
        writers._beside[0]._process.wait()
        for outcome in given[given_before:]:
            told += writers.put(outcome)
        told += writers.finish()
    assert sorted(done.name for done in told) == ["a", "b", "c", "d", "e"]
    assert all((tmp_path / f"{name}.done.txt").is_file() for name in "abcde")
    assert caplog.messages == ["a process that writes results has ended early; this one writes in its place"]


def test_a_full_disk_ends_the_run(tmp_path: Path, fasta: Path, stand_in, monkeypatch) -> None:
    # Met by the process beside alone, as it starts.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import os\n\n\ndef fsync(handle):\n    raise OSError({errno.ENOSPC}, 'No space left on device')\n\n\n"
        "os.fsync = fsync\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    with pytest.raises(ProtfoldError, match=r"cannot write .*: No space left on device; what is finished is kept"):
        run_prediction(settings_for(fasta, tmp_path / "out", 1))
    assert not list((tmp_path / "out").glob("*.done.txt"))
    assert not list((tmp_path / "out").glob(".*.tmp.*"))


def ends_at_the_second_batch(end: Callable[[], None], monkeypatch) -> None:
    calls = 0

    def predict(model, batch, recycles) -> list[Prediction]:
        nonlocal calls
        calls += 1
        if calls == 2:
            end()
        return model.predict(batch, recycles)

    monkeypatch.setattr(run, "predict_batch", predict)


def test_after_an_interruption_everything_folded_is_written(tmp_path: Path, fasta: Path, stand_in, monkeypatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    ends_at_the_second_batch(interrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_prediction(settings_for(fasta, tmp_path / "out", 1))
    done = {path.name.removesuffix(".done.txt") for path in (tmp_path / "out").glob("*.done.txt")}
    assert done == set(stand_in.batches[0])


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not end processes with their parent")
def test_killed_and_run_again(tmp_path: Path, fasta: Path, stand_in, monkeypatch) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_prediction(settings_for(fasta, whole, 0))
    child = os.fork()
    if child == 0:
        ends_at_the_second_batch(lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
        run_prediction(settings_for(fasta, out, 2))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    run_prediction(settings_for(fasta, out, 2))
    assert contents(out) == contents(whole)


def test_processes_are_for_long_runs_on_a_gpu() -> None:
    assert default_writers("cpu", 10_000) == default_writers("cuda:0", 3) == 0
    assert 1 <= default_writers("cuda:0", 10_000) <= 4

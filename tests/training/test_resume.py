"""Killed at any moment, a run goes on from its newest whole checkpoint to the same weights, bit by bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.training import checkpoints, finetune, output, weights
from protfold_peft.training.trainer import StructureTrainer

# Everything random there is: crops, dropout of the language model and of the adapter, recycles, hidden residues.
RANDOM: dict[str, Any] = {
    "model": {"dropout": 0.2, "recycles": 2},
    "adapter": {"dropout": 0.1},
    "data": {"crop_size": 11},
    "loss": {"clamped_fraction": 0.5},
    "training": {
        "steps": 9,
        "ema_decay": 0.9,
        "sample_recycles": True,
        "checkpoint_every": 2,
        "evaluate_every": 3,
        "patience": 50,
    },
}


# The language model's head starts anew, and is trained with all else.
FULL: dict[str, Any] = {
    **RANDOM,
    "mode": "full",
    "model": {**RANDOM["model"], "masked_lm_head": "new"},
    "loss": {"masked_lm": 0.1, "clamped_fraction": 0.5},
    "training": {**RANDOM["training"], "learning_rate": 1e-3},
}


def result_files(out: Path) -> dict[str, bytes]:
    names = ("adapter_model.safetensors", "model.safetensors", "masked_lm_head.safetensors", "validation.csv")
    return {name: (out / name).read_bytes() for name in names if (out / name).exists()}


def without_seconds(path: Path) -> list[list[str]]:
    return [[word for i, word in enumerate(line.split(",")) if i != 4] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("changes", [RANDOM, FULL], ids=["adapter", "full"])
def test_kill_and_resume_gives_the_same_bits(settings, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = finetune(settings(tmp_path / "whole", **changes))
    killed = settings(tmp_path / "killed", **changes)
    config = tmp_path / "run.yaml"
    config.write_text(output.config_yaml(killed))
    command = [sys.executable, "-m", "protfold_peft", "finetune", str(config)]
    log = tmp_path / "killed.partial" / output.METRICS
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        # Past the checkpoint of step 4, and before the end.
        while len(log.read_text().splitlines() if log.exists() else []) < 6:
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "killed").exists()
    newest = checkpoints.newest(tmp_path / "killed.partial")
    assert newest is not None
    assert newest.name != "checkpoint-8"

    with pytest.raises(ConfigError, match="is of an unfinished run: go on with --resume, or start anew"):
        finetune(killed)
    changed = killed.model_copy(update={"data": killed.data.model_copy(update={"crop_size": 12})})
    with pytest.raises(ConfigError, match=r"data.crop_size was 11 and is 12: resume with the settings of the run"):
        finetune(changed, resume=True)

    resumed = finetune(killed, resume=True)
    assert result_files(resumed.out) == result_files(whole.out)
    assert without_seconds(resumed.out / output.METRICS) == without_seconds(whole.out / output.METRICS)
    assert resumed.best_step == whole.best_step
    assert not (tmp_path / "killed.partial").exists()


def test_a_checkpoint_without_its_marker_is_passed_over(settings, tmp_path: Path) -> None:
    """The newest folder may be half-written: by the size of a file, or for want of the marker."""
    for step in (2, 4, 6, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trained.safetensors").write_bytes(b"x" * step)
        checkpoints.mark_complete(folder)
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-8"
    (tmp_path / "checkpoint-8" / checkpoints.MARKER).unlink()
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-6"
    (tmp_path / "checkpoint-6" / "trained.safetensors").write_bytes(b"x")
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-4"
    checkpoints.prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = weights.save

    def full(path: Path, values: Any) -> None:
        if "checkpoint-4" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        plain(path, values)

    monkeypatch.setattr(weights, "save", full)
    config = settings(tmp_path / "out", training={"steps": 6, "checkpoint_every": 2})
    with pytest.raises(ProtfoldError, match=r"cannot be written: No space left on device; checkpoint-2 is whole"):
        finetune(config)
    assert checkpoints.newest(tmp_path / "out.partial").name == "checkpoint-2"
    assert not (tmp_path / "out.partial" / "checkpoint-4").exists()
    monkeypatch.undo()
    assert finetune(config, resume=True).steps == 6


def test_a_resumed_run_that_was_done_only_finishes(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its last evaluation, say."""
    config = settings(tmp_path / "out", training={"steps": 4, "checkpoint_every": 4})
    monkeypatch.setattr(output, "publish", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        finetune(config)
    monkeypatch.undo()
    result = finetune(config, resume=True)
    assert (result.steps, result.out.exists()) == (4, True)
    fresh = finetune(settings(tmp_path / "fresh", training={"steps": 4, "checkpoint_every": 4}))
    assert result_weights(result.out) == result_weights(fresh.out)


def test_a_run_that_is_to_be_shorter_ends_with_its_last_step(settings, tmp_path: Path, monkeypatch) -> None:
    """With a constant learning rate fewer steps, or more, are no other run; the last one is judged all the same."""
    training = {"steps": 9, "checkpoint_every": 4, "evaluate_every": 9, "schedule": "constant"}
    monkeypatch.setattr(StructureTrainer, "training_step", interrupted_at(6))
    with pytest.raises(KeyboardInterrupt):
        finetune(settings(tmp_path / "out", training=training))
    monkeypatch.undo()
    shorter = finetune(settings(tmp_path / "out", training={**training, "steps": 4}), resume=True)
    fresh = finetune(settings(tmp_path / "fresh", training={**training, "steps": 4}))
    assert (shorter.steps, shorter.best_step) == (fresh.steps, fresh.best_step) == (4, 4)
    assert result_weights(shorter.out) == result_weights(fresh.out)
    assert (shorter.out / output.VALIDATION).read_text() == (fresh.out / output.VALIDATION).read_text()


def interrupted_at(step: int) -> Any:
    """A `training_step` at which the user presses Ctrl-C."""
    plain = StructureTrainer.training_step

    def stop(self: StructureTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if inputs["step"] == step:
            raise KeyboardInterrupt
        return plain(self, model, inputs, *args, **kwargs)

    return stop


def result_weights(out: Path) -> bytes:
    return (out / "adapter_model.safetensors").read_bytes()


def test_the_running_mean_is_the_closed_form() -> None:
    """Parameters 1, 2, 3, ... with decay d: the weights of the past fall by d; checked in float64."""
    model = torch.nn.Linear(1, 1, bias=False)
    values = [float(step) for step in range(1, 40)]
    with torch.no_grad():
        model.weight.fill_(0.5)
    mean = weights.RunningMean(model, 0.8)
    expected = 0.5
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        mean.update(model, step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert mean.mean["weight"].item() == pytest.approx(expected, rel=1e-5)
    with mean.in_place(model):
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == values[-1]


def test_training_stops_when_it_gets_no_better(settings, tmp_path: Path) -> None:
    """A learning rate of nearly nothing changes no score: the first evaluation stays the best."""
    training = {"steps": 20, "learning_rate": 1e-12, "evaluate_every": 2, "patience": 3, "warmup_steps": 0}
    result = finetune(settings(tmp_path / "out", training=training))
    assert (result.steps, result.best_step) == (8, 2)
    rows = (result.out / output.VALIDATION).read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "0", "2", "4", "6", "8"]


def test_the_best_weights_are_kept(settings, tmp_path: Path) -> None:
    """Rising, then ruined by a learning rate that rises without end: the result is the best evaluation's."""
    training = {"steps": 12, "evaluate_every": 2, "learning_rate": 2.0, "warmup_steps": 12, "schedule": "constant"}
    result = finetune(settings(tmp_path / "out", training=training))
    rows = (result.out / output.VALIDATION).read_text().splitlines()
    scores = {int(row.split(",")[0]): float(row.split(",")[1]) for row in rows[1:]}
    del scores[0]
    assert result.best_step == max(scores, key=lambda step: scores[step])
    assert result.adapted["lddt_ca"] == pytest.approx(max(scores.values()), abs=1e-6)
    assert json.loads((result.out / output.RESULTS).read_text())["best_step"] == result.best_step
    assert load_file(result.out / "adapter_model.safetensors")


def test_a_full_disk_at_the_log_or_the_results_can_be_gone_on_from(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of one line that name the file; the checkpoint before them is used afterwards."""
    config = settings(tmp_path / "out", training={"steps": 5, "checkpoint_every": 2})
    plain = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if self.name == output.METRICS and mode == "a" and self.exists() and "\n4," in self.read_text():
            raise OSError(28, "No space left on device")
        return plain(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ProtfoldError, match=r"metrics.csv cannot be written: No space left on device; free space"):
        finetune(config)
    monkeypatch.undo()
    assert checkpoints.newest(tmp_path / "out.partial").name == "checkpoint-4"

    def no_card(*args: Any, **kwargs: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "model_card", no_card)
    with pytest.raises(ProtfoldError, match=r"out.partial cannot be written: No space left on device"):
        finetune(config, resume=True)
    monkeypatch.undo()
    result = finetune(config, resume=True)
    fresh = finetune(settings(tmp_path / "fresh", training={"steps": 5, "checkpoint_every": 2}))
    assert result_weights(result.out) == result_weights(fresh.out)

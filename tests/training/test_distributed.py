"""Two processes give the loss curve of one."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from protfold_peft.training import finetune, output

TRAINING = {"steps": 5, "batch_size": 4, "warmup_steps": 0, "evaluate_every": 3, "checkpoint_every": None}


def curve(path: Path) -> list[float]:
    with path.open(newline="") as handle:
        return [float(row["loss"]) for row in csv.DictReader(handle)]


def launched(config: Path, out: Path, processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "protfold_peft", "finetune", str(config), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("mode", ["adapter", pytest.param("full", marks=pytest.mark.slow)])
def test_two_processes_give_the_curve_of_one(settings, tmp_path: Path, mode: str) -> None:
    loss = {"fape": 1.0, "distogram": 0.3}
    config = settings(tmp_path / "one", mode=mode, training=TRAINING, loss=loss, data={"crop_size": 12})
    one = finetune(config)
    (tmp_path / "run.yaml").write_text(output.config_yaml(config))
    launched(tmp_path / "run.yaml", tmp_path / "two", 2)
    assert curve(tmp_path / "two" / output.METRICS) == pytest.approx(curve(one.out / output.METRICS), rel=1e-4)
    assert curve(one.out / output.METRICS)[0] != curve(one.out / output.METRICS)[-1]
    table = (tmp_path / "two" / output.VALIDATION).read_text().splitlines()
    expected = (one.out / output.VALIDATION).read_text().splitlines()
    for own, theirs in zip(table[1:], expected[1:], strict=True):
        assert [float(x) for x in own.split(",")] == pytest.approx([float(x) for x in theirs.split(",")], abs=2e-3)


def test_accumulated_parts_give_the_curve_of_whole_steps(settings, tmp_path: Path) -> None:
    """Three parts of four samples: the parts are of unequal size, and weigh accordingly."""
    whole = finetune(settings(tmp_path / "whole", training=TRAINING, data={"crop_size": 12}))
    parts = finetune(settings(tmp_path / "parts", training={**TRAINING, "accumulate": 3}, data={"crop_size": 12}))
    assert curve(parts.out / output.METRICS) == pytest.approx(curve(whole.out / output.METRICS), rel=1e-4)

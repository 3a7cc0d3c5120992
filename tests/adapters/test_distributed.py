"""Training on two processes, which talk over gloo, against one process that sees the whole batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import TRAINED, WORLD, train_with_trainer

WORKER = Path(__file__).resolve().parent.parent / "distributed_worker.py"
ROADS = (
    "ddp",
    "ddp checkpointed",
    "ddp static reentrant",
    "fsdp by layer",
    "fsdp by layer checkpointed",
    "fsdp root",
    "fsdp root checkpointed",
    "fsdp, factors whole",
)

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)


def start(work: str, result: Path, **environment: str) -> subprocess.Popen[str]:
    known = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([str(WORKER.parent), *filter(None, [known.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, str(WORKER), work, str(result)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=known | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
    )


def finish(processes: list[subprocess.Popen[str]]) -> None:
    """Wait for all; none outlives the test."""
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


def on_two_processes(work: str, result: Path) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    finish([start(work, result, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(WORLD)])
    return [json.loads(result.with_suffix(f".{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    return on_two_processes("gradients", tmp_path_factory.mktemp("distributed") / "gradients")


@pytest.mark.parametrize("method", TRAINED)
def test_gradients_are_those_of_one_process(results, method):
    for rank in results:
        assert rank[method]["one half alone"] > 0.1
        errors = {road: rank[method][road] for road in ROADS}
        assert max(errors.values()) < 1e-6, errors


@pytest.mark.parametrize("method", TRAINED)
def test_reentrant_checkpointing_is_refused_unless_the_graph_is_static(results, method):
    for rank in results:
        if method == "lora":  # every factor belongs to one site: nothing goes wrong, and nothing is refused
            assert rank[method]["ddp reentrant"] < 1e-6
            continue
        assert rank[method]["ddp reentrant"].startswith("ConfigError: reentrant gradient checkpointing")
        assert "use_reentrant" in rank[method]["ddp reentrant"]
        assert "static_graph" in rank[method]["ddp reentrant"]


def test_torchs_own_checkpoint_is_judged_alike(results):
    for rank in results:
        assert rank["lorta"]["plain reentrant"].startswith("ConfigError: reentrant gradient checkpointing")
        assert rank["lorta"]["plain reentrant static"] < 1e-6
        assert rank["lorta"]["plain checkpoint"] < 1e-6


def test_what_does_no_harm_is_not_refused(results):
    for rank in results:
        for road in ("evaluated", "evaluated reentrant", "evaluated plain reentrant", "reentrant alone"):
            assert rank["lorta"][road] < 1e-6, road


def test_the_trainer_on_two_processes_equals_one(tmp_path):
    alone = train_with_trainer(tmp_path, batch=2 * WORLD)
    for rank in on_two_processes("trainer", tmp_path / "two"):
        for name, values in alone["after"].items():
            assert rank["after"][name] == pytest.approx(values, rel=1e-4, abs=1e-5)  # fp32
            assert rank["after"][name] != pytest.approx(alone["before"][name], rel=1e-2, abs=1e-6)

"""Benchmarks as users run them: rows, files and tables; what cannot be measured is a row that says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from protfold_peft.benchmarks import finetuning, measuring, suite, worker
from protfold_peft.benchmarks.machine import machine
from protfold_peft.benchmarks.models import StockEsmFold, build, configuration, connected
from protfold_peft.benchmarks.table import aims, lines, markdown
from protfold_peft.cli.main import app
from protfold_peft.errors import ConfigError
from protfold_peft.folding.model import EsmFold
from protfold_peft.runtime import resident_memory

CPU = torch.device("cpu")


def test_all_models_are_the_same_function() -> None:
    """Of the same size: stock, stock without its detach, and ours, each with weights that it drew itself."""
    ids = torch.randint(0, 20, (1, 17))
    outputs = []
    for kind, recycles in ((StockEsmFold, "num_recycles"), (connected(), "num_recycles"), (EsmFold, "recycles")):
        model = build(kind, configuration("mini"), CPU)
        with torch.no_grad():
            outputs.append(model(ids, **{recycles: 0}))
    assert outputs[0].distogram_logits.std() > 0.01
    for other in outputs[1:]:
        torch.testing.assert_close(other.distogram_logits, outputs[0].distogram_logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.positions, outputs[0].positions, rtol=1e-4, atol=1e-4)


def test_all_routes_train_the_same_loss() -> None:
    losses = {}
    for name in finetuning.CPU_ROUTES:
        route = finetuning.ROUTES[name]
        torch.manual_seed(0)
        model = finetuning._model(route, "mini", CPU)
        made = finetuning.made_batch(16, 1, CPU)
        output = model(made["input_ids"], made["attention_mask"], **{"recycles" if route.ours else "num_recycles": 0})
        total = finetuning.structure_loss(output, made, {"fape": 1.0, "distogram": 0.3}).total
        total.backward()
        losses[name] = total.item()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()), name
    assert max(losses.values()) - min(losses.values()) < 1e-4, losses


def test_measuring_counts_passes() -> None:
    calls = []
    row = measuring.measure(lambda: calls.append(None), CPU, seconds=0.0, least=3)
    assert len(calls) == 1 + row["passes"] == 4
    assert row["seconds"] <= row["median"]


@pytest.mark.skipif(resident_memory() is None, reason="this system does not tell a process its memory")
def test_measuring_tells_the_memory_of_a_pass() -> None:
    """In a process of its own: from one that has run for minutes the system takes back what it has not touched lately,
    and the resident memory falls while it is measured."""
    code = (
        "import torch; from protfold_peft.benchmarks.measuring import measure; "
        "print(measure(lambda: torch.ones(2**24).sum(), torch.device('cpu'), seconds=0.0)['activations'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 * 2**20 < int(done.stdout) < 200 * 2**20


def test_out_of_memory_is_a_row() -> None:
    def run() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    assert measuring.measure(run, CPU, seconds=1.0) == {"error": "out of memory"}
    with pytest.raises(RuntimeError, match="something else"):
        measuring.measure(lambda: (_ for _ in ()).throw(RuntimeError("something else")), CPU, seconds=1.0)


def test_rows_that_a_process_did_not_live_to_measure_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    row = {"route": "ours", "length": 16, "seconds": 0.5}
    script.write_text(
        f"import sys\nprint('noise')\nprint({worker.MARK + json.dumps(row)!r})\nsys.exit('the card fell off the bus')\n"
    )
    monkeypatch.setattr(suite, "_COMMAND", (str(script),))
    job: dict[str, Any] = {"part": "predict", "routes": ["ours"], "lengths": [16, 32], "threads": None}
    assert list(suite._measured(job, {})) == [
        row,
        {"route": "ours", "length": 32, "error": "the card fell off the bus"},
    ]


def test_the_command_measures_prints_and_keeps(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = ["bench", "predict", "--size", "mini", "--device", "cpu", "--threads", "1", "--seconds", "0"]
    result = CliRunner().invoke(app, [*command, "--lengths", "16", "--out", str(out)])
    assert result.exit_code == 0, result.output
    kept = json.loads(out.read_text())
    assert [(row["route"], row["length"]) for row in kept["rows"]] == [
        ("stock, whole", 16),
        ("stock, chunks of 64", 16),
        ("ours", 16),
    ]
    assert all(row["seconds"] > 0 for row in kept["rows"])
    assert kept["machine"]["versions"]["torch"] == torch.__version__
    for row in kept["rows"]:
        assert f"{row['residues_per_second']:,.1f}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "unknown part 'train': use predict, finetune, scores"),
        (["--size", "huge"], "unknown size 'huge': use mini, medium, full"),
        (["--lengths", "64,x"], "--lengths '64,x': use whole numbers"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_bad_requests_are_refused_in_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_unknown_routes_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown route 'theirs' of predict: use stock, whole; "):
        suite.Benchmark(size="mini", device="cpu", routes={"predict": ["theirs"]})


ROWS: list[dict[str, Any]] = [
    {"part": "predict", "route": "stock, whole", "length": 256, "seconds": 2.0, "peak": 4 * 2**30},
    {"part": "predict", "route": "stock, chunks of 64", "length": 256, "seconds": 4.0, "peak": 2 * 2**30},
    {"part": "predict", "route": "ours", "length": 256, "seconds": 0.5, "peak": 3 * 2**30},
    {"part": "finetune", "route": "ours, LoRTA", "length": 256, "seconds": 1.0, "peak": 2**30},
    {"part": "finetune", "route": "plain", "length": 256, "error": "out of memory"},
]
for each in ROWS:
    if "seconds" in each:
        each |= {
            "activations": each["peak"] // 2,
            "residues_per_second": 256 / each["seconds"],
            "reserved": each["peak"],
        }


def test_ratios_are_to_the_fastest_yardstick() -> None:
    cells = lines("predict", ROWS[:3])
    assert cells[2] == ["256", "ours", "512.0", "4.00x", "1.50 GiB", "0.75x", "3.00 GiB"]
    assert cells[1][3] == "0.50x"
    # Without a yardstick there is no ratio, and an error takes the place of a measurement.
    assert lines("finetune", ROWS[3:]) == [
        ["256", "ours, LoRTA", "1.000", "", "512 MiB", "", "1.00 GiB"],
        ["256", "plain", "out of memory", "", "", "", ""],
    ]
    assert "| 256 | ours | 512.0 | 4.00x | 1.50 GiB | 0.75x | 3.00 GiB |" in markdown(ROWS)


def test_aims_are_met_missed_or_not_measured() -> None:
    told = aims(ROWS)
    assert "prediction at 256 residues: 3 times stock's speed: met, 4.00" in told
    assert "prediction at 256 residues: half stock's peak: missed, 0.75" in told
    assert "prediction at 512 residues: half stock's peak: not measured" in told
    assert "a step at crop 256: half the time of 'plain': not measured" in told


def test_the_machine_is_told_in_json() -> None:
    told = json.loads(json.dumps(machine("cpu")))
    assert told["cores"] >= 1
    assert told["processor"]
    assert "gpu" not in told

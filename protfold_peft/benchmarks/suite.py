"""Running benchmarks in processes of their own, and keeping every row as soon as it is there.

One process measures a whole part: starting takes longer than measuring. On a CPU a second one does it again for the
peak memory: there glibc is told to give freed memory back at once, so that the peak is what was in use; that costs
time, so the seconds are those of the first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from protfold_peft.benchmarks import finetuning, prediction, scoring
from protfold_peft.benchmarks.machine import machine
from protfold_peft.benchmarks.models import SIZES
from protfold_peft.benchmarks.table import tables
from protfold_peft.benchmarks.worker import MARK, PARTS
from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.files import write_text
from protfold_peft.runtime import LOGGER, resolve_device

_FRUGAL = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
_COMMAND = ("-m", "protfold_peft.benchmarks.worker")
_MEMORY = ("peak", "activations")
_SCORED = (128, 256)
# Of tables that go to a file.
_WIDTH = 110


@dataclass(frozen=True)
class Benchmark:
    """What is to be measured.

    Attributes:
        size: A name of `models.SIZES`.
        device: `cpu`, `cuda`, `cuda:N` or `mps`.
        parts: Some of `worker.PARTS`.
        seconds: Limit of every measurement, start and warming up not counted.
        threads: Of a CPU.
        cpu_time: Count the time that the process computes in place of the clock's (a CPU only).
        lengths: By part; without an entry the size's own.
        routes: By part; without an entry all that the device can do.
        out: JSON file that is written anew after every row, or None.
    """

    size: str
    device: str
    parts: Sequence[str] = tuple(PARTS)
    seconds: float = 5.0
    threads: int | None = None
    cpu_time: bool = False
    lengths: dict[str, Sequence[int]] | None = None
    routes: dict[str, Sequence[str]] | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"unknown size '{self.size}': use {', '.join(SIZES)}")
        for part in self.parts:
            if part not in PARTS:
                raise ConfigError(f"unknown part '{part}': use {', '.join(PARTS)}")
        for part, routes in (self.routes or {}).items():
            for route in routes:
                if route not in _all_routes(part):
                    raise ConfigError(f"unknown route '{route}' of {part}: use {'; '.join(_all_routes(part))}")
        if self.cpu_time and resolve_device(self.device).type != "cpu":
            raise ConfigError("the processor's time says nothing of a GPU's: leave --cpu-time out")


def measured(benchmark: Benchmark, told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure everything, row by row; `benchmark.out` holds what is finished: `machine`, `settings` and `rows`.

    Every row has `part`, `route` and `length`, and what was measured (see `measuring.measure`) or an `error`.

    Args:
        benchmark: What is to be measured.
        told: Of `machine.machine`.

    Raises:
        ProtfoldError: The file cannot be written.
    """
    settings = {"size": benchmark.size, "seconds": benchmark.seconds, "threads": benchmark.threads}
    settings["cpu_time"] = benchmark.cpu_time
    result: dict[str, Any] = {"machine": told, "settings": settings, "rows": []}
    begin = time.monotonic()
    for job in _jobs(benchmark):
        for row in _rows(job, cpu=not benchmark.device.startswith("cuda")):
            row = {"part": job["part"], **row}
            result["rows"].append(row)
            result["elapsed"] = round(time.monotonic() - begin, 1)
            LOGGER.info("%s", row)
            if benchmark.out is not None:
                _write(benchmark.out, result)
            yield row


def run_and_tell(benchmark: Benchmark) -> int:
    """`run` with a progress line for every row, the tables on standard output, and the exit status.

    Returns:
        0, or 1 if a row could not be measured.

    Raises:
        KeyboardInterrupt: After the tables of what was measured.
    """
    rows: list[dict[str, Any]] = []
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    screen = Console(stderr=True)
    told = machine(benchmark.device)
    console.print(" | ".join(headline(told, benchmark)), highlight=False)
    try:
        with screen.status("measuring") as status:
            for row in measured(benchmark, told):
                rows.append(row)
                status.update(f"measuring: {row['part']}, {row['route']}, {row['length']} residues done")
    finally:
        for table in tables(rows):
            console.print(table)
        if rows and benchmark.out is not None:
            console.print(f"rows, machine and versions: {benchmark.out}", highlight=False)
    return 1 if any("error" in row for row in rows) else 0


def headline(told: dict[str, Any], benchmark: Benchmark) -> list[str]:
    """Where, and with what, in a few words each."""
    where = (
        told["gpu"]["name"] if "gpu" in told else f"{told['processor']}, {benchmark.threads or told['cores']} threads"
    )
    versions = ", ".join(f"{name} {told['versions'][name]}" for name in ("torch", "transformers", "peft"))
    return [where, versions, f"size {benchmark.size}, random weights"]


def _all_routes(part: str) -> Sequence[str]:
    return {"predict": prediction.ROUTES, "finetune": tuple(finetuning.ROUTES), "scores": scoring.ROUTES}[part]


def _jobs(benchmark: Benchmark) -> Iterator[dict[str, Any]]:
    """What the worker is told of every part."""
    size = SIZES[benchmark.size]
    cuda = benchmark.device.startswith("cuda")
    for part in benchmark.parts:
        lengths = {"predict": size.lengths, "finetune": size.crops, "scores": _SCORED}[part]
        lengths = tuple((benchmark.lengths or {}).get(part, lengths))
        routes = _all_routes(part) if part != "finetune" or cuda else finetuning.CPU_ROUTES
        routes = (benchmark.routes or {}).get(part, routes)
        yield {
            "part": part,
            "routes": tuple(routes),
            "size": benchmark.size,
            "device": benchmark.device,
            "lengths": lengths,
            "seconds": benchmark.seconds,
            "threads": benchmark.threads,
            "cpu_time": benchmark.cpu_time,
        }


def _rows(job: dict[str, Any], *, cpu: bool) -> Iterator[dict[str, Any]]:
    """The rows of a job; those that its process did not live to measure say so."""
    memory: dict[tuple[str, int], dict[str, Any]] = {}
    if cpu and job["part"] != "scores":
        memory = {(row["route"], row["length"]): row for row in _measured(job | {"seconds": 0.0}, _FRUGAL)}
    for row in _measured(job, {}):
        other = memory.get((row["route"], row["length"]), {})
        yield row | {key: other.get(key, row[key]) for key in _MEMORY if key in row}


def _measured(job: dict[str, Any], changes: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of a job as its worker gives them; for what is missing at its end, why."""
    missing = [(route, length) for route in job["routes"] for length in job["lengths"]]
    environment = os.environ | changes
    if job["threads"]:
        environment["OMP_NUM_THREADS"] = str(job["threads"])
    command = [sys.executable, *_COMMAND, json.dumps(job)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                if line.startswith(MARK):
                    row = json.loads(line.removeprefix(MARK))
                    missing.remove((row["route"], row["length"]))
                    yield row
        except BaseException:
            process.kill()
            raise
        told = process.stderr.read().strip().splitlines()[-1:]
        status = process.wait()
    if missing:
        # A process that the system killed says nothing; for want of memory, as a rule.
        reason = told[0][:300] if told else f"the measuring process ended with status {status}"
        yield from ({"route": route, "length": length, "error": reason} for route, length in missing)


def _write(path: Path, result: dict[str, Any]) -> None:
    try:
        write_text(path, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise ProtfoldError(f"cannot write {path}: {error.strerror or error}") from error

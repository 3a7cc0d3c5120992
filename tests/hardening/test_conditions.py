"""Every command under every condition that spoils a run: it works, or ends with one line and the right status.

Programs are started as a user starts them. Conditions that need root (a file system of a few kilobytes, no network) are
skipped, with that reason, where they cannot be had.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from adapter_methods import make_config
from peft import get_peft_model
from tiny_models import save_tiny_esm
from transformers import EsmForMaskedLM

REPOSITORY = Path(__file__).resolve().parents[2]
_PROGRAM = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'protfold'\nfrom protfold_peft.cli.main import main\nmain()",
]
_FEW = ["training.steps=1", "training.warmup_steps=0", "data.crop_size=16", "data.max_length=60", "--device", "cpu"]
# Nothing can be made there, not even by root.
_NOWHERE = "/proc/nowhere"


@dataclass(frozen=True)
class Place:
    """Where a command runs: `work` holds its inputs, `out` is where it writes."""

    work: Path
    out: Path


COMMANDS: dict[str, Callable[[Place], list[str]]] = {
    "predict": lambda p: ["predict", str(p.work / "in.fasta"), "-o", str(p.out / "p"), "--device", "cpu"],
    "prepare": lambda p: ["prepare", str(p.work / "chains"), "-o", str(p.out / "d"), "--processes", "1"],
    "init": lambda p: ["init", str(p.work / "chains"), "-o", str(p.out / "c.yaml")],
    "finetune": lambda p: [
        *("finetune", str(p.work / "run.yaml"), f"data.folder={p.work / 'chains'}", *_FEW, "-o", str(p.out / "r"))
    ],
    "evaluate": lambda p: [
        *("evaluate", str(p.work / "chains"), str(p.work / "chains"), "--csv", str(p.out / "scores.csv"))
    ],
    "to-lora": lambda p: ["adapter", "to-lora", str(p.work / "adapter"), "-o", str(p.out / "lora")],
    "merge": lambda p: ["adapter", "merge", str(p.work / "base"), str(p.work / "adapter"), "-o", str(p.out / "merged")],
    "data": lambda p: ["data", "casp14", "--from", str(p.work / "targets"), "-o", str(p.out / "t")],
    "mlm": lambda p: [
        *("lm", "mlm", str(p.work / "mlm.yaml"), f"model.name={p.work / 'base'}", f"data.train={p.work / 'in.fasta'}"),
        *("training.steps=1", "training.epochs=null", "--device", "cpu", "-o", str(p.out / "m")),
    ],
}
# These write nothing.
READING: dict[str, Callable[[Place], list[str]]] = {
    "info": lambda p: ["adapter", "info", str(p.work / "adapter")],
    "doctor": lambda p: ["doctor", "--no-fold"],
    "help": lambda p: ["predict", "--help"],
}


@dataclass(frozen=True)
class Condition:
    """What is wrong with the place or the machine.

    Attributes:
        statuses: Exit statuses that are right.
        environment: Variables to set; None unsets one.
        prefix: Before the program.
        folder: Name of the folder that everything is in.
        out: Where is written: a writable folder, one where nothing can be made, or a disk of a few kilobytes.
    """

    statuses: frozenset[int] = frozenset({0})
    environment: dict[str, str | None] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    folder: str = "plain"
    out: str = "writable"


_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None}
_ODD = "ä ö's/\N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C} (1)"
CONDITIONS = {
    "no_home": Condition(environment={"HOME": "/nonexistent", "HF_HOME": None, "XDG_CACHE_HOME": None}),
    "no_cache": Condition(environment={"HOME": _NOWHERE, "HF_HOME": _NOWHERE, "XDG_CACHE_HOME": _NOWHERE}),
    "no_network": Condition(prefix=("unshare", "-n")),
    "ascii": Condition(environment=_ASCII),
    "odd_paths": Condition(folder=_ODD),
    # A path that the locale cannot spell may be refused, in a line.
    "odd_paths_in_ascii": Condition(frozenset({0, 2}), _ASCII, folder=_ODD),
    "read_only": Condition(frozenset({2}), out="read_only"),
    "full_disk": Condition(frozenset({1, 2}), out="full"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, structures) -> Path:
    """Small inputs for all commands."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "in.fasta").write_text(">one\nNLYIQWLKDGGPSSGRPPPS\n>two\nMKTAYIAKQR\n")
    (folder / "chains").mkdir()
    for name in ("1AS5_A.pdb", "2BEG_A.pdb"):
        shutil.copy(structures / name, folder / "chains" / name)
    shutil.copytree(folder / "chains", folder / "targets")
    base = save_tiny_esm(folder / "base")
    adapted = get_peft_model(EsmForMaskedLM.from_pretrained(base), make_config("lorta", r=2, target_modules=["query"]))
    adapted.save_pretrained(folder / "adapter")
    shutil.copy(REPOSITORY / "configs" / "first_run.yaml", folder / "run.yaml")
    shutil.copy(REPOSITORY / "configs" / "mlm_esm2_35m.yaml", folder / "mlm.yaml")
    return folder


@contextmanager
def place_for(condition: Condition, inputs: Path, tmp_path: Path) -> Iterator[Place]:
    """The folders of a run, as the condition has them."""
    work = tmp_path / condition.folder
    shutil.copytree(inputs, work)
    if condition.out == "read_only":
        yield Place(work, Path(_NOWHERE))
        return
    out = tmp_path / condition.folder / "out"
    out.mkdir()
    if condition.out == "writable":
        yield Place(work, out)
        return
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(out)], capture_output=True)
    if made.returncode:
        pytest.skip("a small file system cannot be mounted here: not root, or in a container that forbids it")
    try:
        with suppress(OSError), (out / "rest").open("wb", buffering=0) as rest:
            while True:
                rest.write(bytes(512))
        yield Place(work, out)
    finally:
        subprocess.run(["umount", str(out)], check=False)


def start(condition: Condition, words: list[str], work: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    for name, value in condition.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    return subprocess.Popen(
        [*condition.prefix, *_PROGRAM, *words],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def check(status: int, told: bytes, statuses: frozenset[int]) -> None:
    text = told.decode("utf-8", "replace")
    assert "Traceback" not in text, text[-3000:]
    assert "unexpected" not in text, text[-3000:]
    assert status in statuses, (status, text[-3000:])
    lines = [line for line in text.splitlines() if line.strip()]
    if status == 2:
        assert lines[-1].startswith("error: "), text[-3000:]
        # The error stands once.
        assert sum(line.startswith("error: ") for line in lines) == 1


@pytest.mark.slow
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("command", [*COMMANDS, *READING])
def test_every_command_under_every_condition(inputs, tmp_path, command, condition):
    wanted = CONDITIONS[condition]
    if command in READING and wanted.out != "writable":
        pytest.skip("it writes nothing")
    if wanted.prefix and subprocess.run([*wanted.prefix, "true"], capture_output=True).returncode:
        pytest.skip("a network of its own cannot be made here: not root, or in a container that forbids it")
    with place_for(wanted, inputs, tmp_path) as place:
        process = start(wanted, {**COMMANDS, **READING}[command](place), place.work)
        _, told = process.communicate(timeout=600)
        check(process.returncode, told, wanted.statuses)
        if wanted.out == "full":
            # No file that looks whole is half written: what is there has no temporary name.
            assert not [path for path in place.out.rglob(".*tmp*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_an_interruption_is_one_line(inputs, tmp_path, command):
    """At three moments; one that comes after the end finds status 0."""
    for number, seconds in enumerate((0.3, 3.0, 8.0)):
        with place_for(Condition(), inputs, tmp_path / str(number)) as place:
            process = start(Condition(), COMMANDS[command](place), place.work)
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=600)
            # Before the program has begun, Python itself ends by the signal.
            assert process.returncode in {0, 130, -signal.SIGINT, 1} if seconds < 1 else {0, 130}
            if process.returncode == 130:
                assert told.decode().rstrip().endswith("interrupted")

"""Every command under every condition that spoils a run: it works, or ends with one line and the right status.

Conditions that need root (a file system of a few kilobytes, no network) are skipped, with that reason, where they
cannot be had.
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
from hardening.commands import COMMANDS, READING, REPOSITORY, Place, make_inputs
from hardening.program import Program

_PROGRAM = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'protfold'\nfrom protfold_peft.cli.main import main\nmain()",
]
# Nothing can be made there, not even by root.
_NOWHERE = "/proc/nowhere"


@dataclass(frozen=True)
class Condition:
    """What is wrong with the place or the machine.

    Attributes:
        statuses: Exit statuses that are right.
        environment: Variables to set; None unsets one.
        prefix: Before the program.
        folder: Name of the folder that everything is in.
        out: Where is written: a writable folder, one where nothing can be made, a disk that is read only, or one with
            so many bytes left.
    """

    statuses: frozenset[int] = frozenset({0})
    environment: dict[str, str | None] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    folder: str = "plain"
    out: str | int = "writable"


_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None}
_ODD = "ä ö's/\N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C} (1)"
CONDITIONS = {
    "no_home": Condition(environment={"HOME": _NOWHERE, "HF_HOME": None, "XDG_CACHE_HOME": None}),
    "no_cache": Condition(
        environment=dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR"), _NOWHERE)
    ),
    "no_network": Condition(prefix=("unshare", "-n")),
    "odd_paths": Condition(folder=_ODD),
    "odd_paths_in_ascii": Condition(environment=_ASCII, folder=_ODD),
    # A name from another age, whose bytes are no text; it may be refused, in a line.
    "bytes_in_paths": Condition(frozenset({0, 2}), folder=os.fsdecode(b"caf\xe9")),
    "nowhere": Condition(frozenset({2}), out="nowhere"),
    "read_only": Condition(frozenset({2}), out="read_only"),
    "full_disk": Condition(frozenset({1, 2}), out=0),
    # Some have enough of it.
    "nearly_full_disk": Condition(frozenset({0, 1, 2}), out=40_000),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, structures) -> Path:
    """Small inputs for all commands."""
    return make_inputs(tmp_path_factory.mktemp("inputs"), structures)


def environment_of(condition: Condition) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    # It would make the environment of every test another one.
    environment.pop("PYTEST_CURRENT_TEST", None)
    # Which shell completion is for is asked for by name: the tests may have been started by none.
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    for name, value in condition.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    return environment


@pytest.fixture(scope="module")
def programs() -> Iterator[Callable[[Condition], Program]]:
    """A function that gives the program under a condition, started when it is first asked for."""
    started: dict[str, Program] = {}

    def get(condition: Condition) -> Program:
        environment = environment_of(condition)
        key = repr((sorted(environment.items()), condition.prefix))
        if key not in started:
            started[key] = Program(environment, condition.prefix)
        return started[key]

    yield get
    for program in started.values():
        program.close()


@contextmanager
def place_for(condition: Condition, inputs: Path, tmp_path: Path) -> Iterator[Place]:
    """The folders of a run, as the condition has them."""
    work = tmp_path / condition.folder
    shutil.copytree(inputs, work)
    if condition.out == "nowhere":
        yield Place(work, Path(_NOWHERE))
        return
    out = work / "out"
    out.mkdir()
    if condition.out == "writable":
        yield Place(work, out)
        return
    room = condition.out if isinstance(condition.out, int) else 0
    # A kibibyte more than the room, for the folder itself.
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room // 4096 * 4 + 8}k", "tmpfs", out], capture_output=True
    )
    if made.returncode:
        pytest.skip("a small file system cannot be mounted here: not root, or in a container that forbids it")
    try:
        if condition.out == "read_only":
            subprocess.run(["mount", "-o", "remount,ro", out], check=True)
        elif not room:
            with suppress(OSError), (out / "rest").open("wb", buffering=0) as rest:
                while True:
                    rest.write(bytes(512))
        yield Place(work, out)
    finally:
        subprocess.run(["umount", out], check=False)


def check(status: int, text: str, statuses: frozenset[int]) -> None:
    assert "Traceback" not in text, text[-3000:]
    assert "unexpected" not in text, text[-3000:]
    assert "Exception ignored" not in text, text[-3000:]
    assert status in statuses, (status, text[-3000:])
    lines = [line for line in text.splitlines() if line.strip()]
    if status == 2:
        assert lines[-1].startswith("error: "), text[-3000:]
        # The error stands once.
        assert sum(line.startswith("error: ") for line in lines) == 1


def left(out: Path) -> list[Path]:
    """Files and folders under temporary names."""
    return [path for path in out.rglob("*") if ".tmp." in path.name or ".old." in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("command", [*COMMANDS, *READING])
def test_every_command_under_every_condition(inputs, programs, tmp_path, command, condition):
    wanted = CONDITIONS[condition]
    if command in READING and wanted.out != "writable":
        pytest.skip("it writes nothing")
    if wanted.prefix and subprocess.run([*wanted.prefix, "true"], capture_output=True).returncode:
        pytest.skip("a network of its own cannot be made here: not root, or in a container that forbids it")
    with place_for(wanted, inputs, tmp_path) as place:
        ended = programs(wanted).run({**COMMANDS, **READING}[command](place), place.work)
        check(ended.status, ended.told, wanted.statuses)
        if place.out.is_dir():
            # No file that looks whole is half written: what is there has no temporary name.
            assert left(place.out) == []
            made = [path for path in place.out.iterdir() if path.name != "rest"]
            assert made or ended.status or command in READING


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_an_interruption_in_the_midst_of_writing(inputs, programs, tmp_path, command):
    """At the first thing that is made, halfway, and at the last: one line, nothing half written, and it can go on."""
    program = programs(Condition())
    with place_for(Condition(), inputs, tmp_path / "whole") as place:
        whole = program.run(COMMANDS[command](place), place.work, under=place.out)
        assert whole.status == 0, whole.told
        assert whole.made
    for at in sorted({1, (whole.made + 1) // 2, whole.made}):
        with place_for(Condition(), inputs, tmp_path / str(at)) as place:
            words = COMMANDS[command](place)
            ended = program.run(words, place.work, under=place.out, at=at)
            check(ended.status, ended.told, frozenset({130}))
            assert ended.told.splitlines()[-1] == "interrupted"
            assert left(place.out) == []
            again = program.run(words, place.work)
            check(again.status, again.told, frozenset({0, 2}))
            if again.status:
                assert "--resume" in again.told or "--overwrite" in again.told, again.told
                way = "--resume" if "--resume" in again.told else "--overwrite"
                again = program.run([*words, way], place.work)
                check(again.status, again.told, frozenset({0}))
            assert left(place.out) == []


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.4, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("command", ["predict", "prepare", "evaluate", "mlm", "compare", "merge"])
def test_an_interruption_as_it_starts_is_one_line(inputs, tmp_path, command, seconds):
    """While modules are imported, as a rule; one that comes after the end finds status 0."""
    with place_for(Condition(), inputs, tmp_path) as place:
        process = subprocess.Popen(
            [*_PROGRAM, *COMMANDS[command](place)],
            cwd=place.work,
            env=environment_of(Condition()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # Whoever started the tests may ignore it, as a shell has it of what it runs in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            start_new_session=True,
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=600)
        text = told.decode()
        # Before the program has begun, Python itself ends by the signal; on a busy machine that may take a while.
        if (process.returncode, text) == (-signal.SIGINT, "") or (seconds < 0.3 and process.returncode == 1):
            return
        check(process.returncode, text, frozenset({0, 130}))
        if process.returncode == 130:
            assert text.splitlines()[-1] == "interrupted"

"""The program, ready to start: what commands import is imported once, and each command is a fork of that.

Imports take most of the time of so small a command. This process lives under the environment of a condition, so
what reads the environment when it is imported reads that; it starts as the program does, too. Run as a script it takes
a line of JSON for each command, and answers with a line of its exit status.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# The largest of what commands import when they run.
_MODULES = (
    *("adapters.folders.fit", "adapters.folders.export", "adapters.folders.info", "benchmarks.suite", "comparison"),
    *("data.casp", "data.prepare.run", "evaluation.run", "folding.convert", "folding.merge", "folding.predict"),
    *("folding.report", "language.serve", "language", "machine", "training.suggestion", "training", "runtime"),
)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status (negative: of a signal), what it said on standard error, and, where they were
    counted, how often it made or renamed something under a folder."""

    status: int
    told: str
    made: int


class Program:
    """The process that commands are forked from.

    Args:
        environment: All variables.
        prefix: Before the program, such as `unshare -n`.
    """

    def __init__(self, environment: Mapping[str, str], prefix: tuple[str, ...] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, words: list[str], folder: Path, *, seconds: float = 600, under: Path | None = None, at: int = 0
    ) -> Ended:
        """Run a command in `folder`, at most for so long; what is made `under` a folder is counted.

        With `at` it gets, as by Ctrl-C, an interruption at that count.
        """
        with tempfile.TemporaryDirectory() as place:
            told, made = Path(place, "told"), Path(place, "made")
            job = {"words": words, "folder": str(folder), "told": str(told), "seconds": seconds, "at": at}
            job |= {"under": None if under is None else str(under), "made": str(made)}
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            status = self._process.stdout.readline()
            assert status, "the program ended"
            count = made.stat().st_size if made.exists() else 0
            return Ended(int(status), told.read_bytes().decode("utf-8", "replace"), count)

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """Fork a command for every line; in the fork this returns, with the words in `sys.argv`."""
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(job)
            return
        timer = threading.Timer(job["seconds"], os.kill, (child, signal.SIGKILL))
        timer.start()
        _, status = os.waitpid(child, 0)
        timer.cancel()
        print(os.waitstatus_to_exitcode(status), flush=True)
    sys.exit()


def _become(job: dict) -> None:
    os.setsid()
    # The folder that matplotlib makes where it has no home: the first process to end would take it from the others.
    atexit.unregister(shutil.rmtree)
    for number, path in ((0, os.devnull), (1, os.devnull), (2, job["told"])):
        handle = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(job["folder"])
    sys.argv[1:] = job["words"]
    # Whoever started the tests may ignore it, as a shell has it of what it runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job["under"] is not None:
        _count(job["under"], job["made"], job["at"])


def _count(under: str, made: str, at: int) -> None:
    """A byte in the file `made` for everything that is made or renamed under the folder; at that count, Ctrl-C."""
    tally = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    here, done = os.getpid(), 0

    def see(event: str, arguments: tuple) -> None:
        nonlocal done
        if event == "open":
            counts = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            counts = event in ("os.mkdir", "os.rename")
        if not counts or os.getpid() != here or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if os.fsdecode(arguments[0]).startswith(under):
            os.write(tally, b".")
            done += 1
            if done == at:
                os.killpg(0, signal.SIGINT)

    sys.addaudithook(see)


if __name__ == "__main__":
    import importlib

    sys.argv = ["protfold"]
    from protfold_peft.cli.encoding import use_utf8
    from protfold_peft.cli.main import main

    use_utf8()
    for module in _MODULES:
        importlib.import_module(f"protfold_peft.{module}")
    # What is made once in every process: how weights are called, letters to draw, the packed viewer of reports.
    from matplotlib import pyplot

    from protfold_peft.folding.load import load_model
    from protfold_peft.pages import molstar

    load_model(device="cpu")
    pyplot.figure().add_subplot(title="one").figure.savefig(io.BytesIO())
    molstar()
    serve()
    main()

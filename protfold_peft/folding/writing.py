"""Writing results: in this process, or in processes beside it while the next batch folds.

Drawing and writing a record takes longer than a GPU needs to fold it, and a thread would not help: it would hold up
the one that keeps the GPU busy. A record's files are written by one process, in the same order and with the same
temporary names in both ways; what a process beside was given and has not written when it dies is written here.

The processes get outcomes and give back what became of them, both pickled: these pipes connect processes of one run
only.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from protfold_peft.errors import ProtfoldError
from protfold_peft.folding.markers import Done, Failed, discard, write_failed
from protfold_peft.folding.outputs import write_outputs
from protfold_peft.folding.recovery import Folded
from protfold_peft.runtime import LOGGER

# Nothing that follows could be written either, so the run stops instead of failing record after record.
FATAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})

# Under the program's own name the package leaves out what writing does not need; see its `__init__`.
_START = "import sys; sys.argv[0] = 'protfold'; from protfold_peft.folding.writing import serve; serve()"

# Records that may wait for each process: they are in memory meanwhile.
_MOST_WAITING = 16
# A run of fewer records is over before the processes have started.
FEWEST_RECORDS = 16
_MOST_PROCESSES = 4


@dataclass(frozen=True)
class WriteSettings:
    """What is written, and where.

    Attributes:
        folder: Of the results.
        key: What decides the results: model, adapter, recycles, precision.
        formats: `pdb`, `cif` or both.
        plots: Draw pLDDT and PAE.
    """

    folder: Path
    key: Mapping[str, str]
    formats: tuple[str, ...]
    plots: bool


def write(outcome: Folded | Failed, settings: WriteSettings) -> Done | Failed:
    """Write the files of a record, the marker last.

    Returns:
        The marker's content: of a record that cannot be written, why.

    Raises:
        OSError: Nothing can be written any more.
    """
    if isinstance(outcome, Folded):
        record = outcome.prediction.record
        try:
            return write_outputs(
                outcome.prediction,
                settings.folder,
                settings=settings.key,
                formats=settings.formats,
                plots=settings.plots,
                seconds=outcome.seconds,
            )
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FATAL_ERRNOS:
                discard(settings.folder, record.name)
                raise
            LOGGER.debug("writing %s failed", record.name, exc_info=True)
            text = f"{error}" if isinstance(error, ProtfoldError) else f"{type(error).__name__}: {error}"
            outcome = Failed(record.name, len(record), text, outcome.seconds)
    write_failed(settings.folder, outcome)
    return outcome


def default_writers(device: Any, n_records: int) -> int:
    """Processes to start when nobody says how many: none on a CPU, whose cores fold."""
    if not str(device).startswith("cuda") or n_records < FEWEST_RECORDS:
        return 0
    return max(1, min(_MOST_PROCESSES, (os.cpu_count() or 1) - 1))


class Writers:
    """Processes that write side by side; none of them: everything is written at once, here.

    A context manager: on leaving, whatever was given is written, also after an interruption.
    """

    def __init__(self, settings: WriteSettings, processes: int) -> None:
        self.settings = settings
        self._beside = [_Beside(settings) for _ in range(processes)]

    def put(self, outcome: Folded | Failed) -> Iterator[Done | Failed]:
        """Have an outcome written; yield what has been written by now, this or earlier ones.

        Raises:
            OSError: Nothing can be written any more.
        """
        if not self._beside:
            yield write(outcome, self.settings)
            return
        # In turn, by who has least to do.
        min(self._beside, key=lambda each: len(each.waiting)).give(outcome)
        for each in self._beside:
            yield from each.take(_MOST_WAITING)

    def finish(self) -> Iterator[Done | Failed]:
        """Yield the rest as it is written.

        Raises:
            OSError: Nothing can be written any more.
        """
        for each in self._beside:
            yield from each.take(0)

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._beside:
            each.close()


class _Beside:
    """One process that writes.

    Attributes:
        waiting: Outcomes it was given and has not told of, oldest first.
    """

    def __init__(self, settings: WriteSettings) -> None:
        self.settings = settings
        self.waiting: deque[Folded | Failed] = deque()
        self._told: SimpleQueue[Done | Failed | OSError | None] = SimpleQueue()
        package = Path(__file__).resolve().parent.parent.parent
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # One of many that share the cores, and numpy's threads would not know of each other.
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._alive = True
        self._send(settings)
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()

    def give(self, outcome: Folded | Failed) -> None:
        """Send an outcome to the process; until that answers it waits here too, to be written here if need be."""
        self.waiting.append(outcome)
        self._send(outcome)

    def take(self, most: int) -> Iterator[Done | Failed]:
        """What has been written; until no more than `most` outcomes wait."""
        while self.waiting and (len(self.waiting) > most or not self._alive or not self._told.empty()):
            told = self._told.get() if self._alive else None
            if told is None:
                yield from self._write_here()
            elif isinstance(told, OSError):
                self._alive = False
                self.waiting.clear()
                raise told
            else:
                self.waiting.popleft()
                yield told

    def close(self) -> None:
        """Let it write what it has, and wait for its end."""
        try:
            self._in.close()
        except OSError:
            self._alive = False
        self._process.wait()
        # Interrupted: nobody took what it told, but it is written.
        for _ in self.take(0):
            pass

    def _write_here(self) -> Iterator[Done | Failed]:
        if self._alive:
            self._alive = False
            LOGGER.warning("a process that writes results has ended early; this one writes in its place")
        while self.waiting:
            yield write(self.waiting.popleft(), self.settings)

    def _send(self, what: object) -> None:
        if not self._alive:
            return
        try:
            pickle.dump(what, self._in, pickle.HIGHEST_PROTOCOL)
            self._in.flush()
        except OSError:
            # It is gone; `take` learns so from its silence.
            return

    def _listen(self, out: BinaryIO) -> None:
        try:
            while True:
                self._told.put(pickle.load(out))
        except (EOFError, OSError, pickle.UnpicklingError):
            self._told.put(None)


def serve() -> None:
    """The process beside: write what comes in until nothing more does."""
    _end_with_parent()
    # Ctrl-C is for the run, which lets this one finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    # Whatever prints must not get between the answers.
    os.dup2(2, 1)
    try:
        settings: WriteSettings = pickle.load(incoming)
        while True:
            told: Done | Failed | OSError
            outcome = pickle.load(incoming)
            try:
                told = write(outcome, settings)
            except OSError as error:
                told = OSError(error.errno, error.strerror, error.filename)
            pickle.dump(told, outgoing, pickle.HIGHEST_PROTOCOL)
            outgoing.flush()
            if isinstance(told, OSError):
                return
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        return


def _end_with_parent() -> None:
    """Have the kernel end this process with the one that started it, where it can: the next run would meet it."""
    if sys.platform != "linux":
        return
    import ctypes

    set_signal_at_end_of_parent = 1
    ctypes.CDLL(None).prctl(set_signal_at_end_of_parent, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit(1)

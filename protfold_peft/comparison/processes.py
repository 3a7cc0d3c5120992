"""Worker processes that do one item after another, several at a time; one that dies is replaced, and an interruption
stops them all."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
# Whether an item may start: the item, and those that wait or run beside it.
Ready = Callable[[Item, Sequence[Item]], bool]
# What an item waits for may be a file that a running one writes, so it is asked again after so many seconds.
_AGAIN = 0.5


class Workers(Generic[Item]):
    """Processes that are told items, a line each on standard input, and answer with a line once an item is done.

    A process that ends instead of answering has failed in that item alone: the next goes to a new process.

    Args:
        at_a_time: How many work at a time.
        start: Starts a process for an item in a slot, 0 .. `at_a_time` - 1, which no other process has meanwhile. The
            item is not told to it yet.
        told: The line that tells of an item.
        ended: Told of the item and its exit status (0: done; negative: the signal that killed its process), in a
            thread; not of items that an interruption stopped.
        ready: Which items may start.
    """

    def __init__(
        self,
        at_a_time: int,
        start: Callable[[Item, int], subprocess.Popen[str]],
        told: Callable[[Item], str],
        ended: Callable[[Item, int], None],
        ready: Ready[Item],
    ) -> None:
        self._at_a_time = at_a_time
        self._start, self._told, self._ended, self._ready = start, told, ended, ready
        self._changed = threading.Condition()
        self._waiting: list[Item] = []
        self._busy: list[Item] = []
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, items: Sequence[Item]) -> None:
        """Until all have ended.

        Raises:
            KeyboardInterrupt: After all processes were told to end, and have.
        """
        self._waiting = list(items)
        pool = ThreadPoolExecutor(self._at_a_time)
        try:
            for _ in pool.map(self._work, range(min(self._at_a_time, len(items)))):
                pass
        except BaseException:
            with self._changed:
                self._stopped = True
                for process in self._processes:
                    process.terminate()
                self._changed.notify_all()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, slot: int) -> None:
        """The thread of one slot: hand items to a process until none are left; where it died, to a new one."""
        process: subprocess.Popen[str] | None = None
        while (item := self._next()) is not None:
            try:
                if process is None and (process := self._started(item, slot)) is None:
                    return
                status = _answer(process, self._told(item))
                if status:
                    self._gone(process)
                    process = None
                if not self._stopped:
                    self._ended(item, status)
            finally:
                with self._changed:
                    self._busy.remove(item)
                    self._changed.notify_all()
        if process is not None:
            _end(process)
            self._gone(process)

    def _next(self) -> Item | None:
        with self._changed:
            while self._waiting and not self._stopped:
                for place, item in enumerate(self._waiting):
                    others = [*self._waiting[:place], *self._waiting[place + 1 :], *self._busy]
                    if self._ready(item, others):
                        self._busy.append(self._waiting.pop(place))
                        return item
                self._changed.wait(_AGAIN)
        return None

    def _started(self, item: Item, slot: int) -> subprocess.Popen[str] | None:
        with self._changed:
            if self._stopped:
                return None
            process = self._start(item, slot)
            self._processes.add(process)
            return process

    def _gone(self, process: subprocess.Popen[str]) -> None:
        with self._changed:
            self._processes.discard(process)


def _answer(process: subprocess.Popen[str], line: str) -> int:
    """Tell a process of an item and wait: 0 once it answers, else its exit status, which is never 0."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # It has ended; its status says how.
    if process.stdout.readline():
        return 0
    _end(process)
    # One that ends well without an answer has not done what it was told.
    return process.returncode or 1


def _end(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a process that has nothing more to do."""
    try:
        process.communicate()
    except BrokenPipeError:
        process.wait()


def start_logged(command: Sequence[str], log: Path, slot: int, at_a_time: int) -> subprocess.Popen[str]:
    """Start a worker whose errors go to a log, with its share of the processors and a GPU of several."""
    environment = {**os.environ, **_share(slot, at_a_time, os.environ)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as handle:
        # A session of its own: Ctrl-C is for the main process, which stops the others.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=handle,
            text=True,
            env=environment,
            start_new_session=True,
        )


def _share(slot: int, at_a_time: int, environment: Mapping[str, str]) -> dict[str, str]:
    share = {}
    gpus = torch.cuda.device_count()
    if gpus > 1 and "CUDA_VISIBLE_DEVICES" not in environment:
        share["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
    if "OMP_NUM_THREADS" not in environment:
        share["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // at_a_time))
    return share

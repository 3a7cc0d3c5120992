"""Commands in processes of their own, several at a time; an interruption stops them all."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")


class Processes(Generic[Item]):
    """Runs a command for every item.

    Args:
        at_a_time: How many.
        start: Starts the process of an item in a slot, 0 .. `at_a_time` - 1, which no other process has meanwhile.
        ended: Told of the item and its exit status (negative: the signal that killed it), in a thread; not of
            processes that an interruption stopped.
    """

    def __init__(
        self,
        at_a_time: int,
        start: Callable[[Item, int], subprocess.Popen[bytes]],
        ended: Callable[[Item, int], None],
    ) -> None:
        self._start, self._ended = start, ended
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(at_a_time):
            self._slots.put(slot)
        self._at_a_time = at_a_time
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, items: Sequence[Item]) -> None:
        """Until all have ended.

        Raises:
            KeyboardInterrupt: After all processes were told to end, and have.
        """
        pool = ThreadPoolExecutor(self._at_a_time)
        try:
            for _ in pool.map(self._work, items):
                pass
        except BaseException:
            with self._lock:
                self._stopped = True
                for process in self._running:
                    process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, item: Item) -> None:
        slot = self._slots.get()
        try:
            with self._lock:
                if self._stopped:
                    return
                process = self._start(item, slot)
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.discard(process)
                stopped = self._stopped
            if not stopped:
                self._ended(item, status)
        finally:
            self._slots.put(slot)


def start_logged(command: Sequence[str], log: Path, slot: int, at_a_time: int) -> subprocess.Popen[bytes]:
    """Start a command that writes to a log, with its share of the processors and a GPU of several."""
    environment = {**os.environ, **_share(slot, at_a_time, os.environ)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as handle:
        # A session of its own: Ctrl-C is for the main process, which stops the others.
        return subprocess.Popen(
            command, stdout=handle, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def _share(slot: int, at_a_time: int, environment: Mapping[str, str]) -> dict[str, str]:
    share = {}
    gpus = torch.cuda.device_count()
    if gpus > 1 and "CUDA_VISIBLE_DEVICES" not in environment:
        share["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
    if "OMP_NUM_THREADS" not in environment:
        share["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // at_a_time))
    return share

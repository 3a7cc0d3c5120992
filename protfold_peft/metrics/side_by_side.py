"""Independent pieces of work, one per core.

Scores are thousands of small tensor operations. Splitting each of them over the cores costs more in waiting for one
another than it gains (on a busy machine, tens of times more); whole groups of pairs, a thread each, do not wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_SETTING = threading.local()


def side_by_side(work: Callable[[T], R], items: Sequence[T], device: torch.device) -> list[R]:
    """`[work(item) for item in items]` without gradients; on a CPU by `n_workers` threads.

    A GPU takes one item after the other: it is busy with each.
    """
    if device.type != "cpu":
        return [work(item) for item in items]

    def alone(item: T) -> R:
        # Whether gradients are kept is a matter of each thread.
        with torch.no_grad():
            return work(item)

    with one_core(device):
        n_threads = min(n_workers(device), len(items))
        if n_threads < 2:
            return [alone(item) for item in items]
        # Threads yet to start have the number that was set last anywhere: one.
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(alone, items))


@contextmanager
def one_core(device: torch.device) -> Iterator[None]:
    """Within, torch works on one core (no matter on a GPU); `n_workers` and `side_by_side` know of all the others."""
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        yield
        return
    _SETTING.n_threads = before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        del _SETTING.n_threads


def n_workers(device: torch.device) -> int:
    """Into how many items work is worth splitting at least."""
    return getattr(_SETTING, "n_threads", torch.get_num_threads()) if device.type == "cpu" else 1

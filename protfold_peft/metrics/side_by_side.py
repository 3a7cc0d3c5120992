"""Independent pieces of work, one per core.

Scores are thousands of small tensor operations. Splitting each of them over the cores costs more in waiting for one
another than it gains (on a busy machine, tens of times more); whole groups of pairs, a thread each, do not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Sequence[T], device: torch.device) -> list[R]:
    """`[work(item) for item in items]` without gradients; on a CPU by as many threads as torch may use.

    A GPU takes one item after the other: it is busy with each.
    """
    if device.type != "cpu":
        return [work(item) for item in items]
    n_threads = torch.get_num_threads()

    def alone(item: T) -> R:
        # Whether gradients are kept is a matter of each thread.
        with torch.no_grad():
            return work(item)

    try:
        if n_threads == 1 or len(items) < 2:
            torch.set_num_threads(1)
            return [alone(item) for item in items]
        with ThreadPoolExecutor(min(n_threads, len(items)), initializer=_use_one_core) as pool:
            return list(pool.map(alone, items))
    finally:
        # A thread's setting is its own, but threads yet to start take the last one made anywhere.
        torch.set_num_threads(n_threads)


def _use_one_core() -> None:
    torch.set_num_threads(1)


def n_workers(device: torch.device) -> int:
    """Into how many items work is worth splitting at least."""
    return torch.get_num_threads() if device.type == "cpu" else 1

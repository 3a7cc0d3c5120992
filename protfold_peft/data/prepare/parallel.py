"""One job on many items in several processes, results in order, with the progress bar."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from protfold_peft.errors import ProtfoldError
from protfold_peft.runtime import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    job: Callable[[Item], Result], items: Sequence[Item], *, processes: int, what: str, unit: str, chunk: int = 8
) -> Iterator[Result]:
    """`job(item)` for every item, in their order.

    Args:
        job: Handed to every process once, so that it may be a method of something large.
        items: What to work on.
        processes: How many at a time; with 1 it is done in this process.
        what: The bar's text.
        unit: What the bar counts.
        chunk: Items that go to a process at once.

    Raises:
        ProtfoldError: A process was killed from outside.
    """
    if processes == 1 or len(items) <= chunk:
        with progress_bar(unit) as progress:
            yield from progress.track(map(job, items), total=len(items), description=what)
        return
    # Forked, where that exists: a new interpreter would import torch for seconds in every process.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(min(processes, len(items)), context, _set_job, (job,)) as pool:
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of forking beside threads; the workers use none of those.
                warnings.simplefilter("ignore", DeprecationWarning)
                results = pool.map(_do_job, items, chunksize=chunk)
            with progress_bar(unit) as progress:
                yield from progress.track(results, total=len(items), description=what)
        except BrokenProcessPool as error:
            raise ProtfoldError(
                f"{what}: a process was killed, perhaps for want of memory: use fewer with --processes"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _set_job(job: Callable[[Any], Any]) -> None:
    global _job
    _job = job
    # Ctrl-C reaches every process of the terminal: the main one stops the others, without their tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _do_job(item: Any) -> Any:
    assert _job is not None
    return _job(item)


# What this process, one of several, does with each item.
_job: Callable[[Any], Any] | None = None

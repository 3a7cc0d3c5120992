"""Time and peak memory of something that is done again and again: the one routine behind every number.

On a GPU memory is what torch has handed out at its peak (`peak`) and what it has taken from the card (`reserved`); on a
CPU the resident memory of the process, which Linux tells and other systems do not.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from protfold_peft.runtime import resident_memory

MOST_PASSES = 20
OUT_OF_MEMORY = "out of memory"

_clock: Callable[[], float] = time.perf_counter


def measure(run: Callable[[], object], device: torch.device, *, seconds: float, least: int = 2) -> dict[str, Any]:
    """Do it once to warm up, then until `seconds` have passed.

    Args:
        run: What is measured; on a GPU it may return before the work is done.
        device: Where it runs.
        seconds: After so much time no further pass begins.
        least: Passes that are made even if they take longer.

    Returns:
        `seconds` of the fastest pass and `median`, `passes`, `peak` bytes, `activations` (the peak less what was there
        before) and on a GPU `reserved`; memory is None where it is not known. Out of memory: only `error`.
    """
    try:
        return _measured(run, device, seconds, least)
    except (torch.OutOfMemoryError, MemoryError) as error:
        # Its traceback holds the arrays that filled the memory.
        error.with_traceback(None)
    except RuntimeError as error:
        from protfold_peft.folding.recovery import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        error.with_traceback(None)
    release(device)
    return {"error": OUT_OF_MEMORY}


def count_processor_time() -> None:
    """From here on, in this process, time is that which it computes: on a busy machine others do not count much."""
    global _clock
    _clock = time.process_time


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _measured(run: Callable[[], object], device: torch.device, seconds: float, least: int) -> dict[str, Any]:
    """Time and memory of `run`, first pass apart."""
    cuda = device.type == "cuda"
    release(device)
    # A CPU's libraries set nothing aside for good worth speaking of: there the first pass counts for memory too.
    if not cuda:
        _reset_peak()
    held = torch.cuda.memory_allocated(device) if cuda else resident_memory("VmRSS")
    begin = _clock()
    run()
    _wait(device)
    first = _clock() - begin
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < least or (len(taken) < MOST_PASSES and time.perf_counter() - begin < seconds):
        start = _clock()
        run()
        _wait(device)
        taken.append(_clock() - start)
    peak = torch.cuda.max_memory_allocated(device) if cuda else resident_memory("VmHWM")
    row: dict[str, Any] = {
        "seconds": min(taken),
        "median": statistics.median(taken),
        "first": first,
        "passes": len(taken),
        "peak": peak,
        "activations": None if peak is None or held is None else max(0, peak - held),
    }
    if cuda:
        row["reserved"] = torch.cuda.max_memory_reserved(device)
    return row


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _reset_peak() -> None:
    """Start `VmHWM` anew, so that what came before does not count."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return

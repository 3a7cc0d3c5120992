"""What this machine has for a run: cores, main memory, GPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

GIB = 2**30
# Where a container is told how much memory it may take, by version 2 and version 1 of control groups.
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Gpu:
    """A CUDA device.

    Attributes:
        index: As in `cuda:INDEX`.
        name: As its driver calls it.
        memory_bytes: All of it.
        free_bytes: What other programs leave.
        bf16: It computes in bfloat16.
    """

    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """What a run can use.

    Attributes:
        cores: Those that this process may run on.
        memory_bytes: Main memory, or the limit of the container.
        free_bytes: What of it is not in use.
        gpus: CUDA devices.
        mps: There is an Apple GPU that PyTorch can use.
    """

    cores: int
    memory_bytes: int
    free_bytes: int
    gpus: tuple[Gpu, ...]
    mps: bool

    @property
    def device(self) -> str:
        """What `--device auto` takes: cuda, mps or cpu."""
        return "cuda" if self.gpus else "mps" if self.mps else "cpu"


def look() -> Machine:
    """The machine as this process sees it."""
    memory = psutil.virtual_memory()
    limit = min([memory.total, *_limits()])
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=limit,
        free_bytes=min(memory.available, limit),
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())) if torch.cuda.is_available() else (),
        mps=torch.backends.mps.is_available(),
    )


def _limits() -> list[int]:
    found = []
    for path in _MEMORY_LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdecimal():
            found.append(int(text))
    return found


def _gpu(index: int) -> Gpu:
    free, total = torch.cuda.mem_get_info(index)
    # The compute capability says what is built in; 8.0 is the first with bfloat16.
    bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
    return Gpu(index, torch.cuda.get_device_name(index), total, free, bf16)

"""The one place for seeds, devices, number formats, logging and progress bars."""

from __future__ import annotations

import logging
import random
import sys
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from packaging.version import Version
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from protfold_peft.errors import ConfigError

LOGGER = logging.getLogger("protfold")
LEAST_BITSANDBYTES = "0.47"

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from this generator)
    torch.manual_seed(seed)


def resolve_device(name: str = "auto") -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that exists here.

    Raises:
        ConfigError: The name is none of these, or no such device is present.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in {"cpu", "cuda", "mps"} or (index and not index.isdigit()):
        raise ConfigError(f"unknown device '{name}': use auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"device '{name}' is not present: {torch.cuda.device_count()} CUDA device(s) found; use cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' is not present on this machine; use cpu")
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether a GPU computes in bf16 itself; one that is not there is taken for a new one."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)


def configure_logging(log_file: Path | None = None, *, verbose: bool = False) -> None:
    """Send the `protfold` log to standard error (warnings; everything if `verbose`) and all of it to `log_file`."""
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
        handler.close()
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.INFO if verbose else logging.WARNING)
    screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    LOGGER.addHandler(screen)
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(log_file, encoding="utf-8")
        file.setLevel(logging.DEBUG)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOGGER.addHandler(file)


class RateColumn(ProgressColumn):
    """Finished units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The rate so far; empty before there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {self.unit}/s")


def progress_bar(unit: str) -> Progress:
    """A progress bar on standard error with a rate in `unit` and an ETA; silent when that is not a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use so far: of the GPU's memory, or of the process on a CPU; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on; on a CPU this works on Linux alone."""
    if device.type == "cuda":
        # Before its first use there is nothing to forget, and asking for it is an error.
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_memory(field: str = "VmRSS") -> int | None:
    """Bytes of memory that the process holds (`VmHWM`: held at most so far); None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


def require_bitsandbytes(setting: str) -> None:
    """See that bitsandbytes is there, and not a release that multiplies 8-bit matrices wrongly on a CPU (0.46 does).

    Args:
        setting: What asks for it, for the message.

    Raises:
        ConfigError: It is not installed, or too old.
    """
    try:
        found = version("bitsandbytes")
    except PackageNotFoundError:
        found = ""
    if not found or Version(found) < Version(LEAST_BITSANDBYTES):
        here = f", and {found} is installed" if found else ""
        raise ConfigError(
            f"{setting} needs bitsandbytes {LEAST_BITSANDBYTES} or newer{here}: "
            f"pip install 'bitsandbytes>={LEAST_BITSANDBYTES}'"
        )


def quieten() -> None:
    """Silence libraries that announce what they do; for commands, which tell the user what is worth knowing."""
    for name in ("bitsandbytes", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")

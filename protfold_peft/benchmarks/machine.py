"""Where a measurement was made: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from protfold_peft.version import __version__

_PACKAGES = ("torch", "transformers", "peft", "triton", "bitsandbytes", "numpy", "tmtools", "biotite")


def machine(device: str) -> dict[str, Any]:
    """What a reader needs to judge a number; plain values, fit for JSON.

    Args:
        device: What was measured on: `cpu`, `cuda`, `cuda:N` or `mps`.
    """
    versions = {"python": platform.python_version(), "protfold": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    told: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": device,
        "versions": versions,
        "commit": commit(),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        told["gpu"] = {
            "name": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return told


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout that the package runs from, `+` after it if files differ; None if installed."""
    here = Path(__file__).resolve().parent.parent.parent
    if not (here / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None

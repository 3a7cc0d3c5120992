"""Checkpoints that can be trusted: a folder counts only once our marker, written last and at once, is in it.

A run that is killed may leave its newest folder half-written. The marker lists every file of the checkpoint with its
size, so a folder that was copied or filled incompletely does not count either.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from protfold_peft.files import write_text

MARKER = "complete.json"
PREFIX = "checkpoint-"


def mark_complete(folder: Path) -> None:
    """Write the marker, after everything else is on the disk."""
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    write_text(folder / MARKER, json.dumps(sizes, indent=1) + "\n")


def is_complete(folder: Path) -> bool:
    """Whether the marker is there, and every file as it says."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest(folder: Path) -> Path | None:
    """The complete checkpoint of the latest step in `folder`; None if there is none."""
    return next((path for path in _checkpoints(folder) if is_complete(path)), None)


def prune(folder: Path, keep: int = 2) -> None:
    """Remove all but the newest complete checkpoints, and what is half-written before them."""
    complete = [path for path in _checkpoints(folder) if is_complete(path)]
    for path in _checkpoints(folder):
        if path not in complete[:keep]:
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Latest step first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix(PREFIX)))

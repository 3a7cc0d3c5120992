"""Where a run's results go, and where it works until then: of fine-tuning and of language models.

A run for `OUT` works in `OUT.partial` beside it and puts everything in place at its end: whatever stops it, `OUT` is
what it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from protfold_peft.errors import ConfigError
from protfold_peft.training import checkpoints


def working_folder(out: Path) -> Path:
    """Where a run for `out` works until it is done."""
    return out.with_name(f"{out.name}.partial")


def check_free(out: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Check that results may go to `out`; to be called before anything is computed.

    Raises:
        ConfigError: `out` has something in it, or an unfinished run has checkpoints, and `overwrite` is not set; or
            `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: name a folder for the results with --out")
    if overwrite:
        return
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(
            f"{out} is not empty: name another folder with --out, or replace its results with --overwrite"
        )
    unfinished = checkpoints.newest(working_folder(out))
    if unfinished is not None and not resume:
        raise ConfigError(f"{unfinished} is of an unfinished run: go on with --resume, or start anew with --overwrite")


def put_in_place(working: Path, out: Path, names: Sequence[str], replaced: Iterable[str]) -> None:
    """Move finished results from `working` to `out`.

    A new folder appears whole. In one that is there, other files are left alone.

    Args:
        working: The folder with the results and nothing else; it is gone afterwards.
        out: Where to.
        names: What is in `working`, in the order in which it is moved. What makes a folder an adapter or a model comes
            last, so that a crash in between leaves nothing that could be loaded by mistake.
        replaced: What an earlier run left in `out`, in the order in which it is removed before that.
    """
    for name in names:
        if (working / name).is_file():
            with (working / name).open("rb+") as handle:
                os.fsync(handle.fileno())
    if not out.exists():
        working.replace(out)
        return
    for name in replaced:
        old = out / name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    for name in names:
        (working / name).replace(out / name)
    working.rmdir()

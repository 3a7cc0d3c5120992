"""Keeping two runs from writing the same results at the same time.

The lock is the kernel's, not a file's presence: it ends with the process however that ends, so a killed run never
blocks the next one. Where the system or the file system has no such locks, runs go on without.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from protfold_peft.errors import ProtfoldError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".protfold.lock"


@contextmanager
def writing_alone(folder: Path, tag: str) -> Iterator[None]:
    """Hold a folder for this run, or for one shard of it: shards run side by side, two of the same number do not.

    Args:
        folder: Where the results go; must exist.
        tag: What sets the shard apart, empty for a run in one piece.

    Raises:
        ProtfoldError: Another run holds it.
    """
    if fcntl is None:
        yield
        return
    with ExitStack() as stack:
        wanted = [(LOCK_NAME, fcntl.LOCK_SH if tag else fcntl.LOCK_EX)]
        wanted += [(f".protfold{tag}.lock", fcntl.LOCK_EX)] if tag else []
        for name, kind in wanted:
            handle = stack.enter_context((folder / name).open("a"))
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise ProtfoldError(
                        f"another run is writing to {folder}: wait for it, or choose another --out"
                    ) from None
        yield

"""Writing files so that a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protfold_peft.errors import ProtfoldError

_TORCH_CANNOT_WRITE = re.compile(
    r"iostream error|inline_container\.cc.*unexpected pos|PytorchStreamWriter failed writing"
)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an error of a write name this file: one that finds the disk full knows of none.

    Raises:
        ProtfoldError: `torch.save` could not write, which it tells by RuntimeErrors about its own insides.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    except RuntimeError as error:
        if not _TORCH_CANNOT_WRITE.search(str(error)):
            raise
        raise ProtfoldError(f"{path}: a file could not be written; is the disk full?") from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and moved into place.

    The temporary name keeps the suffixes of `path` (writers that look at them still work) and starts with a dot.
    After an exception the temporary file is removed and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.tmp.{path.name}")
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; on success its files are flushed to disk and it is moved into place.

    What was at `path` is removed then, and not before; after an exception it is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    temporary, old = path.with_name(f".{mark}.tmp.{path.name}"), path.with_name(f".{mark}.old.{path.name}")
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                path.replace(old)
            temporary.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 with `\\n` line ends, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def named_in(table: Path, name: str) -> Path:
    """The file that a table names: beside the table if it is there, otherwise from the current folder; `~` is the home.

    A name that no file can have (too long, a null byte in it, the home of nobody) is taken as it is.
    """
    try:
        path = Path(name).expanduser()
        beside = table.parent / path
        return beside if beside.exists() else path
    except (OSError, ValueError, RuntimeError):
        return Path(name)

"""What all commands share: exit statuses, how errors reach the user, JSON for programs, examples in the help.

Nothing here or at the top of a command's module may import torch: `protfold --help` has to answer at once.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import typer

from protfold_peft.cli import interruptions_raise
from protfold_peft.errors import ConfigError, ProtfoldError

# Exit statuses, the same for every command; docs/command_line.md lists them.
SOME_FAILED = 1
COULD_NOT_RUN = 2
INTERRUPTED = 130
# As the name of a file to write.
STANDARD_OUTPUT = "-"


def command_group(name: str, help: str, *, short_help: str | None = None) -> typer.Typer:
    """A command that has commands of its own, with what all of the program's have in common."""
    return typer.Typer(
        name=name,
        help=help,
        short_help=short_help,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def examples(*lines: str) -> str:
    """The examples at the end of a command's help, one a line."""
    return "\n\n".join([f"Example{'s' if len(lines) > 1 else ''}:", *(f"- `{line}`" for line in lines)])


@contextmanager
def output_kept_for(document: bool) -> Iterator[None]:
    """With `document`, what libraries print meanwhile goes to standard error: the output is the document's alone."""
    if document:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def print_json(content: Any) -> None:
    """Print a dataclass or plain values as JSON; what JSON has no number for (NaN, infinity) becomes null."""
    typer.echo(json.dumps(_plain(content), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def one_folder(argument: Path | None, option: Path | None) -> Path:
    """The output folder of a command that takes it as OUT or as --out.

    Raises:
        ConfigError: It is given in neither way, or in both.
    """
    if (argument is None) == (option is None):
        raise ConfigError("give the folder to write once: as OUT, or with --out")
    return argument or option  # type: ignore[return-value]


@contextmanager
def error_boundary(*, debug: bool = False, command: bool = True) -> Iterator[None]:
    """Turn errors into one line on standard error and an exit status; with `debug` they keep their traceback.

    Args:
        debug: Errors are let through.
        command: A command begins with it: before, Ctrl-C ended the program at once.

    Raises:
        typer.Exit: Status 2 after an error, 130 after Ctrl-C.
    """
    try:
        if command:
            interruptions_raise()
        yield
    except ProtfoldError as error:
        _leave(f"error: {error}", COULD_NOT_RUN, error, debug)
    except KeyboardInterrupt as error:
        _leave("interrupted", INTERRUPTED, error, debug=False)
    except BrokenPipeError as error:
        # The reader of standard output is gone; nothing more can be told, and the exit must not try to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(SOME_FAILED) from error
    except typer.Exit:
        raise
    except OSError as error:
        # A full disk, a folder that cannot be written, a file that went away: the system's own words say what.
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        _leave(f"error: {where}{error.strerror or error}", COULD_NOT_RUN, error, debug)
    except UnicodeEncodeError as error:
        _leave(f"error: {_no_letters(error)}", COULD_NOT_RUN, error, debug)
    except Exception as error:
        text = f"error: unexpected {type(error).__name__}: {error} (--debug shows where)"
        # As libraries in Rust, safetensors among them, tell of a full disk.
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            text = f"error: a file could not be written or read: {os.strerror(int(found[1]))}"
        _leave(text, COULD_NOT_RUN, error, debug)


def _no_letters(error: UnicodeEncodeError) -> str:
    """Which name it was: Python hands on its bytes as characters that have no UTF-8."""
    around = error.object[: error.start].rpartition("\n")[2] + error.object[error.start :].partition("\n")[0]
    shown = around.strip().encode("utf-8", "backslashreplace").decode("utf-8")
    return f"'{shown}' is not in UTF-8: give the file or folder another name"


def _leave(message: str, status: int, error: BaseException, debug: bool) -> None:
    if debug:
        raise error
    typer.echo(" ".join(message.split()), err=True)
    raise typer.Exit(status) from error


def quieten() -> None:
    """`runtime.quieten`, imported when it is called."""
    from protfold_peft.runtime import quieten as silence

    silence()

"""What all commands share: how errors reach the user, and options with one meaning everywhere.

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
from typing import Annotated, Any

import typer

from protfold_peft.cli import interruptions_raise
from protfold_peft.errors import ConfigError, ProtfoldError

# Exit statuses, the same for every command; docs/command_line.md lists them.
SOME_FAILED = 1
COULD_NOT_RUN = 2
INTERRUPTED = 130

DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Output")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the whole log on the screen.", rich_help_panel="Output")
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON document, for programs.", rich_help_panel="Output"),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is in the output folder.", rich_help_panel="Output")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.", rich_help_panel="Running")]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel="Running", metavar="NAME")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        help="Number format: auto, fp32, bf16, or two as LANGUAGE_MODEL/TRUNK, such as bf16/fp32.",
        rich_help_panel="Running",
        metavar="NAME",
    ),
]
ReferenceKernelsOption = Annotated[
    bool,
    typer.Option(
        "--reference-kernels",
        help="Run the folding trunk on PyTorch's own operations, to compare, or to rule its kernels out as a cause. "
        "Slower on a GPU.",
        rich_help_panel="Running",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Hub id or folder of ESMFold weights, such as facebook/esmfold_v1. Without it the built-in model runs: "
        "small, for a laptop and short chains; see docs/protfold_mini.md.",
        rich_help_panel="Model",
        show_default="built-in",
    ),
]
AdapterOption = Annotated[
    Path | None, typer.Option(help="Folder of an adapter made by fine-tuning.", rich_help_panel="Model")
]


# The same settings for commands that take them from a configuration: a short way to write a key of it.
ModelKeyOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Short for model.name=NAME.", metavar="NAME", rich_help_panel="Running", show_default=False
    ),
]
DeviceKeyOption = Annotated[
    str | None,
    typer.Option(
        "--device", help="Short for model.device=NAME.", metavar="NAME", rich_help_panel="Running", show_default=False
    ),
]
SeedKeyOption = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, help="Short for training.seed=N.", metavar="N", rich_help_panel="Running", show_default=False
    ),
]


def keys(model: str | None, device: str | None, seed: int | None) -> list[str]:
    """The overrides that these options are short for."""
    given = {"model.name": model, "model.device": device, "training.seed": seed}
    # JSON's strings are YAML's, whatever is in them.
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]


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

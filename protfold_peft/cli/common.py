"""What all commands share: how errors reach the user, and options with one meaning everywhere.

Nothing here or at the top of a command's module may import torch: `protfold --help` has to answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from protfold_peft.errors import ProtfoldError

# Exit statuses, the same for every command.
SOME_FAILED = 1
COULD_NOT_RUN = 2
INTERRUPTED = 130

DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Output")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the whole log on the screen.", rich_help_panel="Output")
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


@contextmanager
def error_boundary(*, debug: bool = False) -> Iterator[None]:
    """Turn errors into one line on standard error and an exit status; with `debug` they keep their traceback.

    Raises:
        typer.Exit: Status 2 after an error, 130 after Ctrl-C.
    """
    try:
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
    except Exception as error:
        text = f"error: unexpected {type(error).__name__}: {error} (--debug shows where)"
        _leave(text, COULD_NOT_RUN, error, debug)


def _leave(message: str, status: int, error: BaseException, debug: bool) -> None:
    if debug:
        raise error
    typer.echo(" ".join(message.split()), err=True)
    raise typer.Exit(status) from error


def quieten() -> None:
    """`runtime.quieten`, imported when it is called."""
    from protfold_peft.runtime import quieten as silence

    silence()

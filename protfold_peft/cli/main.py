"""The `protfold` command: one sub-command per file of this folder."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import warnings
from typing import Annotated

import typer

from protfold_peft.cli import (
    bench,
    compare,
    convert,
    data,
    doctor,
    evaluate,
    finetune,
    init,
    predict,
    prepare,
)
from protfold_peft.cli.adapter import adapter
from protfold_peft.cli.common import error_boundary, examples
from protfold_peft.cli.encoding import use_utf8
from protfold_peft.cli.lm import lm
from protfold_peft.version import __version__

app = typer.Typer(
    name="protfold",
    help="Fine-tune ESMFold with tensor adapters, predict structures, and compare.",
    epilog="`protfold COMMAND --help` has examples. Exit status of every command: 0 done, 1 a part failed, 2 nothing "
    "could be done, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # Errors are told by `common.error_boundary`; a traceback asked for with --debug is a plain one.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# In the order of use. A command's module has its name, and its examples beside it.
for module in (predict, init, prepare, finetune, evaluate, compare, data, convert, doctor, bench):
    command = getattr(module, module.__name__.rpartition(".")[2])
    app.command(short_help=module.SHORT, epilog=examples(*module.EXAMPLES))(command)
app.add_typer(adapter)
app.add_typer(lm)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"protfold {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Fine-tune ESMFold with tensor adapters, predict structures, and compare."""


def _tell_of_thread(failure: threading.ExceptHookArgs) -> None:
    """In a line: a log that a thread writes (TensorBoard's, on a full disk) stops nothing."""
    name = "a thread" if failure.thread is None else failure.thread.name
    logging.getLogger("protfold").warning("%s: %s: %s", name, failure.exc_type.__name__, failure.exc_value)


def main() -> None:
    """Entry point of the console script; errors that a command lets through end here, as one line."""
    use_utf8()
    # A log that cannot be written (a full disk) must not bring tracebacks to the screen.
    logging.raiseExceptions = False
    # Read when torch is first imported. By default a thread that waits spins for milliseconds, and as soon as anything
    # else runs takes the core of one that works; docs/performance.md has what that costs.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # A letter that a screen cannot show (PYTHONIOENCODING=ascii) is written as \\xe4, and stops nothing.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in sys.argv
    if not debug:
        # Libraries announcing what they will rename speak to developers.
        warnings.filterwarnings("ignore", category=FutureWarning)
        # It speaks of a kernel that it cannot download, as soon as PEFT imports it.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        threading.excepthook = _tell_of_thread
    try:
        with error_boundary(debug=debug, command=False):
            app()
    except typer.Exit as leaving:
        sys.exit(leaving.exit_code)


if __name__ == "__main__":
    main()

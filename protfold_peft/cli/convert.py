"""`protfold convert`: fair-esm checkpoints to transformers' format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protfold_peft.cli.common import error_boundary, one_folder
from protfold_peft.cli.options import DebugOption, VerboseOption

SHORT = "Turn a fair-esm checkpoint into a folder for --model."
EXAMPLES = (
    "protfold convert esmfold_3B_v1.pt esmfold_v1/ --esm2 esm2_t36_3B_UR50D.pt",
    "protfold convert esm2_t12_35M_UR50D.pt --out esm2_35m/",
)


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="fair-esm .pt file: ESMFold (v0, v1, structure-module-only) or ESM-2.")
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder to write; must not exist, or be empty.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The same, as other commands have it.")] = None,
    esm2: Annotated[
        Path | None, typer.Option(help="The ESM-2 .pt of an ESMFold: published ESMFold files do not carry theirs.")
    ] = None,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Convert a fair-esm checkpoint into a folder for --model.

    Nothing in the file is executed. The language model's rotary frequencies are copied as they were rounded in
    training, so that outputs agree with fair-esm's.

    Exit status: 0 done, 2 it could not be converted, and nothing was written.
    """
    with error_boundary(debug=debug):
        from protfold_peft.folding.convert import convert_checkpoint
        from protfold_peft.runtime import configure_logging

        configure_logging(verbose=verbose)
        for line in convert_checkpoint(checkpoint, one_folder(folder, out), esm2=esm2):
            typer.echo(line)

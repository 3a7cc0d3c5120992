"""`protfold convert`: fair-esm checkpoints to transformers' format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protfold_peft.cli.common import DebugOption, error_boundary


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="fair-esm .pt file: ESMFold (v0, v1, structure-module-only) or ESM-2.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist, or be empty.")],
    esm2: Annotated[
        Path | None, typer.Option(help="The ESM-2 .pt of an ESMFold: published ESMFold files do not carry theirs.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Convert a fair-esm checkpoint into a folder for --model.

    Nothing in the file is executed. The language model's rotary frequencies are copied as they were rounded in
    training, so that outputs agree with fair-esm's.
    """
    with error_boundary(debug=debug):
        from protfold_peft.folding.convert import convert_checkpoint

        for line in convert_checkpoint(checkpoint, out, esm2=esm2):
            typer.echo(line)

"""`protfold finetune`: structures in, an adapter out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protfold_peft.cli.common import DebugOption, VerboseOption, error_boundary


def finetune(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to train, on what, and how.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys to change, e.g. training.steps=200 data.folder=DIR."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the adapter; instead of the configuration's 'out'."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results in that folder.", rich_help_panel="Output")
    ] = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Train an adapter on a folder of structures.

    The folding model stays as it is; only the adapter's factors are trained, by the structure loss. The result is a
    folder that `protfold predict --adapter` and PEFT can load.
    """
    with error_boundary(debug=debug):
        from protfold_peft import training
        from protfold_peft.runtime import configure_logging

        configure_logging(verbose=verbose)
        settings = training.read_config(config, overrides or ())
        if out is not None:
            settings = settings.model_copy(update={"out": str(out)})
        result = training.finetune(settings, overwrite=overwrite)

        def shown(score: float | None) -> str:
            return "undefined" if score is None else f"{score:.3f}"

        typer.echo(
            f"CA lDDT of {len(result.per_target)} training chains: {shown(result.base)} before, "
            f"{shown(result.adapted)} after {result.steps} steps ({result.trainable_parameters:,} trained parameters, "
            f"{result.seconds:.0f} s)"
        )
        if result.untrained:
            typer.echo(f"{result.model} has UNTRAINED weights: this shows that training works, nothing else.")
        typer.echo(f"adapter in {result.out}")

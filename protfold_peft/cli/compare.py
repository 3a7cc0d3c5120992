"""`protfold compare`: methods, ranks and seeds on held-out targets; tables, plots and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protfold_peft.cli.common import SOME_FAILED, error_boundary, output_kept_for, print_json
from protfold_peft.cli.options import DebugOption, JsonOption, VerboseOption

SHORT = "Compare adapter methods and ranks on held-out targets."
EXAMPLES = (
    "protfold compare configs/compare_family.yaml --out runs/compared",
    "protfold compare configs/compare_family.yaml --out runs/compared --list --json",
    "protfold compare configs/compare_family.yaml --out runs/compared --cell 3",
    "protfold compare configs/compare_family.yaml --out runs/compared --report-only",
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protfold_peft.comparison.cells import Cell
    from protfold_peft.comparison.results import Results
    from protfold_peft.comparison.sweep import Sweep

_RUNNING = "Running"


def compare(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to compare, on what, and how.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys to change, e.g. seeds=[0] finetune.training.steps=20."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results; instead of the configuration's 'out'."),
    ] = None,
    cell: Annotated[
        int | None,
        typer.Option(
            min=0, help="Run this cell alone, as an element of a job array.", metavar="I", rich_help_panel=_RUNNING
        ),
    ] = None,
    list_cells: Annotated[
        bool, typer.Option("--list", help="Say what cells there are and how they stand.", rich_help_panel=_RUNNING)
    ] = False,
    train_only: Annotated[
        bool,
        typer.Option(
            "--train-only",
            help="Train and choose learning rates; judge on the targets in a later run, here or on another machine.",
            rich_help_panel=_RUNNING,
        ),
    ] = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Run cells that failed before again.", rich_help_panel=_RUNNING)
    ] = False,
    allow_leakage: Annotated[
        bool,
        typer.Option(
            "--allow-leakage",
            help="Go on although targets resemble what is learnt; every output says so.",
            rich_help_panel=_RUNNING,
        ),
    ] = False,
    collect: Annotated[
        bool,
        typer.Option("--collect", help="Run nothing; gather what is done.", rich_help_panel="Output"),
    ] = False,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="Make every output anew from results.parquet.", rich_help_panel="Output"),
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare adapter methods and ranks on held-out targets.

    Every method, rank and seed is a fine-tuning run on the same data, in the same order, for as many steps. Learning
    rates are chosen on the validation chains. Run it again after an interruption: what is done is not done again.

    Exit status: 0 all cells done, 1 some failed or missing, 2 nothing could start, 130 interrupted.
    """
    with error_boundary(debug=debug):
        from protfold_peft import comparison
        from protfold_peft.configuration import read_config
        from protfold_peft.errors import ConfigError
        from protfold_peft.runtime import configure_logging

        configure_logging(verbose=verbose)
        settings = read_config(comparison.ComparisonConfig, config, overrides or ())
        if out is not None:
            settings = settings.model_copy(update={"out": str(out)})
        if train_only and (collect or report_only):
            raise ConfigError("--train-only has nothing to collect or report: leave out the other option")
        if sum((cell is not None, list_cells, collect, report_only)) > 1:
            raise ConfigError("--cell, --list, --collect and --report-only exclude each other")
        if settings.out is None:
            raise ConfigError("no output folder: give --out, or the key 'out' in the configuration")
        folder = Path(settings.out)
        if report_only:
            results = comparison.load(folder / comparison.TABLE)
            paragraphs = comparison.write_outputs(results, folder)
            if json:
                print_json(_told(folder, results, paragraphs))
            else:
                typer.echo(f"outputs made anew in {folder}")
            return
        with output_kept_for(json):
            sweep = comparison.prepare(settings, allow_leakage=allow_leakage)
        if list_cells:
            if json:
                print_json({"out": folder, "cells": [_cell(sweep, one) for one in sweep.cells]})
            else:
                typer.echo("\n".join(comparison.listing(sweep)))
            return
        if worker:
            comparison.work(sweep)
            return
        if cell is not None:
            with output_kept_for(json):
                state = comparison.run_one(sweep, cell, judge=not train_only)
            if json:
                print_json(_cell(sweep, sweep.cells[cell]))
            else:
                typer.echo(f"cell {cell} ({sweep.cells[cell].name}): {state}")
            return
        with output_kept_for(json):
            if not collect:
                comparison.run_all(sweep, retry=retry, judge=not train_only)
        if train_only:
            _tell_of_training(sweep, json=json)
            return
        with output_kept_for(json):
            results = comparison.collect(sweep)
            comparison.save(results, folder)
            paragraphs = comparison.write_outputs(results, folder)
        failed, missing = results.facts["failed"], results.facts["missing"]
        if json:
            print_json(_told(folder, results, paragraphs))
        else:
            typer.echo("\n".join(paragraphs))
        for name, why in failed.items():
            typer.echo(f"failed: {name}: {why} (try again with --retry)", err=True)
        if missing:
            typer.echo(f"not done yet: {', '.join(missing)}", err=True)
        if not json:
            typer.echo(f"results, tables, plots and report.html in {folder}")
        if failed or missing:
            raise typer.Exit(SOME_FAILED)


def _cell(sweep: Sweep, cell: Cell) -> dict[str, Any]:
    from protfold_peft.comparison.sweep import failure

    return {
        "index": cell.index,
        "name": cell.name,
        "state": sweep.state(cell),
        "failure": failure(sweep.place, cell) or None,
    }


def _told(folder: Path, results: Results, paragraphs: Sequence[str]) -> dict[str, Any]:
    return {
        "out": folder,
        "summary": list(paragraphs),
        "failed": results.facts["failed"],
        "missing": results.facts["missing"],
    }


def _tell_of_training(sweep: Sweep, *, json: bool) -> None:
    from protfold_peft.comparison.sweep import FAILED, failure

    failed = [cell for cell in sweep.cells if sweep.state(cell) == FAILED]
    for cell in failed:
        typer.echo(f"failed: {cell.name}: {failure(sweep.place, cell)} (try again with --retry)", err=True)
    if json:
        print_json({"out": sweep.place.out, "cells": [_cell(sweep, cell) for cell in sweep.cells]})
    else:
        typer.echo(f"trainings in {sweep.place.out}; judge them without --train-only")
    if failed:
        raise typer.Exit(SOME_FAILED)

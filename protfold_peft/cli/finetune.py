"""`protfold finetune`: structures in, an adapter out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from protfold_peft.cli.common import error_boundary, output_kept_for, print_json, quieten
from protfold_peft.cli.options import (
    AdapterOutOption,
    ConfigArgument,
    DebugOption,
    DeviceKeyOption,
    JsonOption,
    ModelKeyOption,
    OverwriteOption,
    ReferenceKernelsOption,
    ResumeOption,
    SeedKeyOption,
    VerboseOption,
    keys,
)

if TYPE_CHECKING:
    from protfold_peft.training import DryRun

SHORT = "Train an adapter, or all weights, on structures."
EXAMPLES = (
    "protfold finetune configs/first_run.yaml --out runs/first",
    "protfold finetune my_family.yaml --dry-run --json",
    "protfold finetune my_family.yaml training.steps=500 adapter.rank=4 --out runs/rank_4",
    "protfold finetune my_family.yaml --out runs/rank_4 --resume",
)


def finetune(
    config: ConfigArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys to change, e.g. training.steps=200 data.folder=DIR."),
    ] = None,
    out: AdapterOutOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            help="Memory that the run may take, such as 24GB: as much is computed twice as that asks for. Instead of "
            "the configuration's 'model.memory_budget' and 'model.gradient_checkpointing'.",
            rich_help_panel="Running",
            metavar="SIZE",
            show_default="what is free on a GPU, no limit on a CPU",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what would be trained, run one step on the longest samples, and keep nothing.",
            rich_help_panel="Running",
        ),
    ] = False,
    reference_kernels: ReferenceKernelsOption = False,
    model: ModelKeyOption = None,
    device: DeviceKeyOption = None,
    seed: SeedKeyOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Train an adapter, or all weights, on structures.

    By default the folding model stays as it is, and an adapter in its language model is trained by the structure loss.
    The result is a folder that `protfold predict --adapter` (or `--model`) and PEFT can load, with `report.html`.

    On several GPUs: `accelerate launch --num_processes 4 --module protfold_peft finetune CONFIG.yaml`.

    Exit status: 0 done, 2 it could not start or had to stop (--resume goes on), 130 interrupted.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft import training
        from protfold_peft.folding import kernels
        from protfold_peft.runtime import configure_logging

        configure_logging(verbose=verbose)
        settings = training.read_config(config, [*keys(model, device, seed), *(overrides or ())])
        if out is not None:
            settings = settings.model_copy(update={"out": str(out)})
        if memory_budget is not None:
            changes = {"memory_budget": memory_budget, "gradient_checkpointing": None}
            settings = settings.model_copy(update={"model": settings.model.model_copy(update=changes)})
        if dry_run:
            with output_kept_for(json), kernels.using(reference=reference_kernels):
                found = training.dry_run(settings)
            if json:
                print_json(found)
            else:
                typer.echo(_described(found))
            return
        with output_kept_for(json), kernels.using(reference=reference_kernels):
            result = training.finetune(settings, overwrite=overwrite, resume=resume)
        if json:
            print_json(result)
            return
        typer.echo(f"{'':12}{'before':>10}{'after':>10}   {len(result.per_target)} chains: {result.judged_on}")
        for name, label in _SCORES.items():
            typer.echo(f"{label:12}{_shown(result.base[name]):>10}{_shown(result.adapted[name]):>10}")
        typer.echo(
            f"{result.trainable_parameters:,} parameters trained in {result.steps:,} steps, {result.seconds:.0f} s; "
            f"result and report.html in {result.out}"
        )


_SCORES = {"lddt_ca": "lDDT-CA", "lddt": "lDDT", "tm_score": "TM-score", "gdt_ts": "GDT-TS", "plddt": "pLDDT"}


def _shown(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.3f}"


def _described(run: DryRun) -> str:
    lines = [f"{len(paths):4} sites in group {name}, {paths[0]} to {paths[-1]}" for name, paths in run.sites.items()]
    memory = "unknown" if run.peak_memory_bytes is None else f"{run.peak_memory_bytes / 2**30:.2f} GiB"
    lines += [
        f"{run.trainable_parameters:,} of {run.model_parameters:,} parameters would be trained",
        f"{run.train_chains:,} chains would be learnt, {run.judged_chains:,} judged",
        f"memory: {run.state_bytes / 2**30:.2f} GiB of weights, gradients and optimizer; peak in a step on the longest "
        f"samples {memory}",
        f"that step took {run.step_seconds:.1f} s, start included; its loss is {run.loss:.4g}",
    ]
    lines += [run.plan] if run.plan is not None else []
    return "\n".join(lines)

"""`protfold lm`: language-model tasks on the same adapters."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protfold_peft.cli.common import (
    SOME_FAILED,
    STANDARD_OUTPUT,
    command_group,
    error_boundary,
    examples,
    output_kept_for,
    print_json,
    quieten,
)
from protfold_peft.cli.options import (
    AdapterOutOption,
    ConfigArgument,
    DebugOption,
    DeviceKeyOption,
    DeviceOption,
    JsonOption,
    ModelKeyOption,
    OverwriteOption,
    ResumeOption,
    SeedKeyOption,
    VerboseOption,
    keys,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

lm = command_group(
    "lm",
    "Language models: classification, instruction tuning, preferences, masked modelling.",
    short_help="Train the same adapters on language models.",
)

OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys to change, e.g. training.steps=200 model.name=DIR."),
]


def _add_training(task: str, help: str, *lines: str) -> None:
    """Make `protfold lm TASK`: all tasks are trained by one command, apart from its name, help and examples."""

    @lm.command(task, help=help, epilog=examples(*lines))
    def train(
        config: ConfigArgument,
        overrides: OverridesArgument = None,
        out: AdapterOutOption = None,
        overwrite: OverwriteOption = False,
        resume: ResumeOption = False,
        model: ModelKeyOption = None,
        device: DeviceKeyOption = None,
        seed: SeedKeyOption = None,
        json: JsonOption = False,
        verbose: VerboseOption = False,
        debug: DebugOption = False,
    ) -> None:
        given = [*keys(model, device, seed), *(overrides or ())]
        _run(task, config, given, out, overwrite=overwrite, resume=resume, json=json, verbose=verbose, debug=debug)


_add_training(
    "classify",
    "Train an adapter and a head to classify texts, or to give them a value: GLUE tasks by name, or own files.",
    "protfold lm classify configs/glue/mrpc.yaml --out runs/mrpc",
    "protfold lm classify configs/glue/mrpc.yaml adapter.rank=4 --seed 1 --out runs/mrpc_4",
)
_add_training(
    "sft",
    "Train an adapter on instructions and their answers, or on plain texts.",
    "protfold lm sft configs/sft_stories260K.yaml --out runs/stories",
    "protfold lm sft configs/sft_llama2_7b.yaml data.train=answers.jsonl --out runs/answers",
)
_add_training(
    "dpo",
    "Train an adapter on pairs of a chosen and a rejected answer; the base model is the reference.",
    "protfold lm dpo configs/dpo_stories260K.yaml --out runs/preferred",
    "protfold lm dpo configs/dpo_llama2_7b.yaml --out runs/preferred --resume",
)
_add_training(
    "mlm",
    "Train an adapter by masked modelling: of ESM-2 or ESM C on own FASTA, or of a text encoder.\n\n"
    "An adapter of an ESM-2 can be loaded into the ESMFold around the same ESM-2: `protfold predict --adapter`.",
    "protfold lm mlm configs/mlm_esm2_35m.yaml data.train=family.fasta --out runs/family",
    "protfold lm mlm configs/mlm_esm2_35m.yaml data.train=family.fasta --out runs/family --json",
)


@lm.command(
    epilog=examples(
        "protfold lm evaluate runs/mrpc",
        "protfold lm evaluate runs/family --data held_out.fasta --json scores.json",
        "protfold lm evaluate runs/family --json - | jq .adapted",
    )
)
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Records to score, in the run's form; may be repeated.", show_default="its validation records"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the base model is now.", show_default="the run's")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first N records of each file.")] = None,
    json: Annotated[
        str | None,
        typer.Option(help="Write the scores as JSON; - for standard output.", metavar="FILE", rich_help_panel="Output"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or mps.", show_default="the run's", rich_help_panel="Running")
    ] = None,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Score a run with and without its adapter: perplexity, accuracy or preference accuracy, as its task has it."""
    with error_boundary(debug=debug):
        quieten()
        import json as json_module

        from protfold_peft import language
        from protfold_peft.files import write_text
        from protfold_peft.runtime import configure_logging

        configure_logging(verbose=verbose)
        with output_kept_for(json == STANDARD_OUTPUT):
            found = language.evaluate(run, data or None, model=model, device=device, limit=limit)
        if json == STANDARD_OUTPUT:
            print_json(found)
            return
        typer.echo(f"{found.task} on {found.records:,} samples")
        _print_scores(found.base, found.adapted, found.majority)
        if json is not None:
            write_text(json, json_module.dumps(asdict(found), indent=2, allow_nan=False) + "\n")


@lm.command(
    name="serve-batch",
    epilog=examples("protfold lm serve-batch requests.jsonl --model my_model/ --out answers.jsonl --batch-size 8"),
)
def serve_batch(
    requests: Annotated[Path, typer.Argument(metavar="REQUESTS.jsonl", help="One request a line; see docs.")],
    model: Annotated[str, typer.Option(help="Hub id or folder of the base model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the answers, one a line.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, where a request does not say.")] = 64,
    dtype: Annotated[str, typer.Option(help="auto, fp32 or bf16.", rich_help_panel="Running", metavar="NAME")] = "auto",
    device: DeviceOption = "auto",
    json: JsonOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Answer a file of requests, each of which names its adapter, in batches that mix adapters.

    Exit status: 0 all answered, 1 some could not be, 2 nothing could start.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft.errors import ConfigError
        from protfold_peft.language.serve import serve_batch as serve
        from protfold_peft.runtime import configure_logging

        configure_logging(verbose=verbose)
        if dtype not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"unknown dtype '{dtype}': use auto, fp32 or bf16")
        sizes = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        with output_kept_for(json):
            done = serve(requests, out, model=model, device=device, dtype=dtype, **sizes)
        if json:
            print_json({"out": out, **asdict(done)})
        else:
            typer.echo(
                f"{done.answered} answered, {done.failed} failed, by {done.adapters} adapters in {done.batches} "
                f"batches ({done.mixed_batches} of several adapters); in {out}"
            )
        if done.failed:
            raise typer.Exit(SOME_FAILED)


def _run(
    task: str,
    config: Path,
    overrides: list[str],
    out: Path | None,
    *,
    overwrite: bool,
    resume: bool,
    json: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Read the configuration, train, and print the scores."""
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft import language
        from protfold_peft.language.config import CONFIGS
        from protfold_peft.runtime import configure_logging

        configure_logging(verbose=verbose)
        settings = language.read_config(CONFIGS[task], config, overrides)
        if out is not None:
            settings = settings.model_copy(update={"out": str(out)})
        with output_kept_for(json):
            result = language.run(settings, overwrite=overwrite, resume=resume)
        if os.environ.get("RANK", "0") != "0":  # the first of several processes speaks
            return
        if json:
            print_json(result)
            return
        best = "" if result.best_step is None else f", best at {result.best_step:,}"
        typer.echo(
            f"{result.method}: {result.trainable_parameters:,} trained parameters ({result.head_parameters:,} in a "
            f"head), {result.steps:,} steps{best}, {result.seconds:.0f} s"
        )
        if result.adapted is not None:
            _print_scores(result.base, result.adapted, result.majority)
        if result.skipped:
            typer.echo(f"{len(result.skipped)} records were skipped", err=True)
        typer.echo(f"{'model' if result.method == 'full' else 'adapter'} in {result.out}")


def _print_scores(
    base: Mapping[str, Any] | None, adapted: Mapping[str, Any], majority: Mapping[str, float] | None
) -> None:
    def shown(scores: Mapping[str, Any] | None, name: str) -> str:
        value = (scores or {}).get(name)
        return "undefined" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

    for name in adapted:
        line = f"{name}: {shown(base, name)} without the adapter, {shown(adapted, name)} with it"
        typer.echo(line + (f"; most frequent class alone {shown(majority, name)}" if majority else ""))

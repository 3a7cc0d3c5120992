"""`protfold predict`: FASTA in, structures out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protfold_peft.cli.common import error_boundary, output_kept_for, print_json, quieten
from protfold_peft.cli.options import (
    AdapterOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    ReferenceKernelsOption,
    SeedOption,
    VerboseOption,
)
from protfold_peft.errors import ConfigError

SHORT = "Fold sequences: FASTA in; structures and a report out."
EXAMPLES = (
    "protfold predict proteins.fasta --out predictions",
    "protfold predict proteins.fasta --out predictions --model facebook/esmfold_v1 --adapter runs/my_family",
    "cat proteins.fasta | protfold predict - --out predictions --format pdb,cif --recycles 8",
    "protfold predict proteins.fasta --out predictions --json | jq .records[].plddt",
)


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="FASTA files (.gz too), folders of .fa, .fasta and .faa files, or '-' for standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results; made if absent.")],
    model: ModelOption = None,
    adapter: AdapterOption = None,
    recycles: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Passes after the first one. More can help hard targets; time grows in proportion.",
            rich_help_panel="Model",
            show_default="as the model was trained; 3 for ESMFold",
        ),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="pdb, cif or pdb,cif.", rich_help_panel="Output", metavar="LIST")
    ] = "pdb",
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw pLDDT and PAE.", rich_help_panel="Output")] = (
        True
    ),
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html.", rich_help_panel="Output")
    ] = True,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Fold everything again, finished records too.", rich_help_panel="Output"),
    ] = False,
    max_tokens_per_batch: Annotated[
        int,
        typer.Option(
            min=1,
            help="Residues of a batch, padding included. Higher is faster for short sequences and takes more memory.",
            rich_help_panel="Running",
        ),
    ] = 1024,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Report longer records as invalid.",
            rich_help_panel="Running",
            show_default="no limit",
        ),
    ] = None,
    chunk_size: Annotated[
        str,
        typer.Option(
            help="Rows of the pair representation worked on at once: auto, a number (lower takes less memory and more "
            "time) or none. After running out of memory smaller ones are tried in any case.",
            rich_help_panel="Running",
            metavar="auto|N|none",
        ),
    ] = "auto",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    cpu_offload: Annotated[
        bool,
        typer.Option(
            "--cpu-offload",
            help="Keep parts of the model in main memory while they are not used: slower, less GPU memory.",
            rich_help_panel="Running",
        ),
    ] = False,
    num_shards: Annotated[
        int, typer.Option(min=1, help="Jobs that share the work, all writing to --out.", rich_help_panel="Running")
    ] = 1,
    shard: Annotated[int, typer.Option(min=0, help="Number of this job, from 0 on.", rich_help_panel="Running")] = 0,
    writers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that write files and draw plots while the next batch folds.",
            rich_help_panel="Running",
            show_default="up to 4 on a GPU, 0 on a CPU",
        ),
    ] = None,
    reference_kernels: ReferenceKernelsOption = False,
    seed: SeedOption = 0,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Predict structures of the sequences in FASTA files.

    Chains of a complex are written with ':' between them. Every record NAME gives NAME.pdb (pLDDT in the B-factor
    column), NAME_scores.json, NAME_predicted_aligned_error_v1.json, two plots and, last, NAME.done.txt; the run gives
    summary.csv, report.html and log.txt.

    Run the same command again after an interruption: finished records are skipped.

    Exit status: 0 all done, 1 some records failed or are invalid, 2 nothing could start, 130 interrupted.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft.folding import kernels
        from protfold_peft.folding.run import run_prediction
        from protfold_peft.folding.settings import RunSettings

        settings = RunSettings(
            inputs=tuple(inputs),
            out=out,
            model=model,
            adapter=adapter,
            recycles=recycles,
            max_tokens_per_batch=max_tokens_per_batch,
            max_length=max_length,
            chunk_size=parse_chunk_size(chunk_size),
            dtype=dtype,
            device=device,
            formats=parse_formats(formats),
            num_shards=num_shards,
            shard=shard,
            cpu_offload=cpu_offload,
            overwrite=overwrite,
            seed=seed,
            plots=plots,
            report=report,
            writers=writers,
            verbose=verbose,
        )
        with output_kept_for(json), kernels.using(reference=reference_kernels):
            result = run_prediction(settings)
        if json:
            print_json(result)
        else:
            typer.echo(result.summary_line)
        raise typer.Exit(result.exit_status)


def parse_chunk_size(text: str) -> int | str | None:
    """`auto`, None for `none`, or a number of at least 1.

    Raises:
        ConfigError: Anything else.
    """
    value = text.strip().lower()
    if value == "auto":
        return value
    if value == "none":
        return None
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ConfigError(f"--chunk-size '{text}': use auto, none or a number of at least 1")
    return int(value)


def parse_formats(text: str) -> tuple[str, ...]:
    """The names of a comma list, lower case, each once."""
    names = [name.strip().lower().removeprefix(".") for name in text.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))

"""`protfold prepare`: structures in, a dataset out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protfold_peft.cli.common import error_boundary, output_kept_for, print_json
from protfold_peft.cli.options import DebugOption, JsonOption, SeedOption, VerboseOption

SHORT = "Make a training set of structures: filtered, clustered and split."
EXAMPLES = (
    "protfold prepare structures/ --out dataset",
    "protfold prepare pdb/ --out dataset --max-resolution 3 --max-length 512 --released-before 2020-05-01",
    "protfold prepare chains.csv --out dataset --exclude casp14.fasta --identity 0.3 --coverage 0.5",
    "protfold prepare structures/ full_sequences.fasta --out dataset",
)

_FILTERS = "Which chains"
_LEAKAGE = "Leakage and split"


def prepare(
    structures: Annotated[
        list[Path],
        typer.Argument(
            metavar="STRUCTURES...",
            help="Folders (with all below them), PDB or mmCIF files (.gz too), or a .csv or .tsv table with the column "
            "file and, if wanted, chain, sequence, name, resolution, date. A FASTA file gives full sequences: record "
            "NAME to the structure NAME.pdb, NAME_CHAIN to one chain of it.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the dataset.", metavar="DATASET")],
    min_length: Annotated[
        int, typer.Option(min=1, help="Fewest residues with N, CA and C.", rich_help_panel=_FILTERS)
    ] = 20,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Longest sequence, unresolved residues counted.", rich_help_panel=_FILTERS),
    ] = None,
    max_resolution: Annotated[
        float | None,
        typer.Option(
            help="In angstrom. Chains without one are left out too.", metavar="ANGSTROM", rich_help_panel=_FILTERS
        ),
    ] = None,
    keep_unknown_resolution: Annotated[
        bool,
        typer.Option(
            "--keep-unknown-resolution",
            help="With --max-resolution: keep chains without a resolution (NMR, models).",
            rich_help_panel=_FILTERS,
        ),
    ] = False,
    max_missing: Annotated[
        float,
        typer.Option(help="Largest fraction of the sequence without N, CA and C.", rich_help_panel=_FILTERS),
    ] = 0.5,
    max_unknown: Annotated[
        float, typer.Option(help="Largest fraction of unknown residues (X).", rich_help_panel=_FILTERS)
    ] = 0.1,
    released_before: Annotated[
        str | None,
        typer.Option(
            help="Leave out chains of that day or later, and those without a date.",
            metavar="YYYY-MM-DD",
            rich_help_panel=_LEAKAGE,
        ),
    ] = None,
    keep_undated: Annotated[
        bool,
        typer.Option(
            "--keep-undated", help="With --released-before: keep chains without a date.", rich_help_panel=_LEAKAGE
        ),
    ] = False,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            help="Leave out chains that resemble one in this FASTA file, structure file or folder of either. May be "
            "repeated.",
            metavar="PATH",
            rich_help_panel=_LEAKAGE,
        ),
    ] = None,
    identity: Annotated[
        float,
        typer.Option(help="Lowest identity at which chains resemble each other.", rich_help_panel=_LEAKAGE),
    ] = 0.3,
    coverage: Annotated[
        float,
        typer.Option(help="Lowest part of the shorter chain that must align.", rich_help_panel=_LEAKAGE),
    ] = 0.5,
    validation: Annotated[
        float,
        typer.Option(help="Part of the chains for validation, in whole clusters.", rich_help_panel=_LEAKAGE),
    ] = 0.1,
    search: Annotated[
        str,
        typer.Option(
            help="What finds candidates: MMseqs2, the built-in search, or MMseqs2 where it is installed.",
            metavar="auto|mmseqs|builtin",
            rich_help_panel="Running",
        ),
    ] = "auto",
    processes: Annotated[
        int,
        typer.Option(min=0, help="Processes that read and align; 0: one on each core.", rich_help_panel="Running"),
    ] = 0,
    seed: SeedOption = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a dataset that another command made.", rich_help_panel="Output")
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a training set of structures: filtered, without duplicates, split by likeness.

    Chains that resemble each other are one cluster, and no cluster is split between train and validation. Everything
    that is left out is in rejected.csv, with the reason.

    The same command again brings its dataset up to date. What was read of a file is kept in DATASET.parsed, and the
    file is only read again when its content changes, whatever the filters are.

    Exit status: 0 all files read, 1 some could not be or do not fit the sequence given, 2 nothing could start or no
    chain is left, 130 interrupted.
    """
    with error_boundary(debug=debug):
        from protfold_peft.data.prepare import Filters, Likeness, PrepareSettings, run_prepare

        settings = PrepareSettings(
            structures=tuple(structures),
            out=out,
            filters=Filters(
                min_length=min_length,
                max_length=max_length,
                max_resolution=max_resolution,
                keep_unknown_resolution=keep_unknown_resolution,
                max_missing=max_missing,
                max_unknown=max_unknown,
                released_before=released_before,
                keep_undated=keep_undated,
            ),
            exclude=tuple(exclude or ()),
            likeness=Likeness(identity=identity, coverage=coverage),
            validation=validation,
            seed=seed,
            search=search,
            processes=processes,
            overwrite=overwrite,
            verbose=verbose,
        )
        with output_kept_for(json):
            result = run_prepare(settings)
        if json:
            print_json({"out": result.out, **result.report})
        else:
            for line in result.summary:
                typer.echo(line)
        raise typer.Exit(result.exit_status)

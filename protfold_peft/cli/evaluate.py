"""`protfold evaluate`: models and references in, scores out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protfold_peft.cli.common import STANDARD_OUTPUT, error_boundary
from protfold_peft.cli.options import DebugOption, DeviceOption, VerboseOption
from protfold_peft.errors import ConfigError

SHORT = "Score models against true structures: TM-score, lDDT and more."
EXAMPLES = (
    "protfold evaluate model.pdb reference.cif",
    "protfold evaluate predictions/ references/ --csv scores.csv",
    "protfold evaluate predictions/ references/ --json - | jq .[].tm_score",
    "protfold evaluate --pairs pairs.csv --stereochemistry --plot plots/",
)


def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="PDB or mmCIF file (.gz too), or a folder of them.", show_default=False),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Argument(
            metavar="REFERENCE",
            help="The true structure: a file, or a folder of files called as the models are.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Table instead of MODEL and REFERENCE: CSV or TSV with the columns model, reference and, if wanted, "
            "model_chain, reference_chain.",
            metavar="FILE",
        ),
    ] = None,
    match: Annotated[
        str,
        typer.Option(
            help="How residues are matched: by number where names agree, else by alignment (auto), or always by one.",
            metavar="auto|number|alignment",
            rich_help_panel="Matching",
        ),
    ] = "auto",
    min_identity: Annotated[
        float,
        typer.Option(min=0, max=1, help="Refuse alignments of less identity: wrong pairs.", rich_help_panel="Matching"),
    ] = 0.4,
    model_chain: Annotated[
        str | None, typer.Option(help="Score this chain of the model only.", metavar="ID", rich_help_panel="Matching")
    ] = None,
    reference_chain: Annotated[
        str | None, typer.Option(help="Score against this chain only.", metavar="ID", rich_help_panel="Matching")
    ] = None,
    by_chain: Annotated[
        bool,
        typer.Option(
            "--by-chain",
            help="Also score every matched chain of a complex on its own.",
            rich_help_panel="Matching",
        ),
    ] = False,
    whole_complex: Annotated[
        bool,
        typer.Option(
            "--whole-complex",
            help="Count all chains of the reference, even if the model has only one.",
            rich_help_panel="Matching",
        ),
    ] = False,
    models: Annotated[
        str,
        typer.Option(
            help="Models of a file of several: the first, or a row for each.",
            metavar="first|all",
            rich_help_panel="Matching",
        ),
    ] = "first",
    references: Annotated[
        str,
        typer.Option(
            help="Models of the reference: the first, the one with the best TM-score, or the mean over all.",
            metavar="first|best|mean",
            rich_help_panel="Matching",
        ),
    ] = "first",
    search: Annotated[
        str,
        typer.Option(
            help="Search for the TM-score: as the TMscore program, or a stronger one that finds as much or more.",
            metavar="tmscore|irls",
            rich_help_panel="Scores",
        ),
    ] = "tmscore",
    normalise: Annotated[
        str,
        typer.Option(
            help="Length of the TM-score: that of the reference, of the model, or a number of residues.",
            metavar="reference|model|N",
            rich_help_panel="Scores",
        ),
    ] = "reference",
    stereochemistry: Annotated[
        bool,
        typer.Option(
            "--stereochemistry",
            help="Also lDDT without atoms of impossible geometry, and counts of clashes and odd backbones.",
            rich_help_panel="Scores",
        ),
    ] = False,
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration",
            help="Compare pLDDT (the model's B-factors) with the true lDDT.",
            rich_help_panel="Scores",
        ),
    ] = False,
    json: Annotated[
        str | None,
        typer.Option(help="Write the rows as JSON; - for standard output.", metavar="FILE", rich_help_panel="Output"),
    ] = None,
    csv: Annotated[
        str | None,
        typer.Option(help="Write the rows as CSV; - for standard output.", metavar="FILE", rich_help_panel="Output"),
    ] = None,
    lddt_pdb: Annotated[
        Path | None,
        typer.Option(
            help="Write every model there, with CA lDDT (0..100) as B-factor.",
            metavar="FOLDER",
            rich_help_panel="Output",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw lDDT and distance along every pair there.", metavar="FOLDER", rich_help_panel="Output"),
    ] = None,
    device: DeviceOption = "auto",
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Score models against their true structures: TM-score, GDT, lDDT, RMSD, and DockQ for complexes.

    Two files make a pair, two folders pair the files of the same name. Residues that the model lacks count against it.
    Chains of complexes are mapped for the best score, whatever they are called.

    Exit status: 0 all scored, 1 some pairs could not be scored, 2 nothing could start, 130 interrupted.
    """
    with error_boundary(debug=debug):
        from protfold_peft.evaluation.run import run_evaluation
        from protfold_peft.evaluation.settings import EvaluationSettings

        settings = EvaluationSettings(
            model=model,
            reference=reference,
            pairs=pairs,
            match=match,
            min_identity=min_identity,
            model_chain=model_chain,
            reference_chain=reference_chain,
            whole_complex=whole_complex,
            by_chain=by_chain,
            models=models,
            references=references,
            search=search,
            normalise=parse_normalise(normalise),
            stereochemistry=stereochemistry,
            json=json,
            csv=csv,
            lddt_pdb=lddt_pdb,
            plot=plot,
            calibration=calibration,
            device=device,
            verbose=verbose,
        )
        result = run_evaluation(settings)
        # Standard output is the file's alone where it was asked for.
        typer.echo(result.summary_line, err=STANDARD_OUTPUT in (json, csv))
        raise typer.Exit(result.exit_status)


def parse_normalise(text: str) -> str | int:
    """`reference`, `model`, or a number of residues of at least 1.

    Raises:
        ConfigError: Anything else.
    """
    value = text.strip().lower()
    if value in ("reference", "model"):
        return value
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ConfigError(f"--normalise '{text}': use reference, model or a number of residues")
    return int(value)

"""`protfold init`: a configuration for fine-tuning, fitted to the data and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protfold_peft.cli.common import error_boundary, output_kept_for, print_json, quieten
from protfold_peft.cli.options import DebugOption, JsonOption, VerboseOption
from protfold_peft.errors import ConfigError

if TYPE_CHECKING:
    from protfold_peft.training.suggestion import Suggestion

SHORT = "Write a configuration that fits your structures and this machine."
EXAMPLES = (
    "protfold init my_family/",
    "protfold init my_family/ --out configs/my_family.yaml --model facebook/esmfold_v1",
    "protfold init dataset/ --overwrite && protfold finetune dataset.yaml --dry-run",
)


def init(
    folder: Annotated[
        str,
        typer.Argument(metavar="FAMILY_DIR", help="PDB and mmCIF files, or a dataset of protfold prepare."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write.", metavar="FILE", show_default="FAMILY_DIR.yaml here"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of ESMFold weights.", rich_help_panel="Model", show_default="built-in"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Replace the files.", rich_help_panel="Output")
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Look at structures and at this machine, and write a commented configuration for `protfold finetune`.

    Crop, batch, steps, precision and checkpointing follow from the lengths of the chains and the memory; the comments
    say how. Chains are held out for validation where there are enough, in whole clusters of similar ones: the table
    FILE.split.csv says which. The result runs as it is.

    Exit status: 0 written, 2 it could not be (a file is there already, or no structure can be read), 130 interrupted.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft import training
        from protfold_peft.files import write_text
        from protfold_peft.machine import look
        from protfold_peft.runtime import configure_logging
        from protfold_peft.training.suggestion import config_text, look_at, split_text, suggest

        configure_logging(verbose=verbose)
        name = Path(folder).resolve().name or "family"
        path = Path(f"{name}.yaml") if out is None else out
        table = path.with_name(f"{path.stem}.split.csv")
        if not overwrite and (taken := next((file for file in (path, table) if file.exists()), None)):
            raise ConfigError(f"{taken} is there already: name another with --out, or replace it with --overwrite")
        with output_kept_for(json):
            found = suggest(look_at(folder), look(), model=model, out=str(Path("runs") / path.stem), table=str(table))
        rows = split_text(found)
        if rows is not None:
            write_text(table, rows)
        write_text(path, config_text(found, str(path)))
        training.read_config(path)
        if json:
            print_json(_document(found, path, table if rows is not None else None))
        else:
            _print(found, path)


def _document(found: Suggestion, path: Path, table: Path | None) -> dict[str, object]:
    family = found.family
    return {
        "config": path,
        "split": table,
        "family": {
            "folder": family.folder,
            "chains": len(family.chains),
            "lengths": family.lengths,
            "with_gaps": family.with_gaps,
            "with_unknown_residues": family.with_unknown,
            "duplicates": family.duplicates,
            "short": family.short,
            "unreadable": family.unreadable,
        },
        "machine": found.machine,
        "settings": found.values(),
    }


def _print(found: Suggestion, path: Path) -> None:
    family = found.family
    lengths = family.lengths
    typer.echo(
        f"{len(lengths)} chains of {lengths[0]} to {lengths[-1]} residues: {family.with_gaps} with gaps, "
        f"{family.with_unknown} with unknown residues, {family.duplicates} duplicates, {family.short} too short"
    )
    for reason in family.unreadable:
        typer.echo(f"warning: {reason}", err=True)
    if found.split is None:
        typer.echo("held out: " + (f"{family.held_out} chains of the dataset" if family.held_out else "none"))
    else:
        typer.echo(f"held out: {len(found.split.validation)} of {len(lengths)} chains' files, by likeness")
    typer.echo(f"written: {path}; next: protfold finetune {path} --dry-run")

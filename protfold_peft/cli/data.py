"""`protfold data`: the targets of CASP and CAMEO, ready for `protfold compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protfold_peft.cli.common import SOME_FAILED, error_boundary, output_kept_for, print_json
from protfold_peft.cli.options import DebugOption, JsonOption, VerboseOption

SHORT = "Get the targets of CASP and CAMEO, for comparisons."
EXAMPLES = (
    "protfold data casp14 --out data/casp14",
    "protfold data cameo --until 2024-05-25 --period 3m --out data/cameo",
    "protfold data casp14 --from downloads/ --out data/casp14",
)


def data(
    edition: Annotated[str, typer.Argument(metavar="EDITION", help="casp13, casp14, casp15, casp16 or cameo.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the targets.", metavar="DIR")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Download nothing: take structures, FASTA files and a manifest.tsv of this folder.",
            metavar="DIR",
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(help="CAMEO: the last day of the period.", metavar="YYYY-MM-DD")] = None,
    period: Annotated[str, typer.Option(help="CAMEO: its length: 1w, 1m, 3m, 6m or 1y.")] = "1m",
    tries: Annotated[int, typer.Option(min=1, help="How often a download is tried.")] = 5,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Take files that are others at their source than last time.")
    ] = False,
    dates: Annotated[bool, typer.Option(help="Ask the PDB for release dates of CASP's targets.")] = True,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Get the targets of an edition: domain structures, sequences and a manifest.

    Downloads are kept in DIR.downloads with their SHA-256; the same command goes on after an interruption.

    Exit status: 0 done, 1 some files cannot be targets, 2 nothing could be made.
    """
    with error_boundary(debug=debug):
        from protfold_peft.data import casp
        from protfold_peft.data.casp.sources import PDB_ENTRY
        from protfold_peft.errors import ConfigError
        from protfold_peft.runtime import configure_logging

        configure_logging(verbose=verbose)
        if edition != "cameo":
            sources = casp.source_of(edition)
        with output_kept_for(json):
            if source is not None:
                done = casp.from_folder(source, out)
            elif edition == "cameo":
                if until is None:
                    raise ConfigError("cameo: say which targets: --until YYYY-MM-DD, and --period if not a month")
                wanted = casp.cameo_source(until, period)
                done = casp.from_cameo(wanted, out, tries=tries, accept_changes=accept_changes)
            else:
                done = casp.from_casp(
                    sources, out, tries=tries, accept_changes=accept_changes, entry_url=PDB_ENTRY if dates else None
                )
        if json:
            print_json({"out": out, "targets": done.targets, "skipped": done.skipped})
        else:
            typer.echo(f"{len(done.targets)} targets in {out}, {len(done.skipped)} files left out")
        if done.skipped:
            raise typer.Exit(SOME_FAILED)

"""`protfold doctor`: is the installation sound, and what can this machine do?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from protfold_peft.cli.common import COULD_NOT_RUN, error_boundary, output_kept_for, print_json, quieten
from protfold_peft.cli.options import DebugOption, JsonOption

if TYPE_CHECKING:
    from protfold_peft.doctor import Diagnosis

SHORT = "Check the installation, and tell what this machine can run."
EXAMPLES = ("protfold doctor", "protfold doctor --json > machine.json", "protfold doctor --no-fold")


def doctor(
    fold: Annotated[
        bool,
        typer.Option(
            "--fold/--no-fold", help="Fold a small protein and compare with what it should be.", show_default=True
        ),
    ] = True,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List what is in order too.", rich_help_panel="Output")
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check versions, devices, optional parts, folders and a fold; tell which models fit this machine.

    Nothing is downloaded. Send the output of --json along with a report of a fault.

    Exit status: 0 sound (optional parts may be missing), 2 something is broken, 130 interrupted.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft.doctor import examine

        with output_kept_for(json):
            found = examine(fold=fold)
        if json:
            print_json(
                {"sound": not found.broken, "checks": found.checks, "machine": found.machine, "fits": found.fits}
            )
        else:
            _print(found, everything=verbose)
        if found.broken:
            raise typer.Exit(COULD_NOT_RUN)


# Told by a word as well as by its place: colour alone says nothing to some, and nothing in a file.
_SHOWN_ALWAYS = ("devices", "folders", "self-test")


def _print(found: Diagnosis, *, everything: bool) -> None:
    for group, checks in found.checks.items():
        if not checks:
            continue
        typer.echo(f"{group}:")
        shown = [check for check in checks if everything or group in _SHOWN_ALWAYS or check.state != "ok"]
        for check in shown:
            remedy = f" ({check.remedy})" if check.remedy else ""
            typer.echo(f"  {check.state:8} {check.name}: {check.found}{remedy}")
        if len(shown) < len(checks):
            typer.echo(f"  {'ok':8} {len(checks) - len(shown)} {'others' if shown else 'in order'} (--verbose)")
    typer.echo("what fits, by the size of the weights:")
    for fit in found.fits:
        typer.echo(f"  {'yes' if fit.fits else 'no':8} {fit.model} on {fit.device}, {fit.use}: {fit.how}")
    broken = len(found.broken)
    typer.echo(f"{broken} broken: see above" if broken else "sound")

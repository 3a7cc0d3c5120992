"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

import re

import typer
from typer.cli import get_docs_for_click

from protfold_peft.cli.main import app


def page() -> str:
    """Every command with its arguments and options, in Markdown."""
    command = typer.main.get_command(app)
    context = typer.Context(command, obj={"TYPER_RICH_MARKUP_MODE": "markdown"})
    text = get_docs_for_click(obj=command, ctx=context, name="protfold", title="Command line")
    return re.sub(r"\n{3,}", "\n\n", text)

"""Options with one meaning in every command that has them, each declared once.

Nothing here may import torch: `protfold --help` has to answer at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Output")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the whole log on the screen.", rich_help_panel="Output")
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON document, for programs.", rich_help_panel="Output"),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is in the output folder.", rich_help_panel="Output")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.", rich_help_panel="Running")]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel="Running", metavar="NAME")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        help="Number format: auto, fp32, bf16, or two as LANGUAGE_MODEL/TRUNK, such as bf16/fp32.",
        rich_help_panel="Running",
        metavar="NAME",
    ),
]
ReferenceKernelsOption = Annotated[
    bool,
    typer.Option(
        "--reference-kernels",
        help="Run the folding trunk on PyTorch's own operations, to compare, or to rule its kernels out as a cause. "
        "Slower on a GPU.",
        rich_help_panel="Running",
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with an unfinished run.", rich_help_panel="Running")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Hub id or folder of ESMFold weights, such as facebook/esmfold_v1. Without it the built-in model runs: "
        "small, for a laptop and short chains; see docs/protfold_mini.md.",
        rich_help_panel="Model",
        show_default="built-in",
    ),
]
AdapterOption = Annotated[
    Path | None, typer.Option(help="Folder of an adapter made by fine-tuning.", rich_help_panel="Model")
]
ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to train, on what, and how.")]
AdapterOutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder of the adapter; instead of the configuration's 'out'.")
]

# The same settings for commands that take them from a configuration: a short way to write a key of it.
ModelKeyOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Short for model.name=NAME.", metavar="NAME", rich_help_panel="Running", show_default=False
    ),
]
DeviceKeyOption = Annotated[
    str | None,
    typer.Option(
        "--device", help="Short for model.device=NAME.", metavar="NAME", rich_help_panel="Running", show_default=False
    ),
]
SeedKeyOption = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, help="Short for training.seed=N.", metavar="N", rich_help_panel="Running", show_default=False
    ),
]


def keys(model: str | None, device: str | None, seed: int | None) -> list[str]:
    """The overrides that these options are short for."""
    given = {"model.name": model, "model.device": device, "training.seed": seed}
    # JSON's strings are YAML's, whatever is in them.
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]

"""`protfold adapter`: what to do with saved adapters."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from protfold_peft.cli.adapter_info import print_info
from protfold_peft.cli.common import (
    command_group,
    error_boundary,
    examples,
    one_folder,
    output_kept_for,
    print_json,
    quieten,
)
from protfold_peft.cli.options import DebugOption, JsonOption
from protfold_peft.errors import ConfigError

adapter = command_group("adapter", "Look at, merge, convert and combine saved adapters.")

FolderArgument = Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of a saved adapter.")]
OutArgument = Annotated[Path | None, typer.Argument(metavar="OUT", help="Folder to write.")]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The same, as other commands have it.", rich_help_panel="Output"),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the adapter or model in OUT.", rich_help_panel="Output")
]


@adapter.command(
    epilog=examples(
        "protfold adapter info runs/first",
        "protfold adapter info runs/first --json",
    )
)
def info(
    folder: FolderArgument,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Tell what an adapter consists of: method, ranks, groups, factors, parameters, base model.

    The folder alone is read, no model. The share of the base model is told where that one's configuration is on this
    machine.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft.adapters.folders.info import adapter_info

        found = adapter_info(folder)
        if json:
            print_json(asdict(found) | {"share": found.share})
        else:
            print_info(found)


@adapter.command(
    epilog=examples(
        "protfold adapter merge facebook/esmfold_v1 runs/my_family merged",
    )
)
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Hub id or folder of the base model.")],
    folder: FolderArgument,
    folder_out: OutArgument = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Add an adapter's updates to the weights of its base model, and save the model.

    The result is an ordinary model of transformers, with the base model's tokenizer; nothing of this package is needed
    to load it. Adapters of PEFT's LoRA can be merged too.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft.folding.merge import merge_adapter

        out = one_folder(folder_out, out)
        with output_kept_for(json):
            report = merge_adapter(base, folder, out, overwrite=overwrite)
        if json:
            print_json({"out": out, **asdict(report)})
            return
        for warning in report.warnings:
            typer.echo(f"warning: {warning}", err=True)
        beside = "with its tokenizer" if report.tokenizer else "without a tokenizer (none was found)"
        typer.echo(
            f"{report.model_class} of {report.parameters:,} parameters, {report.modules} modules changed, {beside}; "
            f"in {out}"
        )


@adapter.command(
    "to-lora",
    epilog=examples(
        "protfold adapter to-lora runs/first lora",
        "protfold adapter to-lora runs/tera lora --rank 16",
    ),
)
def to_lora(
    folder: FolderArgument,
    folder_out: OutArgument = None,
    out: OutOption = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, help="Largest rank of a module; needed for TeRA.", metavar="R", show_default="that of the update"
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a tensor adapter as a plain LoRA adapter, for use without this package.

    LoRTA, LoTR, TensLoRA, Tensor-Train and LoRA are converted exactly. TeRA's updates have a high rank and are cut to
    the best approximation of --rank; the error is told. The base model is not needed.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft.adapters.folders.export import export_lora

        out = one_folder(folder_out, out)
        report = export_lora(folder, out, rank=rank, overwrite=overwrite)
        if json:
            print_json({"out": out, **asdict(report)})
            return
        typer.echo(
            f"LoRA of rank up to {report.rank} for {report.modules} modules, {report.parameters:,} parameters; in {out}"
        )
        if report.modules_to_save:
            typer.echo(f"also trained in full: {', '.join(report.modules_to_save)}")
        if report.worst_module is None:
            typer.echo("exact: nothing was cut off")
        else:
            typer.echo(
                f"relative error {report.residual:.3e} over all modules, at most {report.worst_residual:.3e} "
                f"({report.worst_module})"
            )


@adapter.command(
    "from-lora",
    epilog=examples(
        "protfold adapter from-lora lora fitted --method lorta --rank 8 --base my_model/",
    ),
)
def from_lora(
    lora: Annotated[Path, typer.Argument(metavar="LORA", help="Folder of a LoRA adapter of PEFT's.")],
    folder_out: OutArgument = None,
    out: OutOption = None,
    method: Annotated[
        str, typer.Option(help="Tensor network to fit.", metavar="lorta|lotr|tenslora|tensor_train|lora")
    ] = "lorta",
    rank: Annotated[int, typer.Option(min=1, help="Its rank.", metavar="R")] = 8,
    base: Annotated[
        str | None,
        typer.Option(
            help="Hub id or folder of the base model, of which the configuration alone is read.",
            metavar="BASE",
            show_default="what the LoRA names",
        ),
    ] = None,
    restarts: Annotated[int, typer.Option(min=1, help="Starts of the search, where it can get stuck.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the random starts.")] = 0,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Fit a tensor adapter to a LoRA adapter, and tell how near it comes.

    The sum over all modules of the squared difference of the updates is made small. A LoRA that was made by to-lora is
    found again; one that was trained as LoRA has, as a rule, no such structure, and loses much.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft.adapters.folders.fit import fit_adapter

        out = one_folder(folder_out, out)
        report = fit_adapter(
            lora, out, method=method, rank=rank, base=base, restarts=restarts, seed=seed, overwrite=overwrite
        )
        if json:
            print_json({"out": out, **asdict(report)})
            return
        typer.echo(
            f"{report.parameters:,} parameters for {report.sites} maps ({report.lora_parameters:,} in the LoRA); "
            f"in {out}"
        )
        typer.echo(
            f"relative error {report.residual:.3e} over all maps, at most {report.worst_residual:.3e} "
            f"({report.worst_site})"
        )


@adapter.command(
    epilog=examples(
        "protfold adapter combine both a=0.5 b=0.5",
        "protfold adapter combine difference a=1 b=-1",
    )
)
def combine(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="OUT ADAPTER=WEIGHT...",
            help="Folder to write, unless --out names it; then adapters, and how much each counts (1 if left out).",
        ),
    ],
    out: OutOption = None,
    drop_modules: Annotated[
        bool, typer.Option("--drop-modules", help="Leave out modules that were trained in full, such as heads.")
    ] = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Add up adapters of one method: the update of the result is the weighted sum of their updates, exactly.

    Its rank is the sum of their ranks. The base model is not needed.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft.adapters.folders.combine import combine_folders

        if out is None:
            out, *words = Path(words[0]), *words[1:]
        if not words:
            raise ConfigError("no adapter to combine: name some after the folder to write")
        parts = [parse_weight(text) for text in words]
        report = combine_folders(out, parts, drop_modules=drop_modules, overwrite=overwrite)
        if json:
            print_json({"out": out, **asdict(report)})
            return
        if len(report.bases) > 1:
            typer.echo(f"warning: they were made for different base models: {', '.join(report.bases)}", err=True)
        typer.echo(f"rank {report.rank}, {report.parameters:,} parameters; in {out}")


def parse_weight(text: str) -> tuple[Path, float]:
    """`FOLDER=WEIGHT`, or a folder alone, which counts once.

    Raises:
        ConfigError: What follows the last `=` is no number, or nothing comes before it.
    """
    folder, separator, number = text.rpartition("=")
    if not separator or (not folder and not number) or (Path(text).is_dir() and not Path(folder).is_dir()):
        return Path(text), 1.0
    try:
        weight = float(number)
    except ValueError:
        raise ConfigError(f"'{text}': '{number}' is no number; write FOLDER=WEIGHT, such as runs/a=0.5") from None
    if not folder:
        raise ConfigError(f"'{text}' names no folder; write FOLDER=WEIGHT, such as runs/a=0.5")
    return Path(folder), weight

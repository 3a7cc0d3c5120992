"""`protfold bench`: how fast this machine folds and trains, beside other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protfold_peft.cli.common import error_boundary, quieten
from protfold_peft.cli.options import DebugOption, DeviceOption, VerboseOption

SHORT = "Measure how fast this machine folds, trains and scores."
EXAMPLES = (
    "protfold bench",
    "protfold bench predict --size medium --lengths 128,256 --out speed.json",
)


def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[predict|finetune|scores]...", help="What is measured.", show_default="everything"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="mini: the built-in model; medium: ESMFold's widths, 4 blocks, a small language model; full: the 3.5 "
            "billion parameters of ESMFold. The weights are random.",
            metavar="mini|medium|full",
            show_default="full on a GPU, else mini",
        ),
    ] = None,
    device: DeviceOption = "auto",
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Limit of every measurement; two passes are made in any case.")
    ] = 2.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads on a CPU.", show_default="as many as there are cores")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Residues, as a list: 128,256.", metavar="LIST", show_default="by size")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file, written anew after every measurement.")
    ] = None,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure prediction, fine-tuning and scoring on this machine.

    Prediction is compared with stock transformers, a fine-tuning step with stock transformers and PEFT's LoRA, scores
    with tmtools and biotite where they are installed. On a CPU the default takes about two minutes.

    Exit status: 0 all measured, 1 some rows could not be (out of memory, say), 2 nothing could start, 130 interrupted.
    """
    with error_boundary(debug=debug):
        quieten()
        from protfold_peft.benchmarks import suite
        from protfold_peft.benchmarks.worker import PARTS
        from protfold_peft.runtime import configure_logging, resolve_device

        configure_logging(verbose=verbose)
        target = str(resolve_device(device))
        wanted = tuple(parts or PARTS)
        given = _lengths(lengths)
        benchmark = suite.Benchmark(
            size=size or ("full" if target.startswith("cuda") else "mini"),
            device=target,
            parts=wanted,
            seconds=seconds,
            threads=threads,
            lengths=dict.fromkeys(wanted, given) if given else None,
            out=out,
        )
        raise typer.Exit(suite.run_and_tell(benchmark))


def _lengths(text: str | None) -> tuple[int, ...]:
    from protfold_peft.errors import ConfigError

    names = [] if text is None else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not (name.isascii() and name.isdigit() and int(name) >= 16):
            raise ConfigError(f"--lengths '{text}': use whole numbers of at least 16 with commas between them")
    return tuple(int(name) for name in names)

"""The folder of a finished run: a PEFT adapter, and how it came about.

`adapter_config.json`, `adapter_model.safetensors`, `README.md` (model card), `config.yaml` (every setting),
`metrics.csv` (the log) and `results.json`. A run works in `OUT.partial` beside it, where the log can be watched, and
puts everything in place at its end: whatever stops it, `OUT` is what it was.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from protfold_peft.errors import ConfigError
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.version import __version__

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
CONFIG = "config.yaml"
METRICS = "metrics.csv"
RESULTS = "results.json"
# In the order they are put in place: PEFT takes a folder for an adapter once it has the last of these.
FILES = (METRICS, CONFIG, RESULTS, CARD, ADAPTER_WEIGHTS, ADAPTER_CONFIG)


def working_folder(out: Path) -> Path:
    """Where a run for `out` works until it is done."""
    return out.with_name(f"{out.name}.partial")


def check_free(out: Path, *, overwrite: bool) -> None:
    """Check that results may go to `out`; to be called before anything is computed.

    Raises:
        ConfigError: `out` has something in it and `overwrite` is not set, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: name a folder for the results with --out")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ConfigError(
            f"{out} is not empty: name another folder with --out, or replace its results with --overwrite"
        )


def make_working_folder(out: Path) -> Path:
    """The working folder for `out`, without results: what a run left there that did not finish is removed.

    Raises:
        ConfigError: It cannot be made.
    """
    working = working_folder(out)
    try:
        working.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (working / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{working}: cannot be made: {error.strerror or error}") from error
    return working


def publish(working: Path, out: Path) -> None:
    """Put the finished results in place.

    A new folder appears whole. In one that is there, our files are replaced and others are left alone; the adapter's
    configuration goes first and comes last, so that a crash in between leaves nothing that could be loaded by mistake.
    """
    for name in FILES:
        with (working / name).open("rb+") as handle:
            os.fsync(handle.fileno())
    if not out.exists():
        working.replace(out)
        return
    (out / ADAPTER_CONFIG).unlink(missing_ok=True)
    for name in FILES:
        (working / name).replace(out / name)
    working.rmdir()


def config_yaml(config: FinetuneConfig) -> str:
    """Every setting of the run, in the form that `protfold finetune` reads."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def model_card(config: FinetuneConfig, base: str, *, untrained: bool, scores: tuple[float | None, float | None]) -> str:
    """A README for the adapter folder, in the Hugging Face hub's format.

    Args:
        config: Of the run.
        base: Name of the base model.
        untrained: Whether its weights are random.
        scores: Mean CA lDDT of the training chains, 0..1, before and after.
    """
    header = yaml.safe_dump(
        {"base_model": base, "library_name": "peft", "tags": ["protfold-peft", config.adapter.method]}, sort_keys=False
    )
    before, after = ("undefined" if score is None else f"{score:.4f}" for score in scores)
    warning = (
        f"**The weights of the base model, {base}, are untrained: the structures it predicts are noise.** With this\n"
        "adapter only the few chains it has seen are less so. It is for trying the program.\n\n"
        if untrained
        else ""
    )
    model_argument = "" if untrained else f'"{base}", '
    return f"""---
{header}---

# {config.adapter.method} adapter of {base}

{warning}Trained with protfold-peft {__version__} on the structures in `{config.data.folder}`:
rank {config.adapter.rank}, {config.training.steps} steps, {config.training.batch_size} crops per step, at most \
{config.data.crop_size} residues each.
Every setting is in `{CONFIG}`, every logged step in `{METRICS}`.

Mean CA lDDT of the **training** chains: {before} before, {after} after. It says that the adapter learnt them, and
nothing about other proteins.

```python
from protfold_peft import load_model  # the import registers the adapter with PEFT

model = load_model({model_argument}adapter="PATH/TO/THIS/FOLDER")
```

or `protfold predict sequences.fasta --out predictions --adapter PATH/TO/THIS/FOLDER\
{"" if untrained else f" --model {base}"}`.
"""

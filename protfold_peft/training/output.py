"""The folder of a finished run: a PEFT adapter or a model, and how it came about.

Beside the weights: `README.md` (model card), `config.yaml` (every setting), `metrics.csv` and `validation.csv` (the
logs), `results.json`, `report.html`, `run.log` and `tensorboard`. A run works in `OUT.partial` beside it, where the
logs can be watched and the checkpoints are, and puts everything in place at its end: whatever stops it, `OUT` is what
it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from protfold_peft.configuration import check, check_unchanged
from protfold_peft.errors import ConfigError
from protfold_peft.files import write_text
from protfold_peft.folding.masked_lm import HEAD_FILE
from protfold_peft.training import checkpoints
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.folders import put_in_place, working_folder
from protfold_peft.version import __version__

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
CARD = "README.md"
CONFIG = "config.yaml"
METRICS = "metrics.csv"
VALIDATION = "validation.csv"
RESULTS = "results.json"
REPORT = "report.html"
LOG = "run.log"
TENSORBOARD = "tensorboard"
# In the order they are put in place: a folder is taken for an adapter, or a model, once it has one of the last two.
FILES = (
    METRICS, VALIDATION, CONFIG, RESULTS, REPORT, LOG, TENSORBOARD, CARD, HEAD_FILE, ADAPTER_WEIGHTS, MODEL_WEIGHTS,
    ADAPTER_CONFIG, MODEL_CONFIG,
)  # fmt: skip

# Of an unfinished run.
BEST = "best.safetensors"
BASE = "base.safetensors"
# Settings that a run may go on with otherwise than it began.
_FREE = {
    ("out",), ("model", "device"), ("data", "workers"), ("training", "log_every"), ("training", "checkpoint_every"),
    ("training", "trackers"), ("training", "max_bad_steps"), ("training", "accumulate"),
}  # fmt: skip


def make_working_folder(out: Path, config: FinetuneConfig) -> Path:
    """The working folder for `out`, with nothing in it but the configuration."""
    working = working_folder(out)
    try:
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        write_text(working / CONFIG, config_yaml(config))
    except OSError as error:
        raise ConfigError(f"{working}: cannot be made: {error.strerror or error}") from error
    return working


def unfinished(out: Path, config: FinetuneConfig) -> Path | None:
    """The working folder of a run that can be gone on with, or None if there is none.

    Raises:
        ConfigError: The run was of other settings.
    """
    working = working_folder(out)
    try:
        before = yaml.safe_load((working / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        if checkpoints.newest(working) is not None:
            raise ConfigError(
                f"{working / CONFIG} cannot be read: put it back, or start anew with --overwrite"
            ) from error
        return None
    settings = check(FinetuneConfig, before, {}, str(working / CONFIG))
    # With a constant learning rate the steps so far do not depend on how many are to come.
    free = _FREE | ({("training", "steps")} if config.training.schedule == "constant" else set())
    check_unchanged(settings, config, free, working)
    return working


def publish(working: Path, out: Path) -> None:
    """Put the finished results in place.

    A new folder appears whole. In one that is there, our files are replaced and others are left alone; the
    configurations go first and come last, so that a crash in between leaves nothing that could be loaded by mistake.
    """
    pairs = ((ADAPTER_WEIGHTS, ADAPTER_CONFIG), (MODEL_WEIGHTS, MODEL_CONFIG))
    if not any(all((working / name).is_file() for name in pair) for pair in pairs):
        raise FileNotFoundError(f"{working} holds no finished adapter or model")
    for path in working.iterdir():
        if path.name not in FILES:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    put_in_place(working, out, [name for name in FILES if (working / name).exists()], reversed(FILES))


def config_yaml(config: FinetuneConfig) -> str:
    """Every setting of the run, in the form that `protfold finetune` reads."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def model_card(
    config: FinetuneConfig,
    base: str,
    *,
    untrained: bool,
    judged_on: str,
    scores: tuple[Mapping[str, float | None], Mapping[str, float | None]],
    chains: int,
    recycles: int,
    report: bool = True,
) -> str:
    """A README for the folder, in the Hugging Face hub's format.

    Args:
        config: Of the run.
        base: Name of the base model.
        untrained: Whether its weights are random.
        judged_on: What the scores are of.
        scores: Mean scores before and after.
        chains: How many were learnt.
        recycles: Passes after the first in prediction.
        report: Whether there is a report to point to.
    """
    full = config.mode == "full"
    what = "weights" if full else f"{config.adapter.method} adapter"
    header = yaml.safe_dump(
        {
            "base_model": base,
            "library_name": "transformers" if full else "peft",
            "tags": ["protfold-peft", "protein", "esmfold", config.mode if full else config.adapter.method],
        },
        sort_keys=False,
    )
    warning = (
        f"**The weights of the base model, {base}, are untrained: the structures it predicts are noise.** With this\n"
        "adapter only the few chains it has seen are less so. It is for trying the program.\n\n"
        if untrained and not full
        else ""
    )
    names = {
        "lddt_ca": "lDDT-CA",
        "lddt": "lDDT, all atoms",
        "tm_score": "TM-score",
        "gdt_ts": "GDT-TS",
        "plddt": "pLDDT",
    }
    before, after = scores
    rows = "\n".join(
        f"| {label} | {_shown(before.get(name))} | {_shown(after.get(name))} |" for name, label in names.items()
    )
    rank = "" if full else f"rank {config.adapter.rank}, "
    model_argument = f'"{base}", '
    use = (
        'model = load_model("PATH/TO/THIS/FOLDER")'
        if full
        else f'model = load_model({model_argument}adapter="PATH/TO/THIS/FOLDER")'
    )
    command = (
        "--model PATH/TO/THIS/FOLDER" if full else f"--model {base} --adapter PATH/TO/THIS/FOLDER"
    ) + f" --recycles {recycles}"
    source = config.data.folder or config.data.sequences
    shown = f"; `{REPORT}` shows them" if report else ""
    return f"""---
{header}---

# {what} of {base}

{warning}Trained with protfold-peft {__version__} on {chains:,} chains in `{source}`: {rank}{config.training.steps} \
steps, crops of at most {config.data.crop_size} residues.
Every setting is in `{CONFIG}`, every logged step in `{METRICS}`, every score in `{RESULTS}`{shown}.

Mean scores of {judged_on}:

| | before | after |
|---|---|---|
{rows}

```python
from protfold_peft import load_model  # the import registers the adapters with PEFT

{use}
```

or `protfold predict sequences.fasta --out predictions {command}`.
"""


def _shown(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.4f}"

"""The folder of a finished run: a PEFT adapter (or a model), and how it came about.

`adapter_config.json`, `adapter_model.safetensors`, `README.md` (model card), `config.yaml` (every setting),
`metrics.csv` (the log) and `results.json`. A run works in `OUT.partial` beside it, where the log can be watched and
checkpoints are, and puts everything in place at its end: whatever stops it, `OUT` is what it was.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from protfold_peft.configuration import check, check_unchanged, read_yaml
from protfold_peft.errors import ConfigError
from protfold_peft.files import write_text
from protfold_peft.language.config import RunConfig
from protfold_peft.training import checkpoints
from protfold_peft.training.folders import put_in_place, working_folder

CONFIG = "config.yaml"
METRICS = "metrics.csv"
RESULTS = "results.json"
CARD = "README.md"
# A folder counts as an adapter or a model once it has one of these, so they go first and come last.
_LAST = ("adapter_config.json", "config.json")
# Settings that a run may go on with otherwise than it began.
_FREE = {
    ("out",), ("model", "device"), ("training", "eval_batch_size"), ("training", "log_every"),
    ("training", "save_every"), ("training", "accumulate"),
}  # fmt: skip


def make_working_folder(out: Path, config: RunConfig, *, resume: bool) -> tuple[Path, str | None]:
    """The working folder for `out`, and the newest checkpoint that is whole, to go on from.

    Without `resume` it holds nothing but the configuration, and what an unfinished run has left there is removed.

    Raises:
        ConfigError: It cannot be made, holds what no run has written, or has no whole checkpoint to resume from, or
            the run was of other settings.
    """
    working = working_folder(out)
    if resume:
        last = checkpoints.newest(working)
        if last is None:
            raise ConfigError(f"{working} has no whole checkpoint to resume from (training.save_every makes them)")
        before, _ = read_yaml(working / CONFIG)
        free = _FREE | ({("training", "steps")} if config.training.schedule == "constant" else set())
        check_unchanged(check(type(config), before, {}, str(working / CONFIG)), config, free, working)
        return working, str(last)
    try:
        if working.is_dir():
            strangers = [each.name for each in working.iterdir() if not _is_ours(each)]
            if strangers:
                raise ConfigError(f"{working} holds '{strangers[0]}', which no run has written: move it away")
            shutil.rmtree(working)
        working.mkdir(parents=True)
        write_text(working / CONFIG, config_yaml(config))
    except OSError as error:
        raise ConfigError(f"{working}: cannot be made: {error.strerror or error}") from error
    return working, None


def config_yaml(config: RunConfig) -> str:
    """Every setting of the run, in the form that `protfold lm` reads, but for the output folder."""
    content: dict[str, Any] = {**config.model_dump(), "out": None}
    # The task comes first, so that a reader of the file knows what it is for.
    return yaml.safe_dump({"task": content.pop("task"), **content}, sort_keys=False)


def _is_ours(path: Path) -> bool:
    if path.is_dir():
        return re.fullmatch(r"checkpoint-\d+", path.name) is not None
    return path.suffix in (".json", ".yaml", ".csv", ".md", ".safetensors", ".txt", ".jinja", ".model", ".bin")


def publish(working: Path, out: Path) -> None:
    """Put the finished results in place, without the checkpoints.

    A new folder appears whole. In one that is there, our files are replaced and others are left alone; the file that
    makes it an adapter or a model goes first and comes last, so that a crash in between leaves nothing that could be
    loaded by mistake.
    """
    for each in list(working.iterdir()):
        if each.is_dir():
            shutil.rmtree(each)
    files = sorted(working.iterdir(), key=lambda path: (path.name in _LAST, path.name))
    for file in files:
        # safetensors makes its file for the user alone.
        file.chmod((working / CONFIG).stat().st_mode)
    put_in_place(working, out, [file.name for file in files], _LAST)

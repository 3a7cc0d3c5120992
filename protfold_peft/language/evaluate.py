"""Scores of a finished run's adapter, and of the base model without it, on any records of the run's form."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protfold_peft.adapters.named import FULL
from protfold_peft.configuration import check, read_yaml
from protfold_peft.errors import ConfigError
from protfold_peft.language import output
from protfold_peft.language.config import CONFIGS, RunConfig
from protfold_peft.language.models import device_of, load_tokenizer
from protfold_peft.language.run import defined, held_out_records, make_task
from protfold_peft.language.task import trainer_arguments
from protfold_peft.runtime import seed_everything


@dataclass(frozen=True)
class Evaluation:
    """What was scored, and how.

    Attributes:
        task: classify, sft, dpo or mlm.
        metric: The first of the scores.
        records: Number of samples.
        base: Scores without the adapter; None for a model that was trained in full.
        adapted: Scores with it.
        majority: Scores of always answering the most frequent class.
        skipped: Why records were left out, one line each.
    """

    task: str
    metric: str
    records: int
    base: Mapping[str, float | None] | None
    adapted: Mapping[str, float | None]
    majority: Mapping[str, float] | None
    skipped: tuple[str, ...]


def read_run(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration and the results of a finished run.

    Raises:
        ConfigError: The folder is not one.
    """
    file = folder / output.CONFIG
    if not file.is_file() or not (folder / output.RESULTS).is_file():
        raise ConfigError(f"{folder} is not the folder of a finished run of 'protfold lm': it has no {output.CONFIG}")
    data, lines = read_yaml(file)
    kind = CONFIGS.get(str(data.get("task")))
    if kind is None:
        raise ConfigError(f"{file}: task '{data.get('task')}' is none of {', '.join(CONFIGS)}")
    config = check(kind, data, {key: f"{file}, line {line}" for key, line in lines.items()}, str(file))
    try:
        results = json.loads((folder / output.RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / output.RESULTS} cannot be read: {error}") from error
    return config, results


def evaluate(
    folder: str | Path,
    data: str | Sequence[str] | None = None,
    *,
    model: str | None = None,
    device: str | None = None,
    limit: int | None = None,
) -> Evaluation:
    """Score a finished run.

    Args:
        folder: Of the run.
        data: Records of the same form as the run's; None: its validation records.
        model: Where the base model is now, if it has moved.
        device: Instead of the run's.
        limit: Use only the first so many records of each file.

    Raises:
        ConfigError: The folder is not a run's, or there are no records to score.
        DataError: A record cannot be used.
        CheckpointError: Model or adapter cannot be loaded.
    """
    folder = Path(folder)
    config, results = read_run(folder)
    full = config.adapter.method == FULL and config.adapter.start is None
    base = config.model.model_copy(update={"name": model or config.model.name})
    changes: dict[str, Any] = {"name": str(folder) if full else base.name}
    if device is not None:
        changes["device"] = device
    if full:
        changes["revision"] = None
        adapter = config.adapter
    else:
        adapter = config.adapter.model_copy(update={"start": str(folder)})
    start = config.adapter.start
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update=changes),
            "adapter": adapter,
            # The run's own validation records are those that it had.
            "data": config.data.model_copy(update={"limit": limit} if data is not None or limit is not None else {}),
        }
    )
    seed_everything(config.training.seed)
    task = make_task(config, load_tokenizer(config.model), results)
    records = task.read(data) if data is not None else held_out_records(task)
    if records is None:
        raise ConfigError(f"{folder}: the run has no validation records; name files to score with --data")
    samples = task.samples(records, training=False)
    task.tell_skipped()
    target = device_of(config.model)
    base_model = task.load_model(target)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = trainer_arguments(
            config, target, Path(scratch), task.size(samples), validated=False, metric=(task.metric, True)
        )
        trainer = task.trainer(base_model, arguments | {"save_strategy": "no"}, samples, samples)
        task.restore_reference(trainer, start, base if full else None)
    return Evaluation(
        task=config.task,  # type: ignore[attr-defined]
        metric=task.metric,
        records=task.size(samples),
        base=None if full else defined(task.score(trainer, base=True)),
        adapted=defined(task.score(trainer)) or {},
        majority=task.facts().get("majority"),
        skipped=tuple(task.skipped),
    )

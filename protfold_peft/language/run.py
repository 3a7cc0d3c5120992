"""A run from beginning to end: records in, an adapter folder out. The same for all tasks."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers import ProgressCallback as BarOfTransformers

from protfold_peft.adapters.named import FULL
from protfold_peft.adapters.optimization import dead_adapter_callback
from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.files import naming, write_text
from protfold_peft.language import output
from protfold_peft.language.callbacks import LogCallback, ProgressCallback
from protfold_peft.language.classify import Classification, check_classify
from protfold_peft.language.config import ClassifyConfig, RunConfig
from protfold_peft.language.dpo import PreferenceOptimization
from protfold_peft.language.mlm import MaskedModelling
from protfold_peft.language.models import device_of, load_tokenizer
from protfold_peft.language.records import Record
from protfold_peft.language.result import RunResult, model_card
from protfold_peft.language.sft import InstructionTuning
from protfold_peft.language.task import Task, split_off, trainer_arguments
from protfold_peft.runtime import peak_memory, progress_bar, seed_everything
from protfold_peft.training import folders
from protfold_peft.version import __version__

TASKS: dict[str, type[Task[Any]]] = {
    "classify": Classification,
    "sft": InstructionTuning,
    "dpo": PreferenceOptimization,
    "mlm": MaskedModelling,
}


def make_task(config: RunConfig, tokenizer: Any, facts: Mapping[str, Any] | None = None) -> Task[Any]:
    """The task of a configuration; `facts` are those of an earlier run that is looked at again."""
    if isinstance(config, ClassifyConfig):
        check_classify(config)
        return Classification(config, tokenizer, facts)
    return TASKS[config.task](config, tokenizer)  # type: ignore[attr-defined]


def run(config: RunConfig, *, overwrite: bool = False, resume: bool = False) -> RunResult:
    """Train an adapter on the records of `config.data` and save it to `config.out`.

    The validation records are scored before and after. On several processes (under torchrun) each trains its share of
    every step, and the first one writes.

    Args:
        config: The run; `config.out` must be set.
        overwrite: Replace the results that `config.out` holds, and an unfinished run.
        resume: Go on from the last checkpoint of a run for the same folder that was interrupted.

    Raises:
        ConfigError: A setting that cannot be, or an output folder that is in use.
        DataError: A record that cannot be used.
        CheckpointError: The model, or the adapter to go on from, cannot be loaded.
        DeadAdapterError: The loss does not reach a part of the adapter.
        NonFiniteError: The loss became NaN or infinite. No adapter is saved then.
    """
    start = time.monotonic()
    if config.out is None:
        raise ConfigError("no output folder: give --out, or the key 'out' in the configuration")
    out = Path(config.out)
    with naming(folders.working_folder(out)):
        return _run(config, out, start, overwrite=overwrite, resume=resume)


def _run(config: RunConfig, out: Path, start: float, *, overwrite: bool, resume: bool) -> RunResult:
    device = device_of(config.model)
    folders.check_free(out, overwrite=overwrite, resume=resume)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seed = config.training.seed
    seed_everything(seed)
    task = make_task(config, load_tokenizer(config.model))
    train, validation = _samples(task, seed)
    task.tell_skipped()
    model = task.load_model(device)
    task.check_length(model)

    working, checkpoint = _working_folder(out, config, resume=resume, cpu=device.type == "cpu")
    metric = (task.metric, task.greater_is_better)
    arguments = trainer_arguments(
        config, device, working, task.size(train), validated=validation is not None, metric=metric
    )
    seed_everything(seed)
    trainer = task.trainer(model, arguments, train, validation)
    trainer.training_config = config.training
    base = None if validation is None else task.score(trainer, base=True)
    _train(trainer, task, working, checkpoint, dead_check=config.training.dead_adapter_check)
    adapted = None if validation is None else task.score(trainer)

    trained = trainer.accelerator.unwrap_model(trainer.model)
    trainable = {name: p.numel() for name, p in trained.named_parameters() if p.requires_grad}
    facts = task.facts()
    result = RunResult(
        out=out,
        task=config.task,  # type: ignore[attr-defined]
        metric=task.metric,
        base=defined(base),
        adapted=defined(adapted),
        labels=tuple(facts["labels"]) if facts.get("labels") else None,
        majority=facts.get("majority"),
        trainable_parameters=sum(trainable.values()),
        head_parameters=sum(size for name, size in trainable.items() if "modules_to_save" in name),
        steps=trainer.state.global_step,
        best_step=_best_step(trainer),
        final_loss=next((row["loss"] for row in reversed(trainer.state.log_history) if "loss" in row), None),
        train_records=task.size(train),
        skipped=tuple(task.skipped[:100]),
        seconds=time.monotonic() - start,
        peak_memory_bytes=peak_memory(device),
        model=config.model.name,
        method=config.adapter.method,
        seed=seed,
        version=__version__,
    )
    if trainer.is_world_process_zero():
        _save(trained, task, config, result, working)
        output.publish(working, out)
    trainer.accelerator.wait_for_everyone()
    return result


def _samples(task: Task[Any], seed: int) -> tuple[Any, Any]:
    """Training and validation samples, the latter None if there are none."""
    source = task.sources()[0]
    if source is None:
        raise ConfigError("data.train is not given: name files or a hub data set to learn from")
    records = task.read(source)
    held_out = held_out_records(task)
    if task.sources()[1] is None and held_out is not None:
        records, _ = split_off(records, task.config.data.validation_fraction, seed)
    train = task.samples(records, training=True)
    return train, None if held_out is None else task.samples(held_out, training=False)


def held_out_records(task: Task[Any]) -> list[Record] | None:
    """The validation records of a run: those of their own source, or a part of the training records."""
    train, validation = task.sources()
    if validation is not None:
        return task.read(validation)
    fraction = task.config.data.validation_fraction
    if train is None or not fraction:
        return None
    return split_off(task.read(train), fraction, task.config.training.seed)[1]


def _working_folder(out: Path, config: RunConfig, *, resume: bool, cpu: bool) -> tuple[Path, str | None]:
    """On several processes the first one makes it, before any other looks."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return output.make_working_folder(out, config, resume=resume)
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    if state.is_main_process or resume:
        found = output.make_working_folder(out, config, resume=resume)
    else:
        found = folders.working_folder(out), None
    state.wait_for_everyone()
    return found


def _train(trainer: Any, task: Task[Any], working: Path, checkpoint: str | None, *, dead_check: bool) -> None:
    """Train, with bar, log and the watch over the adapter."""
    for unwanted in (PrinterCallback, BarOfTransformers):
        trainer.remove_callback(unwanted)
    with progress_bar("steps") as progress:
        trainer.add_callback(LogCallback(working / output.METRICS, task.metric))
        trainer.add_callback(ProgressCallback(progress))
        if dead_check and task.config.adapter.method != FULL:
            trainer.add_callback(dead_adapter_callback(trainer.model))
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except ProtfoldError:
            raise
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                "the GPU's memory is too small: raise training.accumulate, set model.gradient_checkpointing=true, or "
                "lower data.max_length"
            ) from error


def _best_step(trainer: Any) -> int | None:
    """The step of the checkpoint that was loaded at the end."""
    best = trainer.state.best_model_checkpoint
    return int(best.rpartition("-")[2]) if best and trainer.args.load_best_model_at_end else None


def _save(model: Any, task: Task[Any], config: RunConfig, result: RunResult, working: Path) -> None:
    """Write everything that the folder of a finished run holds."""
    if config.adapter.method == FULL and config.adapter.start is None:
        model.save_pretrained(str(working))
        task.tokenizer.save_pretrained(str(working))
    else:
        settings = model.peft_config["default"]
        settings.base_model_name_or_path = config.model.name
        # "auto" would ask the hub about the base model's vocabulary.
        model.save_pretrained(str(working), selected_adapters=["default"], save_embedding_layers=False)
    write_text(working / output.CONFIG, output.config_yaml(config))
    results = {key: value for key, value in asdict(result).items() if key != "out"}
    write_text(working / output.RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n")
    write_text(working / output.CARD, model_card(config, result))


def defined(scores: Mapping[str, float] | None) -> dict[str, float | None] | None:
    """The scores as JSON can hold them: None for what is not a finite number."""
    if scores is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}

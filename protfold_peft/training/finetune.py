"""A fine-tuning run from beginning to end: structures in, an adapter folder (or a model) out."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainingArguments

from protfold_peft.data import TrainingChain
from protfold_peft.errors import ConfigError
from protfold_peft.files import naming
from protfold_peft.runtime import LOGGER, peak_memory, progress_bar
from protfold_peft.training import checkpoints, folders, memory, output, predictions, weights
from protfold_peft.training.callbacks import (
    CsvFile,
    CsvLogCallback,
    ProgressCallback,
    ValidationCallback,
    cannot_be_written,
    validation_row,
)
from protfold_peft.training.chains import RunChains, read_run_chains
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.evaluate import Folded, Values, calibration, fold_chains, mean_scores
from protfold_peft.training.results import FinetuneResult, save_results, warnings_of
from protfold_peft.training.setup import adapter_config, base_name, load_base, make_trainable
from protfold_peft.training.trainer import StructureTrainer
from protfold_peft.training.trainer_setup import make_trainer, training_arguments
from protfold_peft.version import __version__


def finetune(
    config: FinetuneConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
    chains: RunChains | None = None,
    report: bool = True,
) -> FinetuneResult:
    """Train an adapter (or all weights) on structures and save it to `config.out`.

    The model is judged before and after on the validation chains, each folded whole, from its sequence alone, in eval
    mode. Under `accelerate launch` every process computes a part of each step.

    Args:
        config: The run; `config.out` must be set.
        overwrite: Replace the results that `config.out` holds, and an unfinished run.
        resume: Go on from the newest complete checkpoint of an unfinished run, if there is one.
        chains: What `read_run_chains(config)` gives, where many runs share it; None: read here.
        report: Write `report.html`.

    Raises:
        ConfigError: A setting that cannot be, or an output folder that is in use.
        StructureError: No usable structure.
        CheckpointError: The model cannot be loaded.
        DeadAdapterError: The loss does not reach a part of the adapter.
        NonFiniteError: Too many steps, or a prediction, were NaN or infinite.
        ProtfoldError: A checkpoint cannot be written.
    """
    start = time.monotonic()
    if config.out is None:
        raise ConfigError("no output folder: give --out, or the key 'out' in the configuration")
    out = Path(config.out)
    working = output.working_folder(out)
    arguments = training_arguments(config, working)
    if config.mode != "full" and config.adapter.start_from is None:
        adapter_config(config)  # what is wrong with it is told now, not after the base model was judged
    main = PartialState().is_main_process
    before = output.unfinished(out, config) if resume else None
    if main:
        folders.check_free(out, overwrite=overwrite, resume=resume)
    data = read_run_chains(config) if chains is None else chains
    if main and before is None:
        output.make_working_folder(out, config)
    PartialState().wait_for_everyone()
    log_file = _log_to(working / output.LOG) if main else None
    try:
        for reason in data.skipped:
            LOGGER.info("skipped: %s", reason)
        with naming(working):
            result = _run(config, data, arguments, working, start, report=report)
            if main:
                output.publish(working, out)
        PartialState().wait_for_everyone()
    except BaseException:
        # Nothing was done yet that anybody would go on from, or look at.
        if main and before is None and not (working / output.METRICS).exists():
            shutil.rmtree(working, ignore_errors=True)
        raise
    finally:
        if log_file is not None:
            LOGGER.removeHandler(log_file)
            log_file.close()
    return result


def _run(
    config: FinetuneConfig, data: RunChains, arguments: TrainingArguments, working: Path, start: float, *, report: bool
) -> FinetuneResult:
    """Judge, train, judge again, and write the result into the working folder."""
    device = arguments.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    memory.take_budget(config, device)
    loaded = load_base(config, device)
    recycles = loaded.default_recycles if config.model.recycles is None else config.model.recycles
    base = _base_scores(loaded.network, data, recycles, working)
    model = make_trainable(loaded, config)
    n_trained = sum(parameter.numel() for parameter in weights.trained(model).values())
    LOGGER.info("%s parameters are trained", f"{n_trained:,}")
    trainer = make_trainer(model, config, data.train, arguments, recycles)
    plan = memory.fit_memory(trainer, config, max(data.train.lengths, default=config.data.crop_size))
    if plan is not None:
        LOGGER.info("%s", plan.described)
    validation = _train(trainer, config, data, base, working)

    if validation is not None and validation.best_step:
        best = weights.read(working / output.BEST)
        weights.put_back(trainer.model, best, str(working / output.BEST))
    elif trainer.mean is not None:
        weights.put_back(trainer.model, trainer.mean.mean, "the running mean")
    every = [*data.judged, *data.outside]
    adapted = _folded(trainer.model, every, recycles, "evaluating the result")
    n = len(data.judged)
    confidence = {"base": calibration(base[:n]), "adapted": calibration(adapted[:n])}
    warnings = warnings_of(loaded.untrained, config, data, confidence)
    for warning in warnings:
        LOGGER.warning("%s", warning)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    result = FinetuneResult(
        out=Path(str(config.out)),
        judged_on=data.judged_on,
        base=mean_scores([one.scores for one in base[:n]]),
        adapted=mean_scores([one.scores for one in adapted[:n]]),
        per_target={
            b.name: {"residues": b.residues, "base": b.scores, "adapted": a.scores} for b, a in zip(base[:n], adapted)
        },
        outside={
            "base": mean_scores([one.scores for one in base[n:]]),
            "adapted": mean_scores([one.scores for one in adapted[n:]]),
        }
        if data.outside
        else None,
        confidence=confidence,
        warnings=warnings,
        skipped=data.skipped,
        trainable_parameters=n_trained,
        steps=trainer.state.global_step,
        best_step=validation.best_step
        if validation is not None and validation.best_step
        else trainer.state.global_step,
        skipped_steps=trainer.bad_steps,
        final_loss=losses[-1] if losses else None,
        seconds=time.monotonic() - start,
        peak_memory_bytes=peak_memory(device),
        model=base_name(config),
        untrained=loaded.untrained,
        recycles=recycles,
        seed=config.training.seed,
        version=__version__,
    )
    if PartialState().is_main_process:
        finished = trainer.accelerator.unwrap_model(trainer.model)
        try:
            save_results(finished, config, data, result, (base[:n], adapted[:n]), working, report=report)
        except (OSError, SafetensorError) as error:
            raise cannot_be_written(working, error) from error
    return result


def _train(
    trainer: StructureTrainer, config: FinetuneConfig, data: RunChains, base: Sequence[Folded], working: Path
) -> ValidationCallback | None:
    """Train in place, from the newest checkpoint if there is one."""
    training = config.training
    latest: dict[str, float] = {}
    validation = None
    if training.evaluate_every is not None:
        table = CsvFile(working / output.VALIDATION)
        n = len(data.judged)
        if PartialState().is_main_process and not table.path.exists():
            table.append(validation_row(0, mean_scores([one.scores for one in base[:n]])))

        def judge() -> Values:
            folded = _folded(trainer.model, data.judged, trainer.recycles, "")
            return mean_scores([one.scores for one in folded])

        validation = ValidationCallback(
            trainer,
            judge,
            every=training.evaluate_every,
            patience=training.patience,
            best_file=working / output.BEST,
            table=table,
            latest=latest,
        )
    checkpoint = checkpoints.newest(working)
    with progress_bar("steps") as progress:
        callbacks: list[TrainerCallback] = [
            *([validation] if validation is not None else []),
            CsvLogCallback(working / output.METRICS),
        ]
        if PartialState().is_main_process:
            callbacks.append(ProgressCallback(progress, training.batch_size, latest))
        for callback in callbacks:
            trainer.add_callback(callback)
        if checkpoint is not None:
            LOGGER.warning("going on from %s", checkpoint)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if validation is not None:
            validation.finish(trainer.state)
    return validation


def _base_scores(network: Any, data: RunChains, recycles: int, working: Path) -> list[Folded]:
    """The base model's predictions of the judged and the outside chains; of a resumed run those it made before."""
    file = working / output.BASE
    if file.exists():
        return predictions.read(file)
    folded = _folded(network, [*data.judged, *data.outside], recycles, "evaluating the base")
    if PartialState().is_main_process:
        predictions.save(file, folded)
    return folded


def _folded(network: Any, chains: Sequence[TrainingChain], recycles: int, what: str) -> list[Folded]:
    """Every chain folded and scored, a share of them by each process; all processes get all."""
    state = PartialState()
    own = list(range(state.process_index, len(chains), state.num_processes))
    folding = fold_chains(network, [chains[place] for place in own], recycles)
    if what and state.is_main_process:
        with progress_bar("chains") as progress:
            done = list(progress.track(folding, total=len(own), description=what))
    else:
        done = list(folding)
    if state.num_processes == 1:
        return done
    gathered = sorted(gather_object(list(zip(own, done))), key=lambda pair: pair[0])
    return [one for _, one in gathered]


def _log_to(path: Path) -> logging.Handler:
    """Write the log to a file as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    LOGGER.addHandler(handler)
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    return handler

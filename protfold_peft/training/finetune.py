"""A fine-tuning run from beginning to end: structures in, an adapter folder (or a model) out."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from protfold_peft.adapters import DeadAdapterCallback, describe_adapters
from protfold_peft.data import (
    ChainFolder,
    CropDataset,
    PartDataset,
    TrainingChain,
    collate_parts,
    joined,
    read_chains,
    read_sequences,
)
from protfold_peft.data.prepare.split import VALIDATION
from protfold_peft.data.prepare.store import is_prepared
from protfold_peft.errors import ConfigError, StructureError
from protfold_peft.files import write_text
from protfold_peft.runtime import LOGGER, peak_memory, progress_bar, resolve_device
from protfold_peft.training import checkpoints, output, predictions, weights
from protfold_peft.training.callbacks import (
    BadGradientCallback,
    CsvFile,
    CsvLogCallback,
    ProgressCallback,
    RunningMeanCallback,
    ValidationCallback,
    read_rows,
    validation_row,
)
from protfold_peft.training.config import FinetuneConfig, SourceConfig
from protfold_peft.training.evaluate import Folded, Values, calibration, fold_chains, mean_scores
from protfold_peft.training.report import RunReport, TargetReport, write_report
from protfold_peft.training.setup import base_name, load_base, make_trainable
from protfold_peft.training.trainer import StructureTrainer
from protfold_peft.version import __version__

_TRAINING_CHAINS = "the training chains (this says nothing about other proteins)"
_VALIDATION_CHAINS = "validation chains"
# How many targets the report shows in three dimensions.
_SHOWN = 12
# Confidence is worse when pLDDT is further from lDDT by this many points, or correlates this much less.
_WORSE_ERROR, _WORSE_CORRELATION = 2.0, 0.05


@dataclass(frozen=True)
class FinetuneResult:
    """How a run went; `results.json` holds the same, without `out`.

    Attributes:
        out: The folder.
        judged_on: What the scores are of: validation chains, or the training chains where there are none.
        base: Mean scores without the adapter (before training): `lddt_ca`, `tm_score`, `gdt_ts`, `lddt`, 0..1, and
            `plddt`, 0..100; None where no chain has one.
        adapted: The same with the adapter.
        per_target: Chain -> its `residues`, and `base` and `adapted` scores.
        outside: `base` and `adapted` mean scores of chains unlike those learnt; None if none were given.
        confidence: `base` and `adapted` agreement of pLDDT with true CA lDDT: `pearson`, `spearman`, `error`, `bias`.
        warnings: What has to be said of the result.
        skipped: Why files and chains were left out, one line each.
        trainable_parameters: Elements that were trained.
        steps: Optimizer steps that were run.
        best_step: The step whose weights were kept.
        skipped_steps: Steps left out for a gradient that was not finite.
        final_loss: Mean loss since the log's last row but one; None where nothing was logged.
        seconds: Of this process; a resumed run counts from where it was resumed.
        peak_memory_bytes: Most memory in use: of the GPU's if there is one, else of the process; None if unknown.
        model: Name of the base model.
        untrained: Whether the base model's weights are random.
        recycles: Passes after the first in evaluation.
        seed: Of the run.
        version: Of this program.
    """

    out: Path
    judged_on: str
    base: Values
    adapted: Values
    per_target: Mapping[str, Mapping[str, Any]]
    outside: Mapping[str, Values] | None
    confidence: Mapping[str, Values]
    warnings: tuple[str, ...]
    skipped: tuple[str, ...]
    trainable_parameters: int
    steps: int
    best_step: int
    skipped_steps: int
    final_loss: float | None
    seconds: float
    peak_memory_bytes: int | None
    model: str
    untrained: bool
    recycles: int
    seed: int
    version: str


@dataclass(frozen=True)
class _Data:
    """The chains of a run: learnt, judged, and outside."""

    train: ChainFolder
    judged: Sequence[TrainingChain]
    judged_on: str
    outside: Sequence[TrainingChain]
    skipped: tuple[str, ...]


def finetune(config: FinetuneConfig, *, overwrite: bool = False, resume: bool = False) -> FinetuneResult:
    """Train an adapter (or all weights) on structures and save it to `config.out`.

    The model is judged before and after on the validation chains, each folded whole, from its sequence alone, in eval
    mode. Under `accelerate launch` every process computes a part of each step.

    Args:
        config: The run; `config.out` must be set.
        overwrite: Replace the results that `config.out` holds, and an unfinished run.
        resume: Go on from the newest complete checkpoint of an unfinished run, if there is one.

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
    arguments = _arguments(config, working)
    main = PartialState().is_main_process
    before = output.unfinished(out, config) if resume else None
    if main:
        output.check_free(out, overwrite=overwrite, resume=resume)
    data = _read(config)
    if main and before is None:
        output.make_working_folder(out, config)
    PartialState().wait_for_everyone()
    log_file = _log_to(working / output.LOG) if main else None
    try:
        for reason in data.skipped:
            LOGGER.info("skipped: %s", reason)
        result = _run(config, data, arguments, working, start)
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
    config: FinetuneConfig, data: _Data, arguments: TrainingArguments, working: Path, start: float
) -> FinetuneResult:
    device = arguments.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    loaded = load_base(config, device)
    recycles = loaded.default_recycles if config.model.recycles is None else config.model.recycles
    base = _base_scores(loaded.network, data, recycles, working)
    model = make_trainable(loaded, config)
    n_trained = sum(parameter.numel() for parameter in weights.trained(model).values())
    LOGGER.info("%s parameters are trained", f"{n_trained:,}")
    trainer = _trainer(model, config, data.train, arguments, recycles)
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
    warnings = _warnings(loaded.untrained, config, data, confidence)
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
        best_step=validation.best_step if validation is not None and validation.best_step else trainer.state.global_step,
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
        _save(trainer.accelerator.unwrap_model(trainer.model), config, data, result, (base[:n], adapted[:n]), working)
    return result


def _read(config: FinetuneConfig) -> _Data:
    """Every chain of the run; what is left out is said."""
    settings = config.data
    limits = {"min_length": settings.min_length, "max_length": settings.max_length}
    train: ChainFolder | None = None
    if settings.folder is not None:
        train = read_chains(settings.folder, table=settings.table, where=settings.where, **limits)
    if settings.sequences is not None:
        if not config.loss.masked_lm:
            raise ConfigError("data.sequences is learnt by masked language modelling: give loss.masked_lm a weight")
        sequences = read_sequences(settings.sequences, max_length=settings.max_length)
        train = sequences if train is None else joined(train, sequences)
    if train is None:
        raise ConfigError("nothing to learn: set data.folder, or data.sequences")

    def other(source: SourceConfig) -> ChainFolder:
        return read_chains(source.folder, table=source.table, where=source.where, split=VALIDATION, **limits)

    validation = settings.validation
    if validation is None and settings.folder is not None and is_prepared(settings.folder):
        try:
            held_out = read_chains(settings.folder, split=VALIDATION, **limits)
        except (ConfigError, StructureError) as error:
            LOGGER.warning("%s; the training chains are judged instead", error)
            held_out = None
    else:
        held_out = None if validation is None else other(validation)
    outside = None if settings.outside is None else other(settings.outside)
    judged: Sequence[TrainingChain]
    if held_out is not None:
        judged = tuple(held_out.chains)
    else:
        judged = tuple(chain for chain in train.chains if chain.atom_mask.any())
        if not judged:
            raise ConfigError("no structure to judge by: set data.validation")
    folders = [folder for folder in (train, held_out, outside) if folder is not None]
    return _Data(
        train=train,
        judged=judged,
        judged_on=_TRAINING_CHAINS if held_out is None else _VALIDATION_CHAINS,
        outside=() if outside is None else tuple(outside.chains),
        skipped=tuple(skipped.reason for folder in folders for skipped in folder.skipped),
    )


def _trainer(
    model: Any, config: FinetuneConfig, train: ChainFolder, arguments: TrainingArguments, recycles: int
) -> StructureTrainer:
    training = config.training
    crops = CropDataset(
        train.chains,
        crop_size=config.data.crop_size,
        batch_size=training.batch_size,
        steps=training.steps,
        seed=training.seed,
        clamped_fraction=config.loss.clamped_fraction,
        groups=train.clusters if config.data.by_cluster else None,
        masked=bool(config.loss.masked_lm),
    )
    parts = arguments.world_size * training.accumulate
    if training.batch_tokens is None and training.batch_size < parts:
        raise ConfigError(
            f"training.batch_size={training.batch_size} samples cannot be split into {parts} parts "
            f"({arguments.world_size} processes, each accumulating {training.accumulate})"
        )
    trainer = StructureTrainer(
        config,
        recycles=recycles,
        model=model,
        args=arguments,
        train_dataset=PartDataset(crops, parts, tokens=training.batch_tokens, lengths=train.lengths),
        data_collator=collate_parts,
    )
    if trainer.is_fsdp_enabled and (training.ema_decay or training.evaluate_every):
        raise ConfigError("training.ema_decay and training.evaluate_every are not supported under FSDP: use DDP")
    trainer.remove_callback(PrinterCallback)
    bad = BadGradientCallback(trainer, training.max_bad_steps)
    trainer.add_callback(bad)
    trainer.add_callback(RunningMeanCallback(trainer, bad))
    if training.dead_adapter_check and config.mode != "full":
        trainer.add_callback(DeadAdapterCallback(model))
    return trainer


def _train(
    trainer: StructureTrainer, config: FinetuneConfig, data: _Data, base: Sequence[Folded], working: Path
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
    return validation


def _arguments(config: FinetuneConfig, working: Path) -> TrainingArguments:
    training = config.training
    device = resolve_device(config.model.device)
    if device.index:
        raise ConfigError(
            f"model.device={config.model.device}: training takes the first GPU; choose it with CUDA_VISIBLE_DEVICES"
        )
    arguments = TrainingArguments(
        output_dir=str(working),
        max_steps=training.steps,
        # An item of the data set is a whole part of a step.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup" if training.schedule == "constant" else training.schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        logging_steps=training.log_every,
        seed=training.seed,
        # The data set is in the order of the run already.
        train_sampling_strategy="sequential",
        dataloader_num_workers=config.data.workers,
        # The batch holds what the losses need, which the model's forward pass does not take.
        remove_unused_columns=False,
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=config.mode == "full" or config.data.sequences is not None,
        save_strategy="no" if training.checkpoint_every is None else "steps",
        save_steps=training.checkpoint_every or 1,
        report_to=_trackers(training.trackers, working),
        disable_tqdm=True,
    )
    # With several GPUs the Trainer would wrap the model in DataParallel, which multiplies the batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _trackers(wanted: Sequence[str], working: Path) -> list[str]:
    import os

    from transformers.integrations import is_tensorboard_available, is_wandb_available

    there = {"tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    if "wandb" in wanted and not there["wandb"]:
        raise ConfigError("training.trackers: wandb is not installed: pip install wandb")
    if "tensorboard" in wanted and there["tensorboard"]:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(working / output.TENSORBOARD)
    return [name for name in wanted if there[name]] or ["none"]


def _base_scores(network: Any, data: _Data, recycles: int, working: Path) -> list[Folded]:
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


def _warnings(
    untrained: bool, config: FinetuneConfig, data: _Data, confidence: Mapping[str, Values]
) -> tuple[str, ...]:
    found: list[str] = []
    if untrained and config.mode != "full":
        found.append(f"{base_name(config)} has UNTRAINED weights: this shows that training works, nothing else")
    if data.judged_on == _TRAINING_CHAINS:
        found.append("judged on the training chains: the scores say nothing about other proteins; set data.validation")
    before, after = confidence["base"], confidence["adapted"]
    error = (before["error"], after["error"])
    if error[0] is not None and error[1] is not None and error[1] > error[0] + _WORSE_ERROR:
        found.append(f"pLDDT is further from the true lDDT than before: by {error[1]:.1f} points, {error[0]:.1f} before")
    correlation = (before["pearson"], after["pearson"])
    if (
        correlation[0] is not None
        and correlation[1] is not None
        and correlation[1] < correlation[0] - _WORSE_CORRELATION
    ):
        found.append(
            f"pLDDT tells good residues from bad ones less well than before: correlation {correlation[1]:.2f}, "
            f"{correlation[0]:.2f} before"
        )
    return tuple(found)


def _save(
    model: Any,
    config: FinetuneConfig,
    data: _Data,
    result: FinetuneResult,
    folded: tuple[Sequence[Folded], Sequence[Folded]],
    working: Path,
) -> None:
    if config.mode == "full":
        model.save_pretrained(str(working))
        pair = (output.MODEL_WEIGHTS, output.MODEL_CONFIG)
    else:
        # "auto" would ask the hub about the base model's vocabulary.
        model.save_pretrained(str(working), save_embedding_layers=False)
        pair = (output.ADAPTER_WEIGHTS, output.ADAPTER_CONFIG)
    # safetensors makes its file for the user alone.
    (working / pair[0]).chmod((working / pair[1]).stat().st_mode)
    card = output.model_card(
        config,
        result.model,
        untrained=result.untrained,
        judged_on=result.judged_on,
        scores=(result.base, result.adapted),
        chains=len(data.train.chains),
        recycles=result.recycles,
    )
    write_text(working / output.CARD, card)
    write_text(working / output.CONFIG, output.config_yaml(config))
    content = {key: value for key, value in asdict(result).items() if key != "out"}
    write_text(working / output.RESULTS, json.dumps(content, indent=2, allow_nan=False) + "\n")
    write_report(working / output.REPORT, _report(config, data, result, folded, working))


def _report(
    config: FinetuneConfig,
    data: _Data,
    result: FinetuneResult,
    folded: tuple[Sequence[Folded], Sequence[Folded]],
    working: Path,
) -> RunReport:
    def change(place: int) -> float:
        before, after = (one[place].scores["lddt_ca"] for one in folded)
        return 0.0 if before is None or after is None else abs(after - before)

    shown = set(sorted(range(len(data.judged)), key=lambda place: -change(place))[:_SHOWN])
    full = config.mode == "full"
    memory = result.peak_memory_bytes
    facts = {
        "base model": result.model,
        "trained": "all weights" if full else f"{config.adapter.method} adapter, rank {config.adapter.rank}",
        "trained parameters": f"{result.trainable_parameters:,}",
        "chains learnt": f"{len(data.train.chains):,}",
        "steps": f"{result.steps:,}" + (f" (kept: {result.best_step:,})" if result.best_step != result.steps else ""),
        "time": f"{result.seconds:.0f} s",
        "peak memory": "unknown" if memory is None else f"{memory / 2**30:.2f} GiB",
        "seed": str(result.seed),
        "version": result.version,
    }
    return RunReport(
        title=f"{'full fine-tuning' if full else f'{config.adapter.method} adapter'} of {result.model}",
        facts=facts,
        warnings=result.warnings,
        judged_on=result.judged_on,
        training=_numbers(read_rows(working / output.METRICS)),
        validation=_numbers(read_rows(working / output.VALIDATION)),
        base=result.base,
        adapted=result.adapted,
        targets=[
            TargetReport(
                name=before.name,
                residues=before.residues,
                base=before.scores,
                adapted=after.scores,
                structures=predictions.superposed(chain, before, after) if place in shown else None,
            )
            for place, (chain, before, after) in enumerate(zip(data.judged, *folded))
        ],
        outside=None if result.outside is None else (result.outside["base"], result.outside["adapted"]),
        confidence=(result.confidence["base"], result.confidence["adapted"]),
    )


def _numbers(rows: Sequence[Mapping[str, str]]) -> list[dict[str, float]]:
    return [{name: float(value) if value else float("nan") for name, value in row.items()} for row in rows]


def _log_to(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    LOGGER.addHandler(handler)
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    return handler


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        sites: Adapted modules, by group; empty where all weights are trained.
        trainable_parameters: Elements.
        model_parameters: Elements of the base model.
        train_chains: Chains that are learnt.
        judged_chains: Chains it is judged by.
        state_bytes: Weights, gradients and AdamW's two moments.
        peak_memory_bytes: Measured in one step on the longest crops, all of the process or GPU; None if unknown.
        step_seconds: Of that step.
        loss: Of that step.
    """

    sites: Mapping[str, tuple[str, ...]]
    trainable_parameters: int
    model_parameters: int
    train_chains: int
    judged_chains: int
    state_bytes: int
    peak_memory_bytes: int | None
    step_seconds: float
    loss: float


def dry_run(config: FinetuneConfig) -> DryRun:
    """Load everything and run one step, on the longest crops there are; nothing is kept.

    Raises:
        ProtfoldError: As `finetune`.
    """
    data = _read(config)
    with tempfile.TemporaryDirectory(prefix="protfold-") as folder:
        changes = {"steps": 1, "checkpoint_every": None, "evaluate_every": None, "trackers": [], "log_every": 1}
        once = config.model_copy(update={"training": config.training.model_copy(update=changes)})
        arguments = _arguments(once, Path(folder))
        if arguments.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(arguments.device)
        loaded = load_base(config, arguments.device)
        model_parameters = sum(parameter.numel() for parameter in loaded.base.parameters())
        weights_bytes = sum(p.numel() * p.element_size() for p in loaded.base.parameters())
        recycles = loaded.default_recycles if config.model.recycles is None else config.model.recycles
        model = make_trainable(loaded, config)
        own = weights.trained(model).values()
        sites: dict[str, tuple[str, ...]] = {}
        if config.mode != "full":
            (description,) = describe_adapters(model)
            sites = {group.name: group.sites for group in description.groups}
        longest = sorted(range(len(data.train.chains)), key=lambda place: -data.train.lengths[place])
        longest = longest[: config.training.batch_size]
        chains = [data.train.chains[place] for place in longest]
        train = ChainFolder(tuple(chains), (), tuple(map(len, chains)))
        trainer = _trainer(model, once, train, arguments, recycles)
        begin = time.monotonic()
        trainer.train()
        return DryRun(
            sites=sites,
            trainable_parameters=sum(p.numel() for p in own),
            model_parameters=model_parameters,
            train_chains=len(data.train.chains),
            judged_chains=len(data.judged),
            state_bytes=weights_bytes + sum(p.numel() * (p.element_size() + 12) for p in own),
            peak_memory_bytes=peak_memory(arguments.device),
            step_seconds=time.monotonic() - begin,
            loss=next(row["loss"] for row in trainer.state.log_history if "loss" in row),
        )

"""The Trainer of a fine-tuning run: its settings in transformers' terms, its samples, and what watches over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainingArguments

from protfold_peft.adapters.optimization import dead_adapter_callback
from protfold_peft.data import ChainFolder, CropDataset, PartDataset, collate_parts
from protfold_peft.errors import ConfigError
from protfold_peft.runtime import resolve_device
from protfold_peft.training import output
from protfold_peft.training.callbacks import BadGradientCallback, RunningMeanCallback
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.trainer import StructureTrainer


def make_trainer(
    model: Any, config: FinetuneConfig, train: ChainFolder, arguments: TrainingArguments, recycles: int
) -> StructureTrainer:
    """The Trainer of a run, with what watches over it."""
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
        trainer.add_callback(dead_adapter_callback(model))
    return trainer


def training_arguments(config: FinetuneConfig, working: Path) -> TrainingArguments:
    """The run's settings in transformers' terms."""
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
    """Those of the wanted trackers that are installed, set up."""
    import os

    from transformers.integrations import is_tensorboard_available, is_wandb_available

    there = {"tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    if "wandb" in wanted and not there["wandb"]:
        raise ConfigError("training.trackers: wandb is not installed: pip install wandb")
    if "tensorboard" in wanted and there["tensorboard"]:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(working / output.TENSORBOARD)
    return [name for name in wanted if there[name]] or ["none"]

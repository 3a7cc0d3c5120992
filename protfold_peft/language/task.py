"""What the four tasks have in common: reading, samples that are too long, the Trainer's arguments, the optimizer."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from protfold_peft.errors import ConfigError, DataError
from protfold_peft.language.adapter import param_groups
from protfold_peft.language.config import ModelConfig, RunConfig, TrainingConfig
from protfold_peft.language.models import is_bf16, load_model, longest_input
from protfold_peft.language.records import Record, read_records
from protfold_peft.runtime import LOGGER

# Lines about single records that go to the screen.
_MAX_SCREEN_LINES = 20

Config = TypeVar("Config", bound=RunConfig)
Samples = Any  # a list or a data set, as the task's Trainer takes it


class FactorRates:
    """Mixed into a Trainer: AdamW with a learning rate for each kind of factor."""

    training_config: TrainingConfig
    optimizer: Any

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer over `param_groups`."""
        if self.optimizer is None:
            trainer = cast(Trainer, self)
            kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
            groups = param_groups(trainer.model if model is None else model, self.training_config)
            self.optimizer = kind(groups, **options)
        return self.optimizer


class PlainTrainer(FactorRates, Trainer):
    """transformers' own, with these learning rates."""


class Task(ABC, Generic[Config]):
    """One family of runs.

    Args:
        config: Of the run.
        tokenizer: Of its model.

    Attributes:
        task_type: What PEFT calls it; None where that is nothing special.
        auto_class: Makes the model.
        metric: Chooses the best checkpoint; a name in what the Trainer's evaluation gives.
        greater_is_better: Which way.
        skipped: Why records were left out, one line each.
    """

    task_type: ClassVar[str | None] = None
    auto_class: ClassVar[Any] = None
    metric: str = "loss"
    greater_is_better: bool = False

    def __init__(self, config: Config, tokenizer: Any) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.skipped: list[str] = []

    def read(self, source: str | Sequence[str]) -> list[Record]:
        """The records of `data.train` or `data.validation`.

        Raises:
            DataError: One cannot be used.
        """
        return read_records(source, columns=self.config.data.columns, limit=self.config.data.limit)

    def sources(self) -> tuple[str | list[str] | None, str | list[str] | None]:
        """Where training and validation records come from."""
        return self.config.data.train, self.config.data.validation

    @abstractmethod
    def samples(self, records: Sequence[Record], *, training: bool) -> Samples:
        """What the Trainer takes, made of records.

        Raises:
            DataError: A record cannot be used.
        """

    def size(self, samples: Samples) -> int:
        """How many samples an epoch has."""
        return len(samples)

    def load_model(self, device: torch.device) -> Any:
        """The base model."""
        return load_model(self.config.model, self.auto_class, device)

    @abstractmethod
    def trainer(self, model: Any, arguments: dict[str, Any], train: Samples, validation: Samples | None) -> Any:
        """The Trainer, with the adapter on the model."""

    @abstractmethod
    def score(self, trainer: Any, *, base: bool = False) -> dict[str, float]:
        """The scores of the Trainer's validation samples, of the base model or of the adapted one."""

    def restore_reference(self, trainer: Any, start: str | None, base: ModelConfig | None) -> None:
        """For the evaluation of what is trained already: what it was compared with in its training.

        Args:
            trainer: Holds the trained adapter or model.
            start: The adapter that the run went on from.
            base: The model that was trained in full; None if an adapter was.
        """

    def facts(self) -> dict[str, Any]:
        """What else belongs into `results.json`."""
        return {}

    def check_length(self, model: Any) -> None:
        """Refuse a length that the model does not take.

        Raises:
            ConfigError: `data.max_length` is more.
        """
        limit = longest_input(model, self.tokenizer)
        if limit is not None and self.config.data.max_length > limit:
            raise ConfigError(
                f"data.max_length={self.config.data.max_length}: {self.config.model.name} takes {limit} tokens at most"
            )

    def tell_skipped(self) -> None:
        """Name the records that are left out: the first ones on the screen, and how many more there are."""
        for line in self.skipped[:_MAX_SCREEN_LINES]:
            LOGGER.warning("skipped: %s", line)
        if len(self.skipped) > _MAX_SCREEN_LINES:
            LOGGER.warning("skipped: %d more records for such reasons", len(self.skipped) - _MAX_SCREEN_LINES)

    def fits(self, record: Record, length: int) -> bool:
        """Whether a sample of `length` tokens is used; one that is too long may be truncated, skipped or refused.

        Raises:
            DataError: `data.too_long` is error, and it is.
        """
        data = self.config.data
        if length <= data.max_length or data.too_long == "truncate":
            return True
        what = f"{record.place}: {length} tokens, more than data.max_length={data.max_length}"
        if data.too_long == "error":
            raise DataError(f"{what}; raise it, or set data.too_long to truncate or skip")
        self.skipped.append(what)
        return False


def split_off(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """The records without a random `fraction` of them, and that fraction, at least one; both in their order.

    Raises:
        DataError: There are fewer than two records.
    """
    if len(records) < 2:
        raise DataError(f"{records[0].place}: one record alone cannot be divided; set data.validation_fraction=0")
    count = min(max(1, round(fraction * len(records))), len(records) - 1)
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(order[:count])
    return (
        [record for i, record in enumerate(records) if i not in chosen],
        [record for i, record in enumerate(records) if i in chosen],
    )


def total_steps(training: TrainingConfig, n_samples: int) -> int:
    """Optimizer steps of the run."""
    return training.steps or max(1, math.ceil((training.epochs or 0) * epoch_steps(training, n_samples)))


def epoch_steps(training: TrainingConfig, n_samples: int) -> int:
    """Optimizer steps in which every sample is seen once."""
    return max(1, math.ceil(n_samples / training.batch_size))


def trainer_arguments(
    config: RunConfig, device: torch.device, working: Path, n_train: int, *, validated: bool, metric: tuple[str, bool]
) -> dict[str, Any]:
    """Arguments for transformers' `TrainingArguments` or a class of TRL's made from it.

    Args:
        config: Of the run.
        device: To train on.
        working: Folder of the checkpoints.
        n_train: Number of training samples.
        validated: Whether there are validation samples.
        metric: That chooses the best checkpoint, and whether more of it is better.

    Raises:
        ConfigError: The batch cannot be divided, or the checkpoints do not meet the evaluations.
    """
    training = config.training
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    part, rest = divmod(training.batch_size, processes * training.accumulate)
    if rest or not part:
        raise ConfigError(
            f"training.batch_size={training.batch_size} cannot be divided by {processes} processes times "
            f"accumulate={training.accumulate}"
        )
    steps = total_steps(training, n_train)
    arguments: dict[str, Any] = {
        "output_dir": str(working),
        "max_steps": steps,
        "per_device_train_batch_size": part,
        "per_device_eval_batch_size": training.eval_batch_size,
        "gradient_accumulation_steps": training.accumulate,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if training.schedule == "constant" else training.schedule,
        "warmup_steps": math.ceil(training.warmup * steps) if training.warmup < 1 else int(training.warmup),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "logging_steps": training.log_every,
        # A NaN is an error here, not something to leave out of the mean.
        "logging_nan_inf_filter": False,
        "seed": training.seed,
        "use_cpu": device.type == "cpu",
        "bf16": is_bf16(config.model, device),
        "gradient_checkpointing": config.model.gradient_checkpointing,
        # Re-entrant checkpointing would average a part of a shared factor's gradient on several processes.
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if config.model.gradient_checkpointing else None,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": device.type == "cuda",
        "save_total_limit": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    every = min(training.eval_every or epoch_steps(training, n_train), steps)
    if validated:
        arguments |= {"eval_strategy": "steps", "eval_steps": every}
    if validated and training.keep_best:
        name, greater = metric
        arguments |= {"load_best_model_at_end": True, "metric_for_best_model": name, "greater_is_better": greater}
        arguments |= {"save_strategy": "steps", "save_steps": training.save_every or every}
        if arguments["save_steps"] % every:
            raise ConfigError(
                f"training.save_every={training.save_every} must be a multiple of the {every} steps between two "
                "evaluations where keep_best is on"
            )
    elif training.save_every is not None:
        arguments |= {"save_strategy": "steps", "save_steps": training.save_every}
    return arguments


def make_arguments(kind: type[TrainingArguments], arguments: dict[str, Any], **more: Any) -> Any:
    """The arguments as an object of `kind`, for one device per process."""
    made: Any = kind(**arguments, **more)
    # With several GPUs the Trainer would wrap the model in DataParallel, which multiplies the batch.
    made._n_gpu = min(1, made.n_gpu)
    return made


def batches(trainer: Any, samples: Samples) -> Iterator[dict[str, torch.Tensor]]:
    """All samples in their order, collated as for training, on the Trainer's device."""
    loader = DataLoader(samples, batch_size=trainer.args.per_device_eval_batch_size, collate_fn=trainer.data_collator)
    for batch in loader:
        yield {
            name: value.to(trainer.args.device) if torch.is_tensor(value) else value for name, value in batch.items()
        }


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The surprise in nats at every label but -100, `(k,)`; logits `(.., v)`, labels `(..)`."""
    kept = labels != -100
    return torch.nn.functional.cross_entropy(logits[kept].float(), labels[kept], reduction="none")

"""Instruction tuning by TRL's `SFTTrainer`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM

from protfold_peft.errors import ConfigError, DataError
from protfold_peft.language.adapter import add_adapter, without_adapter
from protfold_peft.language.config import DpoConfig, RunConfig, SftConfig, SftData
from protfold_peft.language.records import Record, convert
from protfold_peft.language.task import FactorRates, Samples, Task, batches, make_arguments, token_losses
from protfold_peft.language.templates import instruction_samples

TextConfig = TypeVar("TextConfig", bound=SftConfig | DpoConfig)


def require_trl() -> None:
    """Refuse to go on without TRL.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise ConfigError("instruction tuning and preferences need trl: pip install 'protfold-peft[llm]'") from error


class TextTask(Task[TextConfig]):
    """What instruction tuning and preferences share: a causal model, prompts, and a template."""

    task_type = "CAUSAL_LM"
    auto_class = AutoModelForCausalLM

    def __init__(self, config: TextConfig, tokenizer: Any) -> None:
        require_trl()
        super().__init__(config, tokenizer)
        self.chat = uses_chat(config.data, tokenizer, config)

    def n_tokens(self, prompt: Any, answer: Any) -> int:
        """How many tokens a prompt and its answer have, the end mark counted."""
        if isinstance(prompt, list):
            return len(
                self.tokenizer.apply_chat_template(prompt + answer, tokenize=True, return_dict=True)["input_ids"]
            )
        return len(self.tokenizer(prompt + answer).input_ids) + 1

    def usable(self, record: Record, prompt: Any, *answers: Any) -> bool:
        """Whether a sample is used: it is short enough, or can be truncated so that something of its answers is left.

        Raises:
            DataError: `data.too_long` is error, and it is too long.
        """
        limit = self.config.data.max_length
        length = max(self.n_tokens(prompt, answer) for answer in answers)
        if not self.fits(record, length):
            return False
        # An answer of nothing: TRL would drop the sample in silence.
        if length > limit and self.n_tokens(prompt, [] if isinstance(prompt, list) else "") > limit:
            self.skipped.append(f"{record.place}: the prompt alone fills data.max_length={limit}")
            return False
        return True

    def dataset(self, samples: Sequence[dict[str, Any]], records: Sequence[Record]) -> Samples:
        """The samples as TRL takes them.

        Raises:
            DataError: They are of different forms, or there is none.
        """
        from datasets import Dataset

        if not samples:
            raise DataError(f"{records[0].place}: no record is left (data.too_long=skip)")
        for sample, record in zip(samples, records, strict=True):
            if sample.keys() != samples[0].keys():
                raise DataError(
                    f"{record.place}: it gives {', '.join(sample)}, and earlier records {', '.join(samples[0])}; keep "
                    "records of one form in a run"
                )
        return Dataset.from_list(list(samples))


def uses_chat(data: SftData, tokenizer: Any, config: RunConfig) -> bool:
    """Whether prompts are written by a chat template; sets the tokenizer's if a file is given.

    Raises:
        ConfigError: There is no chat template, or the file cannot be read.
    """
    if data.chat_template is not None:
        try:
            tokenizer.chat_template = Path(data.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"data.chat_template: {data.chat_template} cannot be read: {error}") from error
    if data.template == "chat" and tokenizer.chat_template is None:
        raise ConfigError(
            f"data.template=chat: the tokenizer of {config.model.name} has no chat template; name a file as "
            "data.chat_template, or use alpaca"
        )
    return data.template == "chat" or (data.template == "auto" and tokenizer.chat_template is not None)


def trainable_in_fp32(trainer: Any) -> Any:
    """TRL turns adapters of quantised models to bf16, where small updates of shared factors are rounded away."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


class InstructionTuning(TextTask[SftConfig]):
    """The loss of the answers, or of whole texts."""

    def samples(self, records: Sequence[Record], *, training: bool) -> Samples:
        """Prompts and completions, or texts."""
        separator = self.config.data.separator
        made = convert(records, lambda record: instruction_samples(record, chat=self.chat, separator=separator))
        kept, origin = [], []
        for record, found in zip(records, made, strict=True):
            for sample in found:
                if self.usable(record, sample.get("prompt", ""), sample.get("completion", sample.get("text"))):
                    kept.append(sample)
                    origin.append(record)
        return self.dataset(kept, origin or records)

    def trainer(self, model: Any, arguments: dict[str, Any], train: Samples, validation: Samples | None) -> Any:
        """TRL's."""
        from trl import SFTConfig as TrlConfig
        from trl import SFTTrainer

        class Trainer(FactorRates, SFTTrainer):
            """TRL's, with a learning rate for each kind of factor."""

        adapted = add_adapter(model, self.config.adapter, self.task_type)
        completion_only = self.config.training.completion_only and "completion" in train.column_names
        options = {"max_length": self.config.data.max_length, "completion_only_loss": completion_only}
        return trainable_in_fp32(
            Trainer(
                model=adapted,
                args=make_arguments(TrlConfig, arguments, **options),
                train_dataset=train,
                eval_dataset=validation,
                processing_class=self.tokenizer,
            )
        )

    @torch.no_grad()
    def score(self, trainer: Any, *, base: bool = False) -> dict[str, float]:
        """Mean surprise in nats per token of the answers (or texts), and its exponential."""
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        total, count = 0.0, 0
        with without_adapter(model) if base else nullcontext(), trainer.accelerator.autocast():
            for batch in batches(trainer, trainer.eval_dataset):
                logits = model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")).logits
                losses = token_losses(logits[:, :-1], batch["labels"][:, 1:])
                total += losses.double().sum().item()
                count += len(losses)
        return {"perplexity": math.exp(min(total / count, 700.0)), "loss": total / count}

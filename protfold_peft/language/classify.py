"""Classification and regression of texts: GLUE tasks by name, or own files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, TrainingArguments

from protfold_peft.errors import ConfigError, DataError
from protfold_peft.language.adapter import add_adapter, without_adapter
from protfold_peft.language.config import ClassifyConfig
from protfold_peft.language.glue import ALIASES, HUB_NAME, text_task
from protfold_peft.language.metrics import METRICS
from protfold_peft.language.models import load_model
from protfold_peft.language.records import HUB, Record, read_records
from protfold_peft.language.task import PlainTrainer, Samples, Task, batches, make_arguments


class Classification(Task[ClassifyConfig]):
    """Texts, or pairs of texts, into classes or to a number; the head is trained and saved with the adapter."""

    task_type = "SEQ_CLS"
    auto_class = AutoModelForSequenceClassification
    greater_is_better = True

    def __init__(self, config: ClassifyConfig, tokenizer: Any, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(config, tokenizer)
        self.text = text_task(config)
        self.metric = self.text.metrics[0]
        labels = (facts or {}).get("labels", self.text.labels)
        self.labels: list[str] | None = [str(i) for i in range(labels)] if isinstance(labels, int) else labels
        self.majority: dict[str, float] = {}

    def sources(self) -> tuple[str | list[str] | None, str | list[str] | None]:
        """Those of the configuration; a GLUE task has its hub data as default."""
        train, validation = super().sources()
        if train is None and self.config.data.glue is not None:
            train = f"{HUB}{HUB_NAME}:{self.config.data.glue}:train"
            validation = validation or f"{HUB}{HUB_NAME}:{self.config.data.glue}:validation"
        return train, validation

    def read(self, source: str | Sequence[str]) -> list[Record]:
        """Records with the columns of the task."""
        data, text = self.config.data, self.text
        aliases = ALIASES if data.glue else {}
        return read_records(
            source, columns=data.columns, wanted=text.columns, layouts=text.layouts, aliases=aliases, limit=data.limit
        )

    def samples(self, records: Sequence[Record], *, training: bool) -> Samples:
        """Tokens and the label of every record; the first call decides which classes there are."""
        if self.labels is None and not self.text.regression:
            found = {str(record[self.text.label]) for record in records}
            self.labels = sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
            if len(self.labels) < 2:
                raise DataError(f"{records[0].place}: all records have the label '{self.labels[0]}'; give two or more")
        samples = []
        for record in records:
            pair = (record.text(self.text.text_pair),) if self.text.text_pair else ()
            tokens = dict(self.tokenizer(record.text(self.text.text), *pair))
            if self.fits(record, len(tokens["input_ids"])):
                if len(tokens["input_ids"]) > self.config.data.max_length:
                    limit = self.config.data.max_length
                    tokens = dict(self.tokenizer(record[self.text.text], *pair, truncation=True, max_length=limit))
                samples.append({**tokens, "labels": self._label(record)})
        if not samples:
            raise DataError(f"{records[0].place}: no record is left (data.too_long=skip)")
        if not training:
            self.majority = self._majority([sample["labels"] for sample in samples])
        return samples

    def _label(self, record: Record) -> int | float:
        value = record[self.text.label]
        if self.text.regression:
            return self._number(record, value)
        assert self.labels is not None
        # Files have names or indices, and a table in memory may have kept an index as a number.
        name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        if name in self.labels:
            return self.labels.index(name)
        if name.isdigit() and int(name) < len(self.labels) and not any(label.isdigit() for label in self.labels):
            return int(name)
        named = ", ".join(self.labels[:10]) + (", ..." if len(self.labels) > 10 else "")
        raise DataError(f"{record.place}: label '{name}' is none of {named}")

    def _number(self, record: Record, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        low, high = self.text.label_range or (-math.inf, math.inf)
        if not (math.isfinite(number) and low <= number <= high):
            allowed = f" from {low:g} to {high:g}" if self.text.label_range else ""
            raise DataError(f"{record.place}: label '{value}' is no number{allowed}")
        return number

    def _majority(self, labels: Sequence[int | float]) -> dict[str, float]:
        """The scores of always answering the most frequent class of these samples."""
        if self.text.regression:
            return {}
        common = Counter(labels).most_common(1)[0][0]
        return self._scores(np.full(len(labels), common), np.array(labels))

    def _scores(self, predicted: Any, true: Any) -> dict[str, float]:
        return {name: METRICS[name](predicted, true) for name in self.text.metrics}

    def load_model(self, device: torch.device) -> Any:
        """With a new head, for as many classes as there are."""
        names = ["value"] if self.text.regression else self.labels
        assert names is not None
        model = load_model(
            self.config.model,
            self.auto_class,
            device,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            problem_type="regression" if self.text.regression else "single_label_classification",
        )
        # Models that read from left to right classify at the last token that is no padding.
        model.config.pad_token_id = self.tokenizer.pad_token_id
        return model

    def trainer(self, model: Any, arguments: dict[str, Any], train: Samples, validation: Samples | None) -> Any:
        """transformers' Trainer."""
        adapted = add_adapter(model, self.config.adapter, self.task_type)
        return PlainTrainer(
            model=adapted,
            args=make_arguments(TrainingArguments, arguments, label_names=["labels"]),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=DataCollatorWithPadding(self.tokenizer),
            compute_metrics=self._compute_metrics,
        )

    def _compute_metrics(self, prediction: Any) -> dict[str, float]:
        scores = self._scores(self._predicted(prediction.predictions), prediction.label_ids)
        # An undefined correlation must not be taken for the best there was.
        return {name: 0.0 if math.isnan(score) else score for name, score in scores.items()}

    def _predicted(self, logits: Any) -> Any:
        # Some models give hidden states beside the logits.
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.squeeze(-1) if self.text.regression else logits.argmax(-1)

    @torch.no_grad()
    def score(self, trainer: Any, *, base: bool = False) -> dict[str, float]:
        """The task's metrics. The base model's head is untrained: its scores are those of chance."""
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        logits, labels = [], []
        with without_adapter(model) if base else nullcontext(), trainer.accelerator.autocast():
            for batch in batches(trainer, trainer.eval_dataset):
                labels.append(batch.pop("labels").cpu())
                logits.append(model(**batch).logits.float().cpu())
        predicted = self._predicted(torch.cat(logits).numpy())
        return self._scores(predicted, torch.cat(labels).numpy())

    def facts(self) -> dict[str, Any]:
        """The classes, and what always answering the most frequent one scores."""
        return {"labels": self.labels, "majority": self.majority or None}


def check_classify(config: ClassifyConfig) -> None:
    """Refuse keys that contradict each other.

    Raises:
        ConfigError: A key that the GLUE task sets, or a range that is none.
    """
    data = config.data
    # The file of a finished run has every key, these with their defaults.
    names = ("label", "labels", "problem", "text", "text_pair")
    given = [name for name in names if getattr(data, name) != type(data).model_fields[name].default]
    if data.glue and given:
        raise ConfigError(f"data.{given[0]}: data.glue={data.glue} sets it; leave it out")
    if data.label_range and (len(data.label_range) != 2 or data.label_range[0] >= data.label_range[1]):
        raise ConfigError("data.label_range: give the least and the largest value, as in [0, 5]")

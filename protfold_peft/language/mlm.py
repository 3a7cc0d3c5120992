"""Masked language modelling: a protein language model on own sequences, or an encoder of text on own text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForMaskedLM, TrainingArguments

from protfold_peft.errors import ConfigError, DataError, SequenceError
from protfold_peft.language.adapter import add_adapter, without_adapter
from protfold_peft.language.config import MlmConfig
from protfold_peft.language.records import Record, read_records
from protfold_peft.language.task import (
    PlainTrainer,
    Samples,
    Task,
    batches,
    make_arguments,
    token_losses,
    total_steps,
)
from protfold_peft.losses.masked_lm import mask_tokens
from protfold_peft.structure.fasta import AMINO_ACIDS, CHAIN_SEPARATOR, clean_sequence, is_fasta_name, read_fasta

# The validation samples are hidden in the same places in every run.
VALIDATION_SEED = 0
# A protein's alphabet is smaller than any vocabulary of text.
_LARGEST_ALPHABET = 100


class MaskedSamples(Dataset[dict[str, list[int]]]):
    """The samples of a run in its order: what is hidden in sample i depends on the seed and i alone.

    So a resumed run, and one on several processes, hides what one whole run does.

    Args:
        tokens: Of every sequence.
        candidates: True for the tokens that may be hidden.
        count: Number of samples; beyond the sequences they begin again, each time in another order.
        mask_token: Stands for a hidden one.
        replacements: Of which random tokens are drawn.
        fraction: Share of the candidates to choose.
        seed: Of order and hiding.
        shuffle: Whether the order is random.
    """

    def __init__(
        self,
        tokens: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[bool]],
        count: int,
        mask_token: int,
        replacements: torch.Tensor,
        *,
        fraction: float,
        seed: int,
        shuffle: bool,
    ) -> None:
        self.tokens = tokens
        self.candidates = candidates
        self.count = count
        self.mask_token = mask_token
        self.replacements = replacements
        self.fraction = fraction
        self.seed = seed
        self.shuffle = shuffle
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Tokens as shown, and as labels the chosen ones as they were, -100 elsewhere."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        which = self._permuted(index) if self.shuffle else index
        tokens, candidates = torch.tensor([self.tokens[which]]), torch.tensor([self.candidates[which]])
        seed = int(np.random.SeedSequence((self.seed, index)).generate_state(1)[0])
        masked = mask_tokens(
            tokens,
            candidates,
            self.mask_token,
            self.replacements,
            generator=torch.Generator().manual_seed(seed),
            fraction=self.fraction,
        )
        labels = tokens.masked_fill(~masked.chosen, -100)
        return {"input_ids": masked.tokens[0].tolist(), "labels": labels[0].tolist()}

    def _permuted(self, index: int) -> int:
        epoch, place = divmod(index, len(self.tokens))
        if self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.tokens)).tolist()
            self._order = epoch, order
        return self._order[1][place]


class PaddingCollator:
    """Pads on the right; `b` samples of up to `t` tokens."""

    def __init__(self, pad_token: int) -> None:
        self.pad_token = pad_token

    def __call__(self, samples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels`, each `(b, t)`."""
        longest = max(len(sample["input_ids"]) for sample in samples)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([sample[name] + [value] * (longest - len(sample[name])) for sample in samples])

        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        return {
            "input_ids": padded("input_ids", self.pad_token),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
            "labels": padded("labels", -100),
        }


class MaskedModelling(Task[MlmConfig]):
    """15 % of the tokens are hidden, and the model is asked which they were. See `losses.masked_lm`."""

    auto_class = AutoModelForMaskedLM

    def __init__(self, config: MlmConfig, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        if tokenizer.mask_token_id is None:
            raise ConfigError(f"{config.model.name} has no mask token: it is no masked language model")
        vocabulary = tokenizer.get_vocab()
        special = set(tokenizer.all_special_ids)
        protein = len(vocabulary) < _LARGEST_ALPHABET and all(letter in vocabulary for letter in AMINO_ACIDS)
        words = [vocabulary[letter] for letter in AMINO_ACIDS] if protein else sorted({*vocabulary.values()} - special)
        self.words = torch.tensor(words)

    def read(self, source: str | Sequence[str]) -> list[Record]:
        """Records with a `text`: FASTA chains, lines, or a column."""
        records: list[Record] = []
        data = self.config.data
        for each in [source] if isinstance(source, str) else source:
            if is_fasta_name(Path(each)):
                records += _fasta(each)[: data.limit]
            else:
                found = read_records(each, columns=data.columns, wanted=(data.text,), limit=data.limit)
                records += [Record({"text": record.text(data.text)}, record.place) for record in found]
        return records

    def samples(self, records: Sequence[Record], *, training: bool) -> Samples:
        """Hidden anew each time in training, always in the same places in validation."""
        words = set(self.words.tolist())
        tokens, candidates = [], []
        for record in records:
            found = self.tokenizer(record.text("text")).input_ids
            if not self.fits(record, len(found)):
                continue
            if len(found) > self.config.data.max_length:
                limit = self.config.data.max_length
                found = self.tokenizer(record["text"], truncation=True, max_length=limit).input_ids
            if not words & set(found):
                raise DataError(f"{record.place}: nothing in it that could be hidden; leave it out")
            tokens.append(found)
            candidates.append([token in words for token in found])
        if not tokens:
            raise DataError(f"{records[0].place}: no record is left (data.too_long=skip)")
        training_config = self.config.training
        return MaskedSamples(
            tokens,
            candidates,
            total_steps(training_config, len(tokens)) * training_config.batch_size if training else len(tokens),
            self.tokenizer.mask_token_id,
            self.words,
            fraction=self.config.data.mask_fraction,
            seed=training_config.seed if training else VALIDATION_SEED,
            shuffle=training,
        )

    def size(self, samples: Samples) -> int:
        """The number of sequences; the run's samples are many more."""
        return len(samples.tokens)

    def trainer(self, model: Any, arguments: dict[str, Any], train: Samples, validation: Samples | None) -> Any:
        """transformers' Trainer, over samples that are in the order of the run already."""
        adapted = add_adapter(model, self.config.adapter, self.task_type)
        return PlainTrainer(
            model=adapted,
            args=make_arguments(
                TrainingArguments, arguments, train_sampling_strategy="sequential", label_names=["labels"]
            ),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=PaddingCollator(self.tokenizer.pad_token_id),
        )

    @torch.no_grad()
    def score(self, trainer: Any, *, base: bool = False) -> dict[str, float]:
        """Mean surprise in nats, its exponential, and the share of right first guesses, over all hidden tokens."""
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        total, right, count = 0.0, 0, 0
        with without_adapter(model) if base else nullcontext(), trainer.accelerator.autocast():
            for batch in batches(trainer, trainer.eval_dataset):
                labels = batch.pop("labels")
                logits = model(**batch).logits
                total += token_losses(logits, labels).double().sum().item()
                right += int((logits.argmax(-1) == labels).sum())
                count += int((labels != -100).sum())
        return {"perplexity": float(np.exp(total / count)), "loss": total / count, "accuracy": right / count}


def _fasta(path: str) -> list[Record]:
    """One record for each chain of a FASTA file."""
    records = []
    for entry in read_fasta(path):
        place = f"{entry.source}: record {entry.position} ('{entry.header[:40]}', line {entry.line})"
        try:
            sequence, _ = clean_sequence(entry.sequence)
        except SequenceError as error:
            raise DataError(f"{place}: {error}; mend it, or leave it out") from error
        records += [Record({"text": chain}, place) for chain in sequence.split(CHAIN_SEPARATOR)]
    return records

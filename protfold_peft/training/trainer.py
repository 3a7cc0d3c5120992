"""transformers' Trainer with a structure loss, and checkpoints that survive being killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from protfold_peft import losses
from protfold_peft.adapters import adapter_param_groups
from protfold_peft.data import MODEL_INPUTS
from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.files import write_text
from protfold_peft.losses import masked_lm_loss
from protfold_peft.training import checkpoints, weights
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.made import made_batch
from protfold_peft.training.objective import structure_loss
from protfold_peft.training.terms import BASE_TERMS, MASKED_LM

TRAINED = "trained.safetensors"
MEAN = "mean.safetensors"
PROGRESS = "progress.json"

# Keep the draws of recycles apart from those of everything else.
_RECYCLES = 2**32 - 11
_DROPOUT = 2**32 - 12


class StructureTrainer(Trainer):
    """Trains whatever parameters of the model ask for gradients.

    Attributes:
        config: The run's configuration.
        mean: Their running mean, or None.
        bad_steps: Steps skipped for a gradient that was not finite.
        watched: What else a checkpoint keeps: name -> (its state as JSON, a function that takes it back).
    """

    # The loss is a mean over the batch: the Trainer is to divide it where batches are accumulated.
    loss_is_scaled_for_ga = False

    def __init__(self, config: FinetuneConfig, *, recycles: int, **kwargs: Any) -> None:
        self.config = config
        self.recycles = recycles
        self.mean: weights.RunningMean | None = None
        self.bad_steps = 0
        self.watched: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {}
        self._terms: dict[str, Tensor] = {}
        self._parts = 0
        self._weights = config.loss.weights()
        self._library: ModuleType = _library(config.loss.backend)
        super().__init__(**kwargs)
        if config.training.ema_decay:
            self.mean = weights.RunningMean(self.model, config.training.ema_decay)

    optimizer: Any  # the Trainer sets it

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's AdamW, with a learning rate for each kind of parameter."""
        if self.optimizer is None:
            training = self.config.training
            model = self.model if model is None else model
            rates = {"core_lr": training.core_learning_rate, "factor_lr": training.factor_learning_rate}
            groups = adapter_param_groups(model, training.learning_rate, weight_decay=training.weight_decay, **rates)
            if training.language_model_learning_rate is not None:
                groups = _language_model_apart(model, groups, training.language_model_learning_rate)
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer(groups, **options)
        return self.optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass, whose random numbers depend on the seed and the part's number alone."""
        seed = np.random.SeedSequence([self.config.training.seed, _DROPOUT, inputs["number"]])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **unused: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The weighted loss of one part from `data.collate_parts`."""
        folded = self._folds(inputs)
        weighted = self._weights if folded else {MASKED_LM: self._weights.get(MASKED_LM, 0.0)}
        arguments: dict[str, Any] = {key: inputs[key] for key in MODEL_INPUTS}
        arguments["recycles"] = self._recycles_of(inputs["step"])
        base = None
        if folded and any(weighted.get(name) for name in BASE_TERMS):
            with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
                base = model(**arguments)
        if weighted.get(MASKED_LM):
            arguments |= {"masked_ids": inputs["masked_ids"], "fold": folded}
        output = model(**arguments)
        further = {}
        if weighted.get(MASKED_LM):
            logits = output.masked_lm_logits.float()
            further[MASKED_LM] = masked_lm_loss(logits, output.masked_lm_tokens, inputs["masked_chosen"])
        loss = structure_loss(
            output,
            inputs,
            weighted,
            scale_by_length=self.config.loss.scale_by_length,
            base=base,
            library=self._library,
            further=further,
        )
        self._parts += 1
        for name, term in loss.terms.items():
            self._terms[name] = self._terms.get(name, term.new_zeros(())) + term * inputs["share"]
        total = loss.total * inputs["share"]
        if torch.is_grad_enabled() and not total.requires_grad:
            # Nothing that is trained is reached: the watch over dead adapters says so, better than the backward pass.
            total.requires_grad_()
        return (total, output) if return_outputs else total

    def trial(self, length: int, batch: int) -> None:
        """A forward and backward pass on made-up samples that leaves no trace, to see what it takes.

        Args:
            length: Residues of each.
            batch: Samples.
        """
        inputs: dict[str, Any] = made_batch(length, batch, self.args.device)
        if self._weights.get(MASKED_LM):
            inputs |= {"masked_ids": inputs["input_ids"], "masked_chosen": inputs["attention_mask"].bool()}
        before = self._terms, self._parts, self.recycles
        # More of the passes without gradients take time only.
        self.recycles = min(1, self.recycles)
        self.model.train()
        try:
            self.compute_loss(self.model, inputs | {"step": 0, "share": 1.0}).backward()  # type: ignore[union-attr]
        finally:
            self._terms, self._parts, self.recycles = before
            self.model.zero_grad(set_to_none=True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of every loss term since the last time."""
        if "loss" in logs and self._terms:
            names = sorted(self._terms)
            means = torch.stack([self._terms[name] for name in names]) / self._parts
            means = self.accelerator.reduce(means, reduction="mean")
            logs |= dict(zip(names, means.tolist()))
            logs["skipped_steps"] = self.bad_steps
            self._terms, self._parts = {}, 0
        super().log(logs, start_time)

    def result_in_place(self) -> Any:
        """A context in which the model has the weights that count: the running mean where one is kept."""
        return nullcontext() if self.mean is None else self.mean.in_place(self.model)

    def _folds(self, inputs: dict[str, Any]) -> bool:
        """Whether any structure is to be learnt from this batch."""
        return bool(inputs["atom_mask"].any()) and any(name != MASKED_LM for name in self._weights)

    def _recycles_of(self, step: int) -> int:
        if not self.config.training.sample_recycles:
            return self.recycles
        rng = np.random.default_rng([self.config.training.seed, _RECYCLES, step])
        return int(rng.integers(self.recycles + 1))

    # What follows overrides how the Trainer saves and loads: it would write the frozen weights too, and its newest
    # checkpoint may be half of one.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            assert output_dir is not None
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            own = weights.trained(self.model)
            values = own if state_dict is None else {name: state_dict[name] for name in own}
            weights.save(Path(output_dir) / TRAINED, values)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Transformers' checkpoint and what it does not know of; marked once it is whole."""
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                if self.mean is not None:
                    weights.save(folder / MEAN, self.mean.mean)
                kept = {name: state() for name, (state, _) in self.watched.items()}
                write_text(folder / PROGRESS, json.dumps({"bad_steps": self.bad_steps, **kept}) + "\n")
                checkpoints.mark_complete(folder)
                checkpoints.prune(folder.parent)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            last = checkpoints.newest(folder.parent)
            safe = f"{last.name} is whole" if last else "there is no earlier one"
            raise ProtfoldError(
                f"{folder}: the checkpoint cannot be written: {reason}; {safe}; free space and go on with --resume"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            weights.put_back(self.model, weights.read(folder / TRAINED), str(folder / TRAINED))
        if self.mean is not None:
            values = weights.read(folder / MEAN)
            self.mean.mean = {name: values[name].to(value.device) for name, value in self.mean.mean.items()}
        kept = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        self.bad_steps = kept["bad_steps"]
        for name, (_, take) in self.watched.items():
            take(kept[name])


def _language_model_apart(model: Any, groups: list[dict[str, Any]], rate: float) -> list[dict[str, Any]]:
    """The same groups, with ESM-2's own parameters in one of their own."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = {id(parameter) for parameter in base.esm.parameters()}
    apart = [p for group in groups if group["name"] == "other" for p in group["params"] if id(p) in own]
    if not apart:
        raise ConfigError("training.language_model_learning_rate: no weight of the language model is trained here")
    rest = [group | {"params": [p for p in group["params"] if id(p) not in own]} for group in groups]
    decay = groups[0]["weight_decay"]
    language_model = {"name": "language_model", "params": apart, "lr": rate, "weight_decay": decay}
    return [*(group for group in rest if group["params"]), language_model]


def _library(backend: str) -> ModuleType:
    if backend == "own":
        return losses
    from protfold_peft.losses import openfold

    return openfold

"""Direct preference optimisation by TRL's `DPOTrainer`. The reference is the base model: the adapter, disabled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional

from protfold_peft.adapters import load_fitting_adapter
from protfold_peft.adapters.named import FULL
from protfold_peft.language.adapter import make_config, without_adapter
from protfold_peft.language.config import DpoConfig, ModelConfig
from protfold_peft.language.models import load_model
from protfold_peft.language.records import Record, convert
from protfold_peft.language.sft import TextTask, trainable_in_fp32
from protfold_peft.language.task import FactorRates, Samples, batches, make_arguments
from protfold_peft.language.templates import preference_sample


class PreferenceOptimization(TextTask[DpoConfig]):
    """Makes chosen answers likelier than rejected ones, relative to the reference.

    Source: Rafailov et al., "Direct Preference Optimization", NeurIPS 2023, equation 7.
    """

    def samples(self, records: Sequence[Record], *, training: bool) -> Samples:
        """Prompts with two answers."""
        made = convert(records, lambda record: preference_sample(record, chat=self.chat))
        kept, origin = [], []
        for record, sample in zip(records, made, strict=True):
            if self.usable(record, sample["prompt"], sample["chosen"], sample["rejected"]):
                kept.append(sample)
                origin.append(record)
        return self.dataset(kept, origin or records)

    def trainer(self, model: Any, arguments: dict[str, Any], train: Samples, validation: Samples | None) -> Any:
        """TRL's. It is given the base model, so that it takes the disabled adapter as reference.

        An adapter to go on from is the reference itself: TRL keeps a frozen copy of it.
        """
        from trl import DPOConfig as TrlConfig
        from trl import DPOTrainer

        class Trainer(FactorRates, DPOTrainer):
            """TRL's, with a learning rate for each kind of factor."""

        adapter, training = self.config.adapter, self.config.training
        peft_config = None
        if adapter.start is not None:
            model = load_fitting_adapter(model, adapter.start, is_trainable=True)
        elif adapter.method == FULL:
            model.requires_grad_(True)
        else:
            peft_config = make_config(adapter, self.task_type, model)
        options = {
            "beta": training.beta,
            "loss_type": [training.loss],
            "label_smoothing": training.label_smoothing,
            "max_length": self.config.data.max_length,
        }
        return trainable_in_fp32(
            Trainer(
                model=model,
                args=make_arguments(TrlConfig, arguments, **options),
                train_dataset=train,
                eval_dataset=validation,
                processing_class=self.tokenizer,
                peft_config=peft_config,
            )
        )

    def restore_reference(self, trainer: Any, start: str | None, base: ModelConfig | None) -> None:
        """TRL has made a copy of what is trained the reference; it was the base model, or the adapter `start`."""
        if base is not None:
            device = trainer.args.device
            weights = load_model(base, self.auto_class, device).state_dict()
            trainer.accelerator.unwrap_model(trainer.ref_model).load_state_dict(weights)
        if "ref" in getattr(trainer.model, "peft_config", {}):
            trainer.model.delete_adapter("ref")
            if start is not None:
                load_fitting_adapter(trainer.model, start, adapter_name="ref")
                trainer.model.set_adapter("default")

    @torch.no_grad()
    def score(self, trainer: Any, *, base: bool = False) -> dict[str, float]:
        """How often, and by how much, the chosen answer is preferred.

        Returns:
            `reward_accuracy`: share of the pairs whose chosen answer gained more log probability over the reference
            than the rejected one, ties counted half (so 0.5 for the base model). `reward_margin`: `beta` times the
            mean of that difference, in nats. `likelihood_accuracy`: share of the pairs whose chosen answer is the
            likelier one. `loss`: of DPO.
        """
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        gains, likelihoods = [], []
        for batch in batches(trainer, trainer.eval_dataset):
            with without_adapter(model) if base else nullcontext(), trainer.accelerator.autocast():
                chosen, rejected = answer_log_probabilities(model, batch).chunk(2)
            with trainer.accelerator.autocast():
                reference = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch)
            likelihoods.append(chosen - rejected)
            gains.append(chosen - rejected - (reference[0] - reference[1]))
        gain, likelihood = torch.cat(gains).double(), torch.cat(likelihoods)
        # Rounding of two ways to the same sum is no preference.
        tied = gain.abs() < 1e-4
        beta = self.config.training.beta
        return {
            "reward_accuracy": torch.where(tied, 0.5, (gain > 0).double()).mean().item(),
            "reward_margin": (beta * gain).mean().item(),
            "likelihood_accuracy": (likelihood > 0).double().mean().item(),
            "loss": -functional.logsigmoid(beta * gain).mean().item(),
        }


def answer_log_probabilities(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log probability in nats of the completion of every row, `(b,)`.

    Args:
        model: A causal language model.
        batch: `input_ids`, `attention_mask` and `completion_mask`, each `(b, t)`.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    surprise = functional.cross_entropy(
        logits[:, :-1].float().movedim(-1, 1), batch["input_ids"][:, 1:], reduction="none"
    )
    return -(surprise * batch["completion_mask"][:, 1:]).sum(dim=-1)

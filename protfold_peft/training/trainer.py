"""transformers' Trainer with a structure loss."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from protfold_peft.adapters import adapter_param_groups
from protfold_peft.data import MODEL_INPUTS
from protfold_peft.errors import NonFiniteError
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.objective import structure_loss


class StructureTrainer(Trainer):
    """Trains whatever parameters of the model ask for gradients.

    Attributes:
        config: The run's configuration.
        last_terms: Every loss term of the last batch, for the log.
    """

    # The loss is a mean over the batch: the Trainer is to divide it where batches are accumulated.
    loss_is_scaled_for_ga = False

    def __init__(self, config: FinetuneConfig, **kwargs: Any) -> None:
        self.config = config
        self.last_terms: dict[str, float] = {}
        super().__init__(**kwargs)

    optimizer: Any  # the Trainer sets it

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's AdamW, with a learning rate for each kind of factor."""
        if self.optimizer is None:
            training = self.config.training
            groups = adapter_param_groups(
                self.model if model is None else model,
                training.learning_rate,
                core_lr=training.core_learning_rate,
                factor_lr=training.factor_learning_rate,
                weight_decay=training.weight_decay,
            )
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer(groups, **options)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **unused: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The weighted structure loss of one batch from `data.collate_crops`.

        Raises:
            NonFiniteError: The loss is NaN or infinite.
        """
        loss_config = self.config.loss
        output = model(**{key: inputs[key] for key in MODEL_INPUTS}, recycles=self.config.model.recycles)
        loss = structure_loss(output, inputs, loss_config.weights(), scale_by_length=loss_config.scale_by_length)
        self.last_terms.update({name: term.item() for name, term in loss.terms.items()})
        if not torch.isfinite(loss.total):
            values = ", ".join(f"{name} {value:g}" for name, value in self.last_terms.items())
            raise NonFiniteError(
                f"the loss of step {self.state.global_step + 1} is not finite ({values}): lower "
                "training.learning_rate, or use model.dtype=fp32; no adapter was saved"
            )
        return (loss.total, output) if return_outputs else loss.total

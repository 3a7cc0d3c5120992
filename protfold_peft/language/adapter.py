"""The adapter of a language model: added, or taken away for a while; and what is trained, by learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from protfold_peft.adapters import TensorAdapterModel, adapter_param_groups, load_fitting_adapter
from protfold_peft.adapters.named import FULL, named_config
from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.language.config import AdapterConfig, TrainingConfig


def make_config(config: AdapterConfig, task_type: str | None, model: nn.Module | None = None) -> PeftConfig:
    """The PEFT configuration that a run asks for, as `named_config` makes it.

    Raises:
        ConfigError: The method is not known, or does not have a key that is given.
    """
    return named_config(**config.model_dump(exclude={"start"}), task_type=task_type, model=model)


def add_adapter(model: nn.Module, config: AdapterConfig, task_type: str | None) -> nn.Module:
    """The model with the adapter, the only part that is trained; with method `full` the model itself, all trained.

    Raises:
        ConfigError: As `make_config`, or the method does not fit the model.
        CheckpointError: `adapter.start` cannot be loaded.
    """
    if config.start is not None:
        return load_fitting_adapter(model, config.start, is_trainable=True)
    if config.method == FULL:
        return model.requires_grad_(True)
    settings = make_config(config, task_type, model)
    try:
        return get_peft_model(model, settings)
    except ProtfoldError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"adapter: {config.method} does not fit this model: {reason}") from error


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base model within; of a model that is trained in full there is none, and nothing changes."""
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield
    else:
        yield


def param_groups(model: nn.Module, training: TrainingConfig) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, each kind of factor with its learning rate.

    Raises:
        ConfigError: A learning rate is given for parameters that the model does not have.
    """
    own = {
        "core_lr": training.core_learning_rate,
        "factor_lr": training.factor_learning_rate,
        "vector_lr": training.vector_learning_rate,
    }
    if any(isinstance(module, TensorAdapterModel) for module in model.modules()):
        head = training.head_learning_rate
        return adapter_param_groups(
            model, training.learning_rate, other_lr=head, weight_decay=training.weight_decay, **own
        )
    if any(rate is not None for rate in own.values()):
        raise ConfigError("learning rates of cores, factors and vectors are for tensor adapters; set learning_rate")
    in_full = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        for parameter in module.parameters()
    }
    members: dict[str, list[nn.Parameter]] = {"adapter": [], "head": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members["head" if id(parameter) in in_full else "adapter"].append(parameter)
    rates = {"adapter": training.learning_rate, "head": training.head_learning_rate or training.learning_rate}
    if training.head_learning_rate is not None and not members["head"]:
        raise ConfigError("training.head_learning_rate is given, but no module is trained in full beside the adapter")
    return [
        {"name": name, "params": group, "lr": rates[name], "weight_decay": training.weight_decay}
        for name, group in members.items()
        if group
    ]

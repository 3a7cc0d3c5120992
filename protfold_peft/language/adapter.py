"""An adapter of any PEFT method by its name, and the parameters that are trained, by learning rate.

What a method calls its rank, its scale and its dropout is read off the fields of its configuration, so that every
method of PEFT, present or future, can be named here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from protfold_peft.adapters import METHODS, TensorAdapterModel, adapter_param_groups, load_fitting_adapter
from protfold_peft.adapters.architectures import architecture_of
from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.language.config import AdapterConfig, TrainingConfig

FULL = "full"
# Names under which people know a setting of another method.
_VARIANTS: dict[str, tuple[type[PeftConfig], dict[str, Any]]] = {
    "peft_lora": (LoraConfig, {}),
    "dora": (LoraConfig, {"use_dora": True}),
    "rslora": (LoraConfig, {"use_rslora": True}),
}


def method_names() -> list[str]:
    """Every name that `adapter.method` takes: ours, PEFT's and `full`."""
    own = {getattr(kind, "value", str(kind)).lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - {"tensor_network"}
    return list(dict.fromkeys([*METHODS, *_VARIANTS, *sorted(own - {*METHODS}), FULL]))


def make_config(config: AdapterConfig, task_type: str | None, model: nn.Module | None = None) -> PeftConfig:
    """The PEFT configuration of a method.

    Args:
        config: What to make.
        task_type: PEFT's name of the task.
        model: Whose attention projections are the targets where none are given: of PEFT's own methods too, which know
            fewer models, and of some of those other modules.

    Raises:
        ConfigError: The method is not known, or does not have a key that is given.
    """
    kind, options = _find(config.method)
    known = {field.name for field in fields(kind)}
    if clash := sorted({"task_type", "target_modules", "modules_to_save"} & set(config.options)):
        raise ConfigError(f"adapter.options.{clash[0]}: it is set elsewhere in the configuration")
    for name in config.options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"adapter.options.{name}: {config.method} has no such key{hint}")
    options = {**options, **config.options, "task_type": task_type}
    _put(options, known, "rank", config.rank, ("r", "rank"), config.method)
    alpha = _name(known, ("alpha", "lora_alpha"), "_alpha")
    if alpha is not None and alpha not in config.options:
        options[alpha] = config.alpha or float(config.rank or 1)
        if kind not in METHODS.values() and float(options[alpha]).is_integer():
            options[alpha] = int(options[alpha])
    elif config.alpha is not None:
        raise ConfigError(f"adapter.alpha: {config.method} has none; its scale may be among adapter.options")
    if config.init is not None:
        _put(options, known, "init", config.init, ("init", "init_weights"), config.method)
    if config.dropout:
        dropout = _name(known, ("dropout",), "_dropout")
        if dropout is None:
            raise ConfigError(f"adapter.dropout: {config.method} has none; set it to 0")
        options[dropout] = config.dropout
    for name in ("target_modules", "modules_to_save"):
        value = getattr(config, name)
        if value is not None:
            _put(options, known, name, value, (name,), config.method)
    architecture = architecture_of(model) if kind not in METHODS.values() else None
    if architecture is not None and config.target_modules is None and "target_modules" in known:
        options["target_modules"] = list(architecture.default_targets)
    try:
        return kind(**options)
    except ProtfoldError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"adapter: {config.method} refuses this configuration: {error}") from error


def _find(method: str) -> tuple[type[PeftConfig], dict[str, Any]]:
    if method in METHODS:
        return METHODS[method], {}
    if method in _VARIANTS:
        return _VARIANTS[method]
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if getattr(kind, "value", str(kind)).lower() == method.lower():
            return config, {}
    near = difflib.get_close_matches(method, method_names(), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(f"adapter.method='{method}' is not known; {hint}known: {', '.join(method_names())}")


def _name(known: set[str], exact: tuple[str, ...], ending: str) -> str | None:
    """The field that is called one of `exact`, or the only one with this ending."""
    named = [name for name in exact if name in known] or [name for name in known if name.endswith(ending)]
    return named[0] if len(named) == 1 else None


def _put(options: dict[str, Any], known: set[str], key: str, value: Any, names: tuple[str, ...], method: str) -> None:
    name = next((name for name in names if name in known), None)
    if name is not None and value is not None:
        options.setdefault(name, value)
    elif value is not None:
        raise ConfigError(f"adapter.{key}: {method} has no such setting; set it to null")


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

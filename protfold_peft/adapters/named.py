"""The PEFT configuration of a method by its name: ours, or any of PEFT's.

What a method calls its rank, its scale and its dropout is read off the fields of its configuration, so that every
method of PEFT, present or future, can be named here. Errors speak of the keys of `adapter` in a run's configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from protfold_peft.adapters.architectures import architecture_of
from protfold_peft.adapters.methods import METHODS
from protfold_peft.errors import ConfigError, ProtfoldError, did_you_mean

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


def named_config(
    method: str,
    *,
    rank: int | None,
    alpha: float | None = None,
    init: str | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] | str | None = None,
    modules_to_save: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    task_type: str | None = None,
    model: nn.Module | None = None,
) -> PeftConfig:
    """The PEFT configuration of a method.

    Args:
        method: One of `method_names()` but `full`.
        rank: None where the method has none.
        alpha: The update is scaled by `alpha / rank`; None takes `rank`, and is for methods without one too.
        init: How the factors start; None: the method's default.
        dropout: Probability of dropping an input of the update.
        target_modules: Ends of module paths, or a regular expression.
        modules_to_save: Modules to train in full and to save with the adapter.
        options: Further keys of the method's configuration.
        task_type: PEFT's name of the task.
        model: Whose attention projections are the targets where none are given: of PEFT's own methods too, which know
            fewer models, and of some of those other modules.

    Raises:
        ConfigError: The method is not known, or does not have a key that is given.
    """
    given = dict(options or {})
    kind, fixed = _find(method)
    known = {field.name for field in fields(kind)}
    if clash := sorted({"task_type", "target_modules", "modules_to_save"} & set(given)):
        raise ConfigError(f"adapter.options.{clash[0]}: it is set elsewhere in the configuration")
    for name in given:
        if name not in known:
            raise ConfigError(
                f"adapter.options.{name}: {method} has no such key; {did_you_mean(name, known)}".rstrip("; ")
            )
    keys = {**fixed, **given, "task_type": task_type}
    _put(keys, known, "rank", rank, ("r", "rank"), method)
    alpha_key = _name(known, ("alpha", "lora_alpha"), "_alpha")
    if alpha_key is not None and alpha_key not in given:
        keys[alpha_key] = alpha or float(rank or 1)
        if kind not in METHODS.values() and float(keys[alpha_key]).is_integer():
            keys[alpha_key] = int(keys[alpha_key])
    elif alpha is not None:
        raise ConfigError(f"adapter.alpha: {method} has none; its scale may be among adapter.options")
    if init is not None:
        _put(keys, known, "init", init, ("init", "init_weights"), method)
    if dropout:
        dropout_key = _name(known, ("dropout",), "_dropout")
        if dropout_key is None:
            raise ConfigError(f"adapter.dropout: {method} has none; set it to 0")
        keys[dropout_key] = dropout
    for name, modules in (("target_modules", target_modules), ("modules_to_save", modules_to_save)):
        if modules is not None:
            _put(keys, known, name, modules if isinstance(modules, str) else list(modules), (name,), method)
    architecture = architecture_of(model) if kind not in METHODS.values() else None
    if architecture is not None and target_modules is None and "target_modules" in known:
        keys["target_modules"] = list(architecture.default_targets)
    try:
        return kind(**keys)
    except ProtfoldError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"adapter: {method} refuses this configuration: {error}") from error


def _find(method: str) -> tuple[type[PeftConfig], dict[str, Any]]:
    if method in METHODS:
        return METHODS[method], {}
    if method in _VARIANTS:
        return _VARIANTS[method]
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if getattr(kind, "value", str(kind)).lower() == method.lower():
            return config, {}
    known = method_names()
    raise ConfigError(f"adapter.method='{method}' is not known; {did_you_mean(method, known)}known: {', '.join(known)}")


def _name(known: set[str], exact: tuple[str, ...], ending: str) -> str | None:
    """The field that is called one of `exact`, or the only one with this ending."""
    named = [name for name in exact if name in known] or [name for name in known if name.endswith(ending)]
    return named[0] if len(named) == 1 else None


def _put(keys: dict[str, Any], known: set[str], key: str, value: Any, names: tuple[str, ...], method: str) -> None:
    """Set the field that is one of `names`, unless it is set already."""
    name = next((name for name in names if name in known), None)
    if name is not None and value is not None:
        keys.setdefault(name, value)
    elif value is not None:
        raise ConfigError(f"adapter.{key}: {method} has no such setting; set it to null")

"""Weighted sums of adapters, defined on their updates `dW`.

Averaging factors is something else: the average of two products is not the product of the averages. A sum of CP,
Tucker or Tensor-Train updates is again one of that kind, with the ranks side by side, and `add_weighted_adapter` makes
it exactly. A sum of TeRA updates is not: there, and for adapters of different kinds, `set_adapter_weights` keeps
several adapters active and counts each by its weight.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from protfold_peft.adapters.config import TensorAdapterConfig
from protfold_peft.adapters.layer import TensorLinear
from protfold_peft.adapters.networks import NETWORKS
from protfold_peft.errors import ConfigError

if TYPE_CHECKING:
    from protfold_peft.adapters.model import TensorAdapterModel


def add_weighted_adapter(
    model: TensorAdapterModel, adapters: Sequence[str], weights: Sequence[float], adapter_name: str
) -> None:
    """Add the adapter `adapter_name` with `dW = sum_i weights[i] dW_i`, exactly; `(1 - t, t)` interpolates.

    Its rank is the sum of the ranks. It is not activated. Modules that an adapter trains in full are not combined.

    Raises:
        ConfigError: The adapters are of different networks, sites or head layouts, the network has no exact sum, or a
            name or number is wrong.
    """
    if not adapters or len(adapters) != len(weights):
        raise ConfigError(f"{len(adapters)} adapters and {len(weights)} weights were given; give one weight for each")
    _check(model, dict(zip(adapters, weights, strict=True)))
    if adapter_name in model.peft_config:
        raise ConfigError(f"there is an adapter '{adapter_name}' already; choose another name or delete it")
    configs = [model.peft_config[name] for name in adapters]
    check_alike(adapters, configs)
    networks = [model.networks(name) for name in adapters]
    combined = {
        group: NETWORKS[configs[0].network].combine(
            [each[group] for each in networks], weights, networks[0][group].sites
        )
        for group in networks[0]
    }
    model.peft_config[adapter_name] = combined_config(configs, {g: n.ranks() for g, n in combined.items()})
    try:
        model.inject_adapter(model.model, adapter_name)
    except Exception:
        model.peft_config.pop(adapter_name, None)
        raise
    with torch.no_grad():
        for group, network in model.networks(adapter_name).items():
            for factor, value in zip(network.parameters(), combined[group].parameters(), strict=True):
                factor.copy_(value)


def set_adapter_weights(model: TensorAdapterModel, weights: Mapping[str, float]) -> None:
    """Activate the named adapters, of any networks, with `dW = sum_i weights[i] dW_i`.

    The weights hold until adapters are next activated or added; they are not saved.

    Raises:
        ConfigError: There is no such adapter, or a weight is not a finite number.
    """
    _check(model, weights)
    model.set_adapter(list(weights))
    for layer in model.model.modules():
        if isinstance(layer, TensorLinear):
            layer.tensor_weights = {
                name: float(weight) for name, weight in weights.items() if name in layer.tensor_factors and weight != 1
            }


def _check(model: TensorAdapterModel, weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if name not in model.tensor_factors:
            raise ConfigError(f"there is no adapter '{name}'; there are {', '.join(model.tensor_factors)}")
        if not math.isfinite(weight):
            raise ConfigError(f"the weight of adapter '{name}' is {weight}; give a finite number")


def check_alike(names: Sequence[str], configs: Sequence[TensorAdapterConfig]) -> None:
    """See that adapters of these names and configs have a common tensor.

    Raises:
        ConfigError: They are of different networks, sites or head layouts.
    """
    first = configs[0]
    for name, config in zip(names, configs, strict=True):
        differs = None
        if config.network != first.network:
            differs = f"is of network '{config.network}', '{names[0]}' of '{first.network}'"
        elif _structure(config) != _structure(first):
            differs = f"changes other modules than '{names[0]}', or shares their factors in another way"
        if differs is not None:
            raise ConfigError(
                f"adapter '{name}' {differs}: they have no common tensor; activate them together with "
                "set_adapter_weights, or merge one after the other"
            )


def _structure(config: TensorAdapterConfig) -> Any:
    """What must agree between adapters that are added up."""
    return config.sites, getattr(config, "variant", None), getattr(config, "heads", None)


def combined_config(
    configs: Sequence[TensorAdapterConfig], ranks: Mapping[str, Mapping[str, int]]
) -> TensorAdapterConfig:
    """The config of the sum: the first one's, with the summed ranks and a scale of 1."""
    layout = copy.deepcopy(configs[0].layout) or {}
    rank = sum(config.r for config in configs)
    changes: dict[str, Any] = {"r": rank, "layout": layout, "modules_to_save": None}
    if hasattr(configs[0], "alpha"):
        changes |= {"alpha": float(rank), "use_rslora": False}
    else:
        for group, own in ranks.items():
            layout["groups"][group]["settings"] = {"ranks": dict(own)}
        changes |= {"scale": 1.0, "ranks": None, "budget": None, "match_lora_rank": None}
    return dataclasses.replace(configs[0], **changes)

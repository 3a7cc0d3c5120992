"""The weighted sum of saved adapters as a saved adapter, made from their folders without the base model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from protfold_peft.adapters.cards import adapter_card, method_name
from protfold_peft.adapters.combine import check_alike, combined_config
from protfold_peft.adapters.folders.saved import (
    SavedAdapter,
    adapter_tensors,
    check_output,
    new_folder,
    read_adapter,
    write_adapter,
)
from protfold_peft.adapters.networks import NETWORKS, RandomTuckerNetwork, TensorNetwork
from protfold_peft.errors import ConfigError


@dataclass(frozen=True)
class CombineReport:
    """What was written: its rank and parameters, and the bases that the adapters were made for, if they differ."""

    rank: int
    parameters: int
    bases: tuple[str, ...]


@torch.no_grad()
def combine_folders(
    out: str | os.PathLike[str],
    adapters: Sequence[tuple[str | os.PathLike[str], float]],
    *,
    drop_modules: bool = False,
    overwrite: bool = False,
) -> CombineReport:
    """Write the adapter with `dW = sum_i weight_i dW_i`, exactly; its rank is the sum of the ranks.

    Modules that were trained in full have no sum: they are kept where all adapters that have them agree.

    Args:
        out: Where it goes.
        adapters: Folders and weights.
        drop_modules: Leave modules that were trained in full out.
        overwrite: Replace the adapter in `out`.

    Raises:
        ConfigError: `out` is not free, a weight is no finite number, or the adapters have no common tensor.
        CheckpointError: A folder is no sound tensor adapter.
    """
    out = Path(out)
    folders = tuple(Path(folder) for folder, _ in adapters)
    weights = [float(weight) for _, weight in adapters]
    if not adapters:
        raise ConfigError("no adapter was given; name at least one")
    for folder, weight in zip(folders, weights, strict=True):
        if not math.isfinite(weight):
            raise ConfigError(f"the weight of {folder} is {weight}; give a finite number")
    check_output(out, inputs=folders, overwrite=overwrite)
    read = [read_adapter(folder) for folder in folders]
    configs = [adapter.config for adapter in read]
    names = [str(folder) for folder in folders]
    check_alike(names, configs)
    kind = NETWORKS[configs[0].network]
    if kind is RandomTuckerNetwork:
        raise ConfigError(
            "a sum of TeRA updates is no TeRA update; convert the adapters with to-lora, or activate them together "
            "with set_adapter_weights"
        )
    modules = {} if drop_modules else _common_modules(names, read)
    dtype = next(iter(read[0].networks.values())).dtype
    networks: dict[str, TensorNetwork] = {}
    for group, first in read[0].networks.items():
        parts = [adapter.networks[group].double() for adapter in read]
        networks[group] = kind.combine(parts, weights, first.sites).to(dtype)
    config = combined_config(configs, {group: network.ranks() for group, network in networks.items()})
    if modules:
        config.modules_to_save = next(c.modules_to_save for c in configs if c.modules_to_save)
    parameters = sum(factor.numel() for network in networks.values() for factor in network.parameters())
    terms = " + ".join(f"{weight:g} x {name}" for name, weight in zip(names, weights, strict=True))
    text = [f"The weighted sum of {method_name(config.network)} adapters, exactly: {terms}."]
    with new_folder(out, inputs=folders, overwrite=overwrite) as temporary:
        card = adapter_card(config, text, parameters)
        write_adapter(temporary, config, adapter_tensors(networks, modules), card)
    bases = dict.fromkeys(c.base_model_name_or_path for c in configs if c.base_model_name_or_path)
    return CombineReport(config.r, parameters, tuple(bases))


def _common_modules(names: Sequence[str], read: Sequence[SavedAdapter]) -> dict[str, Tensor]:
    having = [(name, adapter.modules) for name, adapter in zip(names, read, strict=True) if adapter.modules]
    if not having:
        return {}
    first_name, first = having[0]
    for name, modules in having[1:]:
        same = modules.keys() == first.keys() and all(torch.equal(first[key], modules[key]) for key in first)
        if not same:
            raise ConfigError(
                f"{first_name} and {name} hold modules that were trained in full, with different weights, which have "
                "no sum; leave them out with --drop-modules"
            )
    return first

"""The tensor networks by name. A new network is one file here and one line in `NETWORKS`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from protfold_peft.adapters.networks.base import LowRankNetwork, TensorNetwork
from protfold_peft.adapters.networks.cp import CPNetwork
from protfold_peft.adapters.networks.lora import LoRANetwork
from protfold_peft.adapters.networks.random_tucker import RandomTuckerNetwork
from protfold_peft.adapters.networks.tensor_train import TensorTrainNetwork
from protfold_peft.adapters.networks.tucker import TuckerNetwork
from protfold_peft.adapters.networks.tucker2 import Tucker2Network
from protfold_peft.adapters.sites import Site

NETWORKS: dict[str, type[TensorNetwork]] = {
    "cp": CPNetwork,
    "tucker2": Tucker2Network,
    "tucker": TuckerNetwork,
    "random_tucker": RandomTuckerNetwork,
    "tensor_train": TensorTrainNetwork,
    "lora": LoRANetwork,
}

__all__ = [
    "NETWORKS",
    "CPNetwork",
    "LoRANetwork",
    "LowRankNetwork",
    "RandomTuckerNetwork",
    "TensorNetwork",
    "TensorTrainNetwork",
    "Tucker2Network",
    "TuckerNetwork",
    "build_networks",
    "by_group",
]


def by_group(sites: Iterable[Site]) -> dict[str, list[Site]]:
    """The sites of every group, in their order."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.group, []).append(site)
    return groups


def build_networks(
    name: str,
    sites: Iterable[Site],
    options: Mapping[str, Any],
    group_options: Mapping[str, Mapping[str, Any]] | None = None,
) -> nn.ModuleDict:
    """Make the factors of one adapter: a network of kind `name` for each group of sites, keyed by the group's name.

    The factors are allocated, not drawn.

    Args:
        name: A key of `NETWORKS`.
        sites: Of all groups.
        options: Of the network's constructor, the same for all groups.
        group_options: Further ones by group, as the network's `plan` made them.
    """
    planned: Mapping[str, Mapping[str, Any]] = group_options or {}
    networks: dict[str, nn.Module] = {}
    for group, members in by_group(sites).items():
        own: Sequence[Site] = members
        networks[group] = NETWORKS[name](own, **options, **planned.get(group, {}))
    return nn.ModuleDict(networks)

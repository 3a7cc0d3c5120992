"""The tensor networks by name. A new network is one file here and one line in `NETWORKS`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from protfold_peft.adapters.networks.base import TensorNetwork
from protfold_peft.adapters.networks.cp import CPNetwork
from protfold_peft.adapters.sites import Site

NETWORKS: dict[str, type[TensorNetwork]] = {
    "cp": CPNetwork,
}

__all__ = ["NETWORKS", "CPNetwork", "TensorNetwork", "build_networks"]


def build_networks(name: str, sites: Iterable[Site], options: Mapping[str, Any]) -> nn.ModuleDict:
    """Make the factors of one adapter: a network of kind `name` for each group of sites, keyed by the group's name.

    The factors are allocated, not drawn.
    """
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.group, []).append(site)
    return nn.ModuleDict({group: NETWORKS[name](members, **options) for group, members in groups.items()})

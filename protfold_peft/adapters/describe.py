"""What an adapter consists of: its groups, their modes and factors, and its share of the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from protfold_peft.adapters.config import TensorAdapterConfig
from protfold_peft.adapters.model import TensorAdapterModel
from protfold_peft.adapters.networks import TensorNetwork
from protfold_peft.errors import ConfigError


@dataclass(frozen=True)
class GroupDescription:
    """Sites that share factors.

    Attributes:
        name: Of the group.
        sites: Module path of each.
        layers: How many layers have one.
        kinds: Their roles.
        modes: Length of each axis of their common tensor.
        ranks: Rank of each axis, or one `rank`.
        factors: Shape of each stored factor.
        parameters: Of all factors.
    """

    name: str
    sites: tuple[str, ...]
    layers: int
    kinds: tuple[str, ...]
    modes: dict[str, int]
    ranks: dict[str, int]
    factors: dict[str, tuple[int, ...]]
    parameters: int


@dataclass(frozen=True)
class AdapterDescription:
    """One adapter of a model.

    `parameters` counts its factors, `saved_in_full` the modules trained beside them, `model_parameters` the model
    without any adapter, and `share` is `parameters / model_parameters`.
    """

    name: str
    network: str
    rank: int
    scale: float
    init: str
    active: bool
    groups: tuple[GroupDescription, ...]
    parameters: int
    saved_in_full: tuple[str, ...]
    model_parameters: int

    @property
    def share(self) -> float:
        """Parameters as a share of the model's."""
        return self.parameters / self.model_parameters


def describe_group(name: str, network: TensorNetwork) -> GroupDescription:
    """Describe the sites of one network, the group `name` of an adapter; its factors may be on the meta device."""
    return GroupDescription(
        name=name,
        sites=tuple(site.path for site in network.sites),
        layers=len({site.layer for site in network.sites}),
        kinds=tuple(dict.fromkeys(site.kind for site in network.sites)),
        modes=network.modes(),
        ranks=network.ranks(),
        factors={factor: tuple(tensor.shape) for factor, tensor in network.named_parameters()},
        parameters=sum(tensor.numel() for tensor in network.parameters()),
    )


def describe_adapters(model: nn.Module) -> tuple[AdapterDescription, ...]:
    """Describe every tensor adapter of `model`, in the order in which they were added.

    Raises:
        ConfigError: The model has no tensor adapters.
    """
    tuner = next((module for module in model.modules() if isinstance(module, TensorAdapterModel)), None)
    if tuner is None:
        raise ConfigError("the model has no tensor adapters; add one with get_peft_model, or load one")
    owned = {id(factor) for factor in tuner.tensor_factors.parameters()}
    copies = {id(factor) for name, factor in tuner.model.named_parameters() if ".modules_to_save." in name}
    everything = sum(factor.numel() for factor in tuner.parameters() if id(factor) not in owned | copies)
    return tuple(_describe(tuner, name, everything) for name in tuner.tensor_factors)


def _describe(tuner: TensorAdapterModel, name: str, model_parameters: int) -> AdapterDescription:
    config: TensorAdapterConfig = tuner.peft_config[name]
    groups = tuple(describe_group(group, network) for group, network in tuner.networks(name).items())
    return AdapterDescription(
        name=name,
        network=config.network,
        rank=config.r,
        scale=config.scaling,
        init=config.init,
        active=name in tuner.active_adapters,
        groups=groups,
        parameters=sum(group.parameters for group in groups),
        saved_in_full=tuple(config.modules_to_save or ()),
        model_parameters=model_parameters,
    )

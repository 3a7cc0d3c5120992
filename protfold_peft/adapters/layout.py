"""An adapter's layout: which module is which row and column of the shared tensor, as it is stored in its config.

A new adapter resolves its layout from the target modules. A loaded one keeps the layout it was saved with, after a
check that the model still fits it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from protfold_peft.adapters.config import TensorAdapterConfig
from protfold_peft.adapters.networks import NETWORKS
from protfold_peft.adapters.sites import assign, check_fit, find_maps, select
from protfold_peft.errors import CheckpointError, ConfigError


def settle_layout(config: TensorAdapterConfig, model: nn.Module) -> dict[str, Any]:
    """The layout of this adapter on this model, stored or resolved.

    Raises:
        ConfigError: The model's architecture or a target module is not known, or the target modules were changed
            after the layout was stored.
        CheckpointError: The stored layout is damaged or of another model.
    """
    if config.layout is None or not config.layout_is_stored:
        return _resolve(config, model)
    if config.layout.get("target_modules") != config.target_modules:
        raise ConfigError(
            f"target_modules={config.target_modules} is not what the stored layout was made from "
            f"({config.layout.get('target_modules')}); set layout=None to make a new one"
        )
    layers = config.layout.get("layers")
    if type(layers) is not int:
        raise CheckpointError("the adapter's layout does not say how many layers its model has; save it again")
    check_fit(model, config.sites, layers)
    return config.layout


def _resolve(config: TensorAdapterConfig, model: nn.Module) -> dict[str, Any]:
    architecture, maps = find_maps(model)
    targets = config.target_modules
    if targets is None:
        targets = list(architecture.default_targets)
    elif isinstance(targets, str) and targets.lower() == "all-linear":
        # PEFT would write every linear layer of the whole model in its place.
        targets = [projection.path for projection in architecture.projections]
    sites = assign(select(model, targets, config.modules_to_save or ()), NETWORKS[config.network].group_of)
    return {
        "architecture": architecture.name,
        "layers": len({linear.layer for linear in maps}),
        "target_modules": targets,
        "sites": {site.path: site.to_json() for site in sites},
    }

"""An adapter's layout: which module is which row and column of the shared tensor, as it is stored in its config.

A new adapter resolves its layout from the target modules. A loaded one keeps the layout it was saved with, after a
check that the model still fits it.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from torch import nn

from protfold_peft.adapters.config import HEAD_LAYOUTS, TensorAdapterConfig
from protfold_peft.adapters.discovery import ALL_LINEAR, check_fit, default_targets, select
from protfold_peft.adapters.linear_maps import find_maps, n_layers
from protfold_peft.adapters.networks import NETWORKS, by_group
from protfold_peft.adapters.site_table import VERSION, pack
from protfold_peft.adapters.sites import LinearMap, assign
from protfold_peft.errors import CheckpointError, ConfigError

# Checksums of frozen tensors by group; they join the layout when these are drawn.
FROZEN = "frozen_sha256"
# What tells one base model from another of its type.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


def settle_layout(config: TensorAdapterConfig, model: nn.Module) -> dict[str, Any]:
    """The layout of this adapter on this model, stored or resolved. Warns if a stored one is of another base model.

    Raises:
        ConfigError: A target module is not known, or the target modules were changed after the layout was stored.
        CheckpointError: The stored layout is damaged, of another version, or does not fit the model.
    """
    if config.layout is None or not config.layout_is_stored:
        return _resolve(config, model)
    layout = config.layout
    sites = config.sites
    if layout.get("target_modules") != config.target_modules:
        raise ConfigError(
            f"target_modules={config.target_modules} is not what the stored layout was made from "
            f"({layout.get('target_modules')}); set layout=None to make a new one"
        )
    layers = layout.get("layers")
    if type(layers) is not int:
        raise CheckpointError("the adapter's layout does not say how many layers its model has; save it again")
    check_fit(model, sites, layers)
    if difference := _difference(layout.get("base"), base_identity(model)):
        warnings.warn(f"the adapter was made for another base model: {difference}", stacklevel=2)
    return layout


def _resolve(config: TensorAdapterConfig, model: nn.Module) -> dict[str, Any]:
    """A new layout from the target modules, with groups and their settings."""
    architecture, maps = find_maps(model)
    chosen = select(model, config.targets, config.modules_to_save or ())
    targets = config.target_modules
    if targets is None:
        targets = default_targets(model, architecture)
    elif isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        # PEFT would write every linear layer of the whole model in its place.
        known = [p.path for stack in architecture.stacks for p in stack.projections] if architecture else []
        targets = list(dict.fromkeys(known)) or sorted(linear.path for linear in chosen)
    network, options = NETWORKS[config.network], config.network_options()
    laid_out = [_with_heads(linear, config.head_layout) for linear in chosen]
    sites = assign(laid_out, lambda linear: network.group_of(linear, options))
    table = pack(sites)
    for group, settings in network.plan(by_group(sites), config.plan_options()).items():
        table[group]["settings"] = settings
    return {
        "version": VERSION,
        "architecture": architecture.name if architecture is not None else None,
        "base": base_identity(model),
        "layers": n_layers(maps),
        "target_modules": targets,
        "groups": table,
    }


def _with_heads(linear: LinearMap, head_layout: str) -> LinearMap:
    """The map with its heads laid out as the authors of a method have them."""
    axis, interleaved = HEAD_LAYOUTS[head_layout]
    if linear.heads is None or head_layout == "consistent":
        return linear
    if axis is not None and (linear.d_out != linear.d_in or linear.heads.count * linear.heads.width != linear.d_in):
        raise ConfigError(
            f"head_layout='{head_layout}' needs square matrices, and '{linear.key}' is {linear.d_out} x {linear.d_in}; "
            "use 'consistent'"
        )
    return replace(linear, heads=replace(linear.heads, axis=axis or linear.heads.axis, interleaved=interleaved))


def base_identity(model: nn.Module) -> dict[str, Any]:
    """Type, name and sizes of the model under an adapter, as far as its config has them."""
    config = getattr(model, "config", None)
    identity: dict[str, Any] = {"type": getattr(config, "model_type", None) or type(model).__name__}
    if name := getattr(config, "_name_or_path", None):
        identity["name"] = PurePath(name).name
    sizes = {size: getattr(config, size, None) for size in _SIZES}
    return identity | {size: value for size, value in sizes.items() if isinstance(value, int)}


def _difference(stored: Any, found: dict[str, Any]) -> str | None:
    if not isinstance(stored, dict):
        return None
    differences = [
        f"{key} was {stored[key]}, here it is {found[key]}"
        for key in stored
        if key in found and stored[key] != found[key]
    ]
    return "; ".join(differences) or None

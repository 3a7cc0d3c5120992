"""A tensor adapter whose updates come near to those of a LoRA adapter of PEFT's.

The base model gives the structure (which module is which layer, kind and head); its weights are never read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from protfold_peft.adapters.cards import METHOD_NAMES, adapter_card, method_name
from protfold_peft.adapters.config import TensorAdapterConfig
from protfold_peft.adapters.folders.base_model import skeleton
from protfold_peft.adapters.folders.fit_network import fit_network
from protfold_peft.adapters.folders.fit_targets import Target, residuals
from protfold_peft.adapters.folders.lora_folder import SavedLoRA, read_lora
from protfold_peft.adapters.folders.saved import adapter_tensors, check_output, new_folder, write_adapter
from protfold_peft.adapters.layout import settle_layout
from protfold_peft.adapters.networks import NETWORKS, LowRankNetwork, TensorNetwork
from protfold_peft.adapters.sites import Site
from protfold_peft.errors import CheckpointError, ConfigError

# What the methods are called on the command line.
METHODS = {name.lower().replace("-", "_"): network for network, name in METHOD_NAMES.items()}


@dataclass(frozen=True)
class FitReport:
    """How near the adapter comes.

    Attributes:
        sites: Number of adapted maps.
        parameters: Of the adapter.
        lora_parameters: Of the LoRA it was fitted to.
        residual: `||dW - B A|| / ||B A||`, Frobenius norms over all sites.
        worst_residual: The largest of one site.
        worst_site: Its name.
    """

    sites: int
    parameters: int
    lora_parameters: int
    residual: float
    worst_residual: float
    worst_site: str


def fit_adapter(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: str = "lorta",
    rank: int = 8,
    base: str | None = None,
    options: Mapping[str, Any] | None = None,
    restarts: int = 5,
    seed: int = 0,
    overwrite: bool = False,
) -> FitReport:
    """Fit a tensor adapter to a LoRA adapter, and write its folder.

    Args:
        folder: Of the LoRA adapter.
        out: Where the tensor adapter goes.
        method: A key of `METHODS` other than `tera`, or the name of a registered network.
        rank: Of the tensor adapter.
        base: Hub id or folder of the base model, of which only the configuration is read; None: what the LoRA names.
        options: Further keys of the method's configuration.
        restarts: Starts of the search, where there is more than one.
        seed: Of the random ones.
        overwrite: Replace the adapter in `out`.

    Raises:
        ConfigError: `out` is not free, or the method, a key or a value is not known.
        CheckpointError: The LoRA is damaged or of a kind that cannot be fitted, or the base model does not have its
            modules.
    """
    folder, out = Path(folder), Path(out)
    check_output(out, inputs=(folder,), overwrite=overwrite)
    network = _network(method)
    lora = read_lora(folder)
    base = base or lora.config.base_model_name_or_path
    if not base:
        raise CheckpointError(f"{folder} does not name its base model; name it with --base")
    model = skeleton(base, lora.config, lora.pairs, lora.modules)
    config = TensorAdapterConfig(
        network=network,
        r=rank,
        target_modules=list(lora.pairs),
        dropout=lora.config.lora_dropout,
        modules_to_save=lora.config.modules_to_save,
        task_type=lora.config.task_type,
        base_model_name_or_path=lora.config.base_model_name_or_path or base,
        revision=lora.config.revision,
        **(options or {}),
    )
    config.auto_mapping = lora.config.auto_mapping
    config.layout = settle_layout(config, model)
    config.target_modules = config.layout["target_modules"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks, report = _fit(config, lora, restarts)
    text = [
        f"Fitted to a LoRA adapter of {lora.parameters:,} parameters; relative error {report.residual:.2e} (Frobenius "
        f"norm of the difference of all updates), at most {report.worst_residual:.2e} in one map."
    ]
    with new_folder(out, inputs=(folder,), overwrite=overwrite) as temporary:
        card = adapter_card(config, text, report.parameters)
        write_adapter(temporary, config, adapter_tensors(networks, lora.modules), card)
    return report


def _network(method: str) -> str:
    network = METHODS.get(method, method)
    if network not in TensorAdapterConfig.faces:
        raise ConfigError(f"method '{method}' is not known; use {', '.join(sorted(METHODS))}")
    if not issubclass(NETWORKS[network], LowRankNetwork):
        known = sorted(name for name, each in METHODS.items() if issubclass(NETWORKS[each], LowRankNetwork))
        raise ConfigError(
            f"{method_name(network)} cannot be fitted to given updates: its tensors are random; use {', '.join(known)}"
        )
    return network


def _fit(config: TensorAdapterConfig, lora: SavedLoRA, restarts: int) -> tuple[dict[str, TensorNetwork], FitReport]:
    """The networks that come nearest to the LoRA, rounded as they will be written, and what they lose."""
    networks: dict[str, TensorNetwork] = {}
    lost: dict[str, tuple[float, float]] = {}
    for name, group in config.build().items():
        network = cast(LowRankNetwork, group).double()
        targets = [_target(site, lora) for site in network.sites]
        fit_network(network, targets, restarts=restarts)
        # What is reported is what is written.
        written = network.float().double()
        with torch.no_grad():
            squares = residuals([written.pair(target.site) for target in targets], targets)
        for target, square in zip(targets, squares.tolist(), strict=True):
            lost[target.site.key] = square, target.norm_squared().item()
        networks[name] = network.float()
    relative = {key: math.sqrt(square / norm) if norm else 0.0 for key, (square, norm) in lost.items()}
    worst = max(relative, key=lambda key: relative[key])
    whole = sum(norm for _, norm in lost.values())
    report = FitReport(
        sites=len(lost),
        parameters=sum(factor.numel() for network in networks.values() for factor in network.parameters()),
        lora_parameters=lora.parameters,
        residual=math.sqrt(sum(square for square, _ in lost.values()) / whole) if whole else 0.0,
        worst_residual=relative[worst],
        worst_site=worst,
    )
    return networks, report


def _target(site: Site, lora: SavedLoRA) -> Target:
    down, up = lora.pairs[site.path]
    total = site.d_out if site.rows is None else site.d_out // site.rows.block * site.rows.stride
    if down.shape[1] != site.d_in or len(up) != total:
        raise CheckpointError(
            f"the LoRA's '{site.path}' is {len(up)} x {down.shape[1]}, the base model's {total} x {site.d_in}: it was "
            "made for another model"
        )
    return Target(site, down, up if site.rows is None else site.rows.take(up.T).T)

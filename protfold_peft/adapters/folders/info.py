"""What an adapter's folder holds, told from the folder alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

from protfold_peft.adapters.cards import method_name
from protfold_peft.adapters.checkpoint import check_directory, read_config
from protfold_peft.adapters.config import TensorAdapterConfig, TensorPeftType
from protfold_peft.adapters.describe import GroupDescription, describe_group
from protfold_peft.adapters.folders.base_model import count_parameters, skeleton
from protfold_peft.adapters.folders.saved import FACTORS, MODULES, existing_folder
from protfold_peft.adapters.loading import saved_config
from protfold_peft.adapters.networks import TensorNetwork
from protfold_peft.errors import ProtfoldError


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter as it was saved; what is not known of an adapter of another PEFT method is None or empty.

    Attributes:
        folder: Where it is.
        method: `LoRTA`, or PEFT's name of another method.
        rank, scale, init, dropout: Of its configuration.
        modules: Number of adapted modules.
        groups: Sites that share factors.
        parameters: Of the factors.
        saved_in_full: Names of the modules that were trained in full.
        saved_in_full_parameters: Of these.
        task_type: PEFT's.
        base_name: Hub id or path of the base model.
        base: Type and sizes of the base model.
        base_parameters: Where its configuration is on this machine.
        file_bytes: Size of the weights.
    """

    folder: str
    method: str
    rank: int | None
    scale: float | None
    init: str | None
    dropout: float | None
    modules: int
    groups: tuple[GroupDescription, ...]
    parameters: int
    saved_in_full: tuple[str, ...]
    saved_in_full_parameters: int
    task_type: str | None
    base_name: str | None
    base: dict[str, Any]
    base_parameters: int | None
    file_bytes: int

    @property
    def share(self) -> float | None:
        """Parameters as a share of the base model's."""
        return self.parameters / self.base_parameters if self.base_parameters else None


def adapter_info(folder: str | os.PathLike[str]) -> AdapterInfo:
    """Describe the adapter in `folder`, of any PEFT method. Nothing is fetched from the network.

    Raises:
        CheckpointError: It is no adapter, or damaged.
        ConfigError: The configuration of a tensor adapter holds a key or value that this version does not know.
    """
    folder = existing_folder(folder)
    content = read_config(folder)
    check_directory(folder)
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    with safe_open(weights, framework="pt") as file:
        sizes = {name: _count(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if content["peft_type"] != TensorPeftType.TENSOR_NETWORK:
        return _of_other(folder, content, sizes, weights)
    config = saved_config(folder)
    groups = tuple(describe_group(name, cast(TensorNetwork, group)) for name, group in _build(config).items())
    return AdapterInfo(
        folder=str(folder),
        method=method_name(config.network),
        rank=config.r,
        scale=config.scaling,
        init=config.init,
        dropout=config.dropout,
        modules=len(config.site_paths),
        groups=groups,
        parameters=sum(group.parameters for group in groups),
        saved_in_full=tuple(config.modules_to_save or ()),
        saved_in_full_parameters=sum(size for name, size in sizes.items() if not name.startswith(FACTORS)),
        task_type=_plain(config.task_type),
        base_name=config.base_model_name_or_path,
        base=dict((config.layout or {}).get("base") or {}),
        base_parameters=_base_parameters(config, config.site_paths),
        file_bytes=weights.stat().st_size,
    )


def _build(config: TensorAdapterConfig) -> Any:
    with torch.device("meta"):
        return config.build()


def _of_other(folder: Path, content: dict[str, Any], sizes: dict[str, int], weights: Path) -> AdapterInfo:
    """LoRA, whose matrices are told from what was trained in full by their names, or another method of PEFT's."""
    from peft import PeftConfig

    own = {name: size for name, size in sizes.items() if "lora_" in name} or sizes
    paths = lora_paths(sizes)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError):
        config = None
    rank = content.get("r")
    scale = None
    if isinstance(rank, int) and rank > 0 and isinstance(content.get("lora_alpha"), (int, float)):
        scale = content["lora_alpha"] / (rank**0.5 if content.get("use_rslora") else rank)
    return AdapterInfo(
        folder=str(folder),
        method=str(content["peft_type"]),
        rank=rank if isinstance(rank, int) else None,
        scale=scale,
        init=None,
        dropout=content.get("lora_dropout"),
        modules=len(paths),
        groups=(),
        parameters=sum(own.values()),
        saved_in_full=tuple(content.get("modules_to_save") or ()),
        saved_in_full_parameters=sum(sizes.values()) - sum(own.values()),
        task_type=content.get("task_type"),
        base_name=content.get("base_model_name_or_path"),
        base={},
        base_parameters=None if config is None else _base_parameters(config, paths),
        file_bytes=weights.stat().st_size,
    )


def lora_paths(names: Any) -> list[str]:
    """The modules that a LoRA file has matrices of, from the names in it."""
    ending = ".lora_A.weight"
    return [name.removesuffix(ending).removeprefix(MODULES) for name in names if name.endswith(ending)]


def adapted_paths(folder: str | os.PathLike[str]) -> list[str]:
    """The modules that the adapter in `folder` changes; empty for methods other than ours and LoRA.

    Raises:
        CheckpointError: It is no adapter, or damaged.
    """
    folder = existing_folder(folder)
    kind = read_config(folder)["peft_type"]
    check_directory(folder)
    if kind == TensorPeftType.TENSOR_NETWORK:
        return sorted(saved_config(folder).site_paths)
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        return lora_paths(file.keys())


def _base_parameters(config: Any, paths: Any) -> int | None:
    """Of the base model, where its configuration is at hand."""
    base = config.base_model_name_or_path
    if not base:
        return None
    try:
        return count_parameters(skeleton(base, config, paths, {}, local=True))
    except ProtfoldError:
        return None


def _plain(value: Any) -> str | None:
    return None if value is None else str(getattr(value, "value", value))


def _count(shape: list[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count

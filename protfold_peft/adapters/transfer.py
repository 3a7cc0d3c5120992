"""Take an adapter to another model around the same language model: from ESM-2 with a masked-LM head to ESMFold.

Both call the encoder's modules `esm.encoder.layer.N...`, so the adapter's sites are found by name. What has to be
checked is the size, and for PEFT's own methods, which pass over weights that find no place, that each found one.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn

from protfold_peft.adapters.checkpoint import check_directory
from protfold_peft.adapters.config import TensorAdapterConfig, TensorPeftType
from protfold_peft.adapters.layout import base_identity
from protfold_peft.adapters.loading import load_adapter
from protfold_peft.errors import CheckpointError

_SIZES = {"num_hidden_layers": "layers", "hidden_size": "width", "num_attention_heads": "heads"}


def load_fitting_adapter(
    model: nn.Module, folder: str | os.PathLike[str], *, adapter_name: str = "default", is_trainable: bool = False
) -> PeftModel:
    """`load_adapter`, for an adapter of any PEFT method that may have been trained under another head.

    Args:
        model: The model to put it on, changed in place: `EsmFold`, say, for an adapter of `EsmForMaskedLM`.
        folder: Of the adapter.
        adapter_name: What to call it.
        is_trainable: Whether to go on training it.

    Raises:
        CheckpointError: As `load_adapter`; and the adapter was made for a language model of another size. The message
            names both sizes.
        ConfigError: As `load_adapter`.
    """
    folder = Path(folder)
    if folder.is_dir():
        check_directory(folder)
        config = PeftConfig.from_pretrained(str(folder))
        if isinstance(config, TensorAdapterConfig):
            _check_sizes(folder, (config.layout or {}).get("base") or {}, base_identity(model))
    try:
        with warnings.catch_warnings():
            # That is an error here.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            adapted = load_adapter(model, folder, adapter_name=adapter_name, is_trainable=is_trainable)
    except (RuntimeError, ValueError) as error:
        # Of PEFT's own methods: a tensor of another shape, or a target module that is not there.
        raise CheckpointError(
            f"{folder} was made for a model of {_layers(_stored(folder))}, and does not fit this one of "
            f"{_described(base_identity(model))}: {' '.join(str(error).split())[:200]}"
        ) from error
    if adapted.peft_config[adapter_name].peft_type != TensorPeftType.TENSOR_NETWORK:
        _check_complete(folder, adapted, adapter_name)
    return adapted


def _check_sizes(folder: Path, stored: Mapping[str, object], found: Mapping[str, object]) -> None:
    if any(key in stored and key in found and stored[key] != found[key] for key in _SIZES):
        raise CheckpointError(
            f"{folder} was made for a language model of {_described(stored)}; this one has {_described(found)}: "
            "an adapter fits models of its own size alone"
        )


def _check_complete(folder: Path, model: PeftModel, adapter_name: str) -> None:
    """Every saved tensor has found its place, and no part of the adapter has stayed as it was drawn."""
    expected = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    stored = {name: shape for name, shape in _stored(folder).items() if name in expected or "embed" not in name}
    if set(expected) != set(stored):
        odd = sorted(set(expected) ^ set(stored))
        raise CheckpointError(
            f"{folder} was made for a model of {_layers(stored)}; this one would need one for {_layers(expected)} "
            f"({_described(base_identity(model.get_base_model()))}), first difference {odd[0]}"
        )


def _stored(folder: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _described(sizes: Mapping[str, object]) -> str:
    return ", ".join(f"{sizes[key]} {name}" if name != "width" else f"width {sizes[key]}"
                     for key, name in _SIZES.items() if key in sizes) or "unknown size"  # fmt: skip


def _layers(names: Collection[str]) -> str:
    found = [re.search(r"\.(?:layers?|h|blocks?)\.(\d+)\.", name) for name in names]
    return f"{1 + max((int(match[1]) for match in found if match), default=-1)} layers"

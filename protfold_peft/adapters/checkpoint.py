"""Is this folder a sound adapter? Asked before anything in it is opened as a tensor, and never by unpickling.

A saved adapter is `adapter_config.json` and `adapter_model.safetensors`. The configuration holds the layout, so the
name and shape of every factor follow from it, and the header of the weights must agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from protfold_peft.errors import CheckpointError

if TYPE_CHECKING:
    from protfold_peft.adapters.config import TensorAdapterConfig

_FACTORS = "base_model.tensor_factors."


def factor_shapes(config: TensorAdapterConfig) -> dict[str, tuple[int, ...]]:
    """The name in a saved file and the shape of every factor that this configuration describes."""
    with torch.device("meta"):
        networks = config.build()
    return {_FACTORS + name: tuple(factor.shape) for name, factor in networks.state_dict().items()}


def check_factors(shapes: Mapping[str, tuple[int, ...]], config: TensorAdapterConfig, source: str = "") -> None:
    """Compare the factors of a saved adapter, given by name and shape, with its configuration.

    Raises:
        CheckpointError: A factor is missing, of another shape, or not among those of the configuration.
    """
    source = source or "the adapter's weights"
    expected = factor_shapes(config)
    for name, shape in expected.items():
        if name not in shapes:
            raise CheckpointError(
                f"{source}: factor '{name.removeprefix(_FACTORS)}' is missing; the weights are damaged or belong to "
                "another adapter"
            )
        if tuple(shapes[name]) != shape:
            raise CheckpointError(
                f"{source}: factor '{name.removeprefix(_FACTORS)}' has shape {tuple(shapes[name])}, but the "
                f"configuration (rank {config.r}) asks for {shape}; weights and configuration belong to two adapters"
            )
    extra = sorted(name for name in shapes if name.startswith(_FACTORS) and name not in expected)
    if extra:
        raise CheckpointError(f"{source}: factor '{extra[0].removeprefix(_FACTORS)}' is not in the configuration")


def check_directory(folder: Path, config: TensorAdapterConfig | None = None, *, weights_required: bool = True) -> None:
    """Check the files of a saved adapter, as far as they are there; with `config`, the weights against it.

    Raises:
        CheckpointError: A file is missing, truncated, a pickle, or does not fit `config`.
    """
    read_config(folder)
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():
        if (folder / WEIGHTS_NAME).is_file():
            raise CheckpointError(
                f"{folder / WEIGHTS_NAME} is a pickle, which can run code when opened; save the adapter again with "
                "safe_serialization=True"
            )
        if weights_required:
            raise CheckpointError(f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}; give the folder of a saved adapter")
        return
    try:
        with safe_open(weights, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{weights} is truncated or not a safetensors file ({error}); copy or save it again"
        ) from error
    if config is not None:
        check_factors(shapes, config, str(weights))


def read_config(folder: Path) -> dict[str, object]:
    """The content of `adapter_config.json`.

    Raises:
        CheckpointError: It is missing, truncated or not a PEFT configuration.
    """
    path = folder / CONFIG_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no {CONFIG_NAME}; give the folder of a saved adapter") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not JSON ({error}); copy or save it again") from error
    if not isinstance(content, dict) or "peft_type" not in content:
        raise CheckpointError(f"{path} is not the configuration of an adapter: it has no 'peft_type'")
    return content

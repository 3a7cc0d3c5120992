"""An adapter's folder, read and written without the model that the adapter is for.

The configuration holds the layout, so the folder alone says what every factor means. This is what exporting, fitting,
combining and describing start from.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

from protfold_peft.adapters.checkpoint import check_directory, read_config
from protfold_peft.adapters.config import TensorAdapterConfig, TensorPeftType
from protfold_peft.adapters.layout import FROZEN
from protfold_peft.adapters.loading import saved_config
from protfold_peft.adapters.networks import TensorNetwork
from protfold_peft.errors import CheckpointError, ConfigError
from protfold_peft.files import replacing_folder, write_text

FACTORS = "base_model.tensor_factors."
MODULES = "base_model.model."
CARD_NAME = "README.md"


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter of ours as it was saved.

    Attributes:
        config: Its configuration, with the layout.
        networks: Its factors, by group.
        modules: The weights of what was trained in full beside it, under their names in the file.
    """

    config: TensorAdapterConfig
    networks: dict[str, TensorNetwork]
    modules: dict[str, Tensor]


def read_adapter(folder: str | os.PathLike[str]) -> SavedAdapter:
    """Read a folder that `save_pretrained` wrote for a tensor adapter.

    Raises:
        CheckpointError: It is not such a folder, or a file is missing, damaged or a pickle.
        ConfigError: The configuration holds a key or value that this version does not know.
    """
    folder = existing_folder(folder)
    kind = read_config(folder)["peft_type"]
    if kind != TensorPeftType.TENSOR_NETWORK:
        raise CheckpointError(
            f"{folder} is an adapter of PEFT's own type {kind}, not a tensor adapter; give one of protfold-peft"
        )
    config = saved_config(folder)
    check_directory(folder)
    tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    networks = {name: cast(TensorNetwork, group) for name, group in config.build().items()}
    for name, network in networks.items():
        prefix = f"{FACTORS}{name}."
        for factor_name, factor in network.named_parameters():
            factor.data = factor.data.to(tensors[prefix + factor_name].dtype)
        network.draw_frozen()
        network.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
        stored = (config.layout or {}).get(FROZEN, {}).get(name)
        if stored is not None and not getattr(config, "save_frozen", False) and network.frozen_checksum() != stored:
            raise CheckpointError(
                f"{folder}: the frozen tensors of group '{name}', drawn from the adapter's seed, are not those that "
                "it was trained with; save it with save_frozen=True where it was made"
            )
    modules = {name: tensor for name, tensor in tensors.items() if not name.startswith(FACTORS)}
    return SavedAdapter(config, networks, modules)


def adapter_tensors(networks: Mapping[str, TensorNetwork], modules: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the weights file of an adapter holds, by name."""
    factors = {
        f"{FACTORS}{group}.{name}": tensor.detach()
        for group, network in networks.items()
        for name, tensor in network.state_dict().items()
    }
    return factors | dict(modules)


def write_adapter(folder: Path, config: Any, tensors: Mapping[str, Tensor], card: str) -> None:
    """Write configuration, weights and model card of an adapter of any PEFT type into a folder.

    Args:
        folder: An existing one.
        config: A PEFT configuration; it is saved as one for inference.
        tensors: By name.
        card: Text of the model card.
    """
    # Shared memory cannot be saved, and a factor's transpose is only a view.
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        folder / SAFETENSORS_WEIGHTS_NAME,
        metadata={"format": "pt"},
    )
    config = copy.copy(config)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    write_text(folder / CARD_NAME, card)


def existing_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of an adapter's folder.

    Raises:
        CheckpointError: It is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a saved adapter")
    return folder


def check_output(out: Path, *, inputs: tuple[Path, ...] = (), overwrite: bool = False) -> None:
    """Check that results may go to `out`; to be called before anything is computed.

    Raises:
        ConfigError: There is something there and `overwrite` is not set, it is no model's or adapter's folder, or it
            is one of the inputs or holds one.
    """
    target = out.resolve()
    for path in inputs:
        if path.exists() and (target == path.resolve() or target in path.resolve().parents):
            raise ConfigError(f"{out} is, or holds, the input {path}; write to another folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder for the result")
    if not overwrite:
        raise ConfigError(f"{out} is not empty; name another folder, or replace it with --overwrite")
    replaceable = (out / CONFIG_NAME).is_file() or (out / "config.json").is_file()
    if not replaceable or any(path.is_dir() for path in out.iterdir()):
        raise ConfigError(
            f"{out} holds more than a saved adapter or model, and is not replaced; remove it yourself, or name another "
            "folder"
        )


@contextlib.contextmanager
def new_folder(
    out: str | os.PathLike[str], *, inputs: tuple[Path, ...] = (), overwrite: bool = False
) -> Iterator[Path]:
    """Yield a temporary folder that is moved to `out` when all went well.

    Raises:
        ConfigError: See `check_output`; or the folder cannot be written.
    """
    out = Path(out)
    check_output(out, inputs=inputs, overwrite=overwrite)
    try:
        with replacing_folder(out) as temporary:
            yield temporary
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from error


def copy_files(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Copy the files of `source` whose names match, where `target` has none of that name."""
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not (target / file.name).exists():
                shutil.copyfile(file, target / file.name)

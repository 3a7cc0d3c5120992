"""Put a saved adapter on a model, with one clear error for every way in which the folder can be bad."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from peft import PeftConfig, PeftModel
from torch import nn

from protfold_peft.adapters.checkpoint import check_directory, read_config
from protfold_peft.adapters.config import TensorAdapterConfig, TensorPeftType
from protfold_peft.errors import CheckpointError, ConfigError, ProtfoldError


def load_adapter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """Load the adapter in `folder`, of any PEFT method, onto `model`, which is changed in place.

    `PeftModel.from_pretrained` does the same for a sound folder. It reads the type out of the configuration before
    we are asked, so there a truncated configuration gives Python's own error. A model that has adapters already is
    given another one.

    Returns:
        The PEFT model.

    Raises:
        CheckpointError: A file is missing, truncated or a pickle, or the adapter is of another model or rank.
        ConfigError: The configuration holds a key or value that this version does not know, or there is an adapter of
            this name that is another (the weights of the same one are replaced).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a saved adapter")
    kind = read_config(folder)["peft_type"]
    check_directory(folder)
    if isinstance(model, PeftModel):
        if adapter_name in model.peft_config:
            _check_same(folder, model.peft_config[adapter_name], adapter_name)
        model.load_adapter(str(folder), adapter_name, is_trainable=is_trainable, low_cpu_mem_usage=low_cpu_mem_usage)
        return model
    config = saved_config(folder) if kind == TensorPeftType.TENSOR_NETWORK else None
    try:
        adapted = PeftModel.from_pretrained(
            model,
            str(folder),
            adapter_name=adapter_name,
            is_trainable=is_trainable,
            config=config,
            low_cpu_mem_usage=low_cpu_mem_usage,
        )
    except ProtfoldError as error:
        raise _named(error, folder) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # PEFT takes a configuration as it finds it, and fails where it is first used.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"the adapter in {folder} cannot be put on this model: {reason}") from error
    return cast(PeftModel, adapted)


def saved_config(folder: Path) -> TensorAdapterConfig:
    """The configuration of a saved tensor adapter.

    Raises:
        ConfigError: It holds a key or value that this version does not know; the message names the file.
    """
    try:
        return TensorAdapterConfig.from_pretrained(str(folder))
    except ProtfoldError as error:
        raise _named(error, folder) from error


def _named(error: ProtfoldError, folder: Path) -> ProtfoldError:
    """The same error, with the folder named."""
    return error if str(folder) in str(error) else type(error)(f"{folder}: {error}")


# What does not change what the weights mean.
_INCIDENTAL = {"inference_mode", "base_model_name_or_path", "revision", "peft_version", "auto_mapping", "task_type"}
_INCIDENTAL |= {"init_weights", "dropout", "save_frozen"}


def _check_same(folder: Path, present: PeftConfig, adapter_name: str) -> None:
    """PEFT loads weights into an adapter of the same name without a look at what they are.

    Raises:
        ConfigError: The stored adapter is not the one that the model has.
    """
    stored = PeftConfig.from_pretrained(str(folder)).to_dict()
    for key, value in present.to_dict().items():
        if key not in _INCIDENTAL and stored.get(key) != value:
            shown = "" if key == "layout" else f" ({stored.get(key)} in {folder}, {value} in the model)"
            raise ConfigError(
                f"the model has an adapter '{adapter_name}' already, and its {key} differs{shown}; load this one under "
                "another name"
            )

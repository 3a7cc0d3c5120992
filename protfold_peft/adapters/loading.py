"""Put a saved adapter on a model, with one clear error for every way in which the folder can be bad."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from peft import PeftConfig, PeftModel
from torch import nn

from protfold_peft.adapters.checkpoint import check_directory, read_config
from protfold_peft.adapters.config import TensorAdapterConfig, TensorPeftType
from protfold_peft.errors import CheckpointError, ConfigError


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
    ours = kind == TensorPeftType.TENSOR_NETWORK
    config = TensorAdapterConfig.from_pretrained(str(folder)) if ours else None
    return cast(
        PeftModel,
        PeftModel.from_pretrained(
            model,
            str(folder),
            adapter_name=adapter_name,
            is_trainable=is_trainable,
            config=config,
            low_cpu_mem_usage=low_cpu_mem_usage,
        ),
    )


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

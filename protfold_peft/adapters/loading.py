"""Put a saved adapter on a model, with one clear error for every way in which the folder can be bad."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from peft import PeftModel
from torch import nn

from protfold_peft.adapters.checkpoint import check_directory, read_config
from protfold_peft.adapters.config import TensorAdapterConfig, TensorPeftType
from protfold_peft.errors import CheckpointError


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
        ConfigError: The configuration holds a key or value that this version does not know, or the name is taken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a saved adapter")
    kind = read_config(folder)["peft_type"]
    check_directory(folder)
    if isinstance(model, PeftModel):
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

"""Tell PEFT about the tensor adapters; done when `protfold_peft.adapters` is imported.

PEFT's own registration takes only types of its own enumeration, so the entries are made directly.
"""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from protfold_peft.adapters.config import TensorAdapterConfig, TensorPeftType
from protfold_peft.adapters.model import TensorAdapterModel


def register() -> None:
    """Enter the type, its configuration, its tuner and its prefix; doing so again changes nothing."""
    kind = TensorPeftType.TENSOR_NETWORK
    PEFT_TYPE_TO_CONFIG_MAPPING[kind] = TensorAdapterConfig
    PEFT_TYPE_TO_TUNER_MAPPING[kind] = TensorAdapterModel
    PEFT_TYPE_TO_PREFIX_MAPPING[kind] = TensorAdapterModel.prefix

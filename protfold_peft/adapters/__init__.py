"""The shared adapter core: sites, tensor networks, and the PEFT tuner around them. Knows nothing of proteins."""

from protfold_peft.adapters.config import LoRTAConfig, TensorAdapterConfig, TensorPeftType
from protfold_peft.adapters.layer import TensorLinear
from protfold_peft.adapters.model import TensorAdapterModel
from protfold_peft.adapters.register import register
from protfold_peft.adapters.sites import HeadSplit, Site

__all__ = [
    "HeadSplit",
    "LoRTAConfig",
    "Site",
    "TensorAdapterConfig",
    "TensorAdapterModel",
    "TensorLinear",
    "TensorPeftType",
    "register",
]

register()

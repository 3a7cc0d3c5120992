"""The shared adapter core: sites, tensor networks, and the PEFT tuner around them. Knows nothing of proteins.

`architectures` says where known models keep their linear maps, `linear_maps` lists those of a model, `discovery` picks
the named ones, and `layout` makes sites (`sites`) of them in groups. `networks` has a file for each tensor network,
`config` and `methods` their configurations. `model` is the tuner and `layer` what it puts in the place of a linear
map; `loading` and `checkpoint` bring a saved adapter back, `checks` and `optimization` watch over training, and
`folders` has what is done with saved adapters alone.
"""

from protfold_peft.adapters.checks import DeadAdapterError, DeadSite, GradientCheck, check_gradients
from protfold_peft.adapters.config import TensorAdapterConfig, TensorPeftType
from protfold_peft.adapters.describe import AdapterDescription, GroupDescription, describe_adapters
from protfold_peft.adapters.layer import BrokenAdapterError, TensorLinear, collapsed
from protfold_peft.adapters.loading import load_adapter
from protfold_peft.adapters.methods import (
    METHODS,
    LoRTAConfig,
    LoTRConfig,
    SiteLoRAConfig,
    TensLoRAConfig,
    TensorTrainConfig,
    TeRAConfig,
    register_network,
)
from protfold_peft.adapters.mixed_batch import MixedBatchError
from protfold_peft.adapters.model import TensorAdapterModel
from protfold_peft.adapters.optimization import DeadAdapterCallback, adapter_param_groups
from protfold_peft.adapters.register import register
from protfold_peft.adapters.sites import HeadSplit, Site
from protfold_peft.adapters.transfer import load_fitting_adapter

__all__ = [
    "METHODS",
    "AdapterDescription",
    "BrokenAdapterError",
    "DeadAdapterCallback",
    "DeadAdapterError",
    "DeadSite",
    "GradientCheck",
    "GroupDescription",
    "HeadSplit",
    "LoRTAConfig",
    "LoTRConfig",
    "MixedBatchError",
    "Site",
    "SiteLoRAConfig",
    "TeRAConfig",
    "TensLoRAConfig",
    "TensorAdapterConfig",
    "TensorAdapterModel",
    "TensorLinear",
    "TensorPeftType",
    "TensorTrainConfig",
    "adapter_param_groups",
    "check_gradients",
    "collapsed",
    "describe_adapters",
    "load_adapter",
    "load_fitting_adapter",
    "register",
    "register_network",
]

register()

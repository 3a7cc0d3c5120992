"""Every method, in each form that computes in another way: what tests are run over."""

from __future__ import annotations

from typing import Any

import pytest

from protfold_peft.adapters import (
    LoRTAConfig,
    LoTRConfig,
    SiteLoRAConfig,
    TensLoRAConfig,
    TensorAdapterConfig,
    TensorTrainConfig,
    TeRAConfig,
)
from protfold_peft.adapters.networks.tucker import VARIANTS

# One form of each network.
METHODS: dict[str, tuple[type[TensorAdapterConfig], dict]] = {
    "lorta": (LoRTAConfig, {}),
    "lotr": (LoTRConfig, {}),
    "tenslora": (TensLoRAConfig, {}),
    "tera": (TeRAConfig, {}),
    "tensor_train": (TensorTrainConfig, {}),
    "lora": (SiteLoRAConfig, {}),
}
# The same for tests of what stands around the methods, where one method says what the others do: of the default run are
# one whose factors are all trained, and one with frozen tensors that are not saved.
TWO: list[Any] = [pytest.param(name, marks=() if name in ("lorta", "tera") else pytest.mark.slow) for name in METHODS]
# All forms.
FORMS: dict[str, tuple[type[TensorAdapterConfig], dict]] = {
    **METHODS,
    "lorta_rslora": (LoRTAConfig, {"use_rslora": True}),
    "tensor_train_heads": (TensorTrainConfig, {"heads": True}),
    **{f"tenslora_{variant}": (TensLoRAConfig, {"variant": variant, "scale": 0.5}) for variant in VARIANTS},
    "tenslora_ranks": (TensLoRAConfig, {"ranks": {"model": 7, "head_width": 2, "heads": 2, "layers": 1, "kinds": 5}}),
    "tenslora_interleaved": (TensLoRAConfig, {"head_layout": "interleaved"}),
    "tera_three_factors": (TeRAConfig, {"axis_factors": 3, "scale": 2.0}),
    "tera_one_factor": (TeRAConfig, {"axis_factors": 1}),
}


def make_config(form: str, **options) -> TensorAdapterConfig:
    """The config of a form of rank 3 whose update is not zero, as if trained."""
    config, own = FORMS[form]
    return config(**({"r": 3, "init_weights": False} | own | options))

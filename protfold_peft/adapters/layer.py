"""The layer that PEFT puts in the place of an adapted `nn.Linear`.

Legend: `...` any leading axes (batch b, tokens n), `d_in`, `d_out` the widths of the site.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from protfold_peft.adapters.networks import TensorNetwork
from protfold_peft.adapters.references import ModuleReferences
from protfold_peft.adapters.sites import Site
from protfold_peft.errors import NonFiniteError

# Part of every factor's name and of no base module's. PEFT warns when an adapter's name lies within it, so it avoids
# words such as "adapter" and "default".
PREFIX = "tensor_factors"


class BrokenAdapterError(NonFiniteError, ValueError):
    """An adapter whose update holds NaN or infinity; a ValueError too, as PEFT's callers expect of a safe merge."""


class TensorLinear(nn.Module, BaseTunerLayer):
    """`y = base(x) + sum over active adapters of x dW^T`, with the factors of each `dW` owned by the tuner."""

    adapter_layer_names = (PREFIX,)
    other_param_names = ("tensor_sites", "tensor_dropout")

    # What BaseTunerLayer brings, declared for the type checker, to which nn.Module.__getattr__ hides it.
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool
    _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]
    get_base_weight: Callable[[], Tensor]
    set_base_weight: Callable[[Tensor], None]

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer: nn.Linear = base_layer
        self.in_features = base_layer.in_features
        self.out_features = base_layer.out_features
        self.tensor_factors = ModuleReferences()
        self.tensor_sites: dict[str, Site] = {}
        self.tensor_dropout = nn.ModuleDict()
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, factors: TensorNetwork, site: Site, dropout: float) -> None:
        """Add an adapter, or replace the one of this name."""
        self.tensor_factors[adapter_name] = factors
        self.tensor_sites[adapter_name] = site
        # A new module starts in training mode; this one must not drop inputs of a model that is in evaluation.
        self.tensor_dropout[adapter_name] = nn.Dropout(dropout).train(self.base_layer.training)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def network(self, adapter_name: str) -> TensorNetwork:
        """The factors that this layer's adapter uses."""
        return cast(TensorNetwork, self.tensor_factors[adapter_name])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`(..., d_in)` to `(..., d_out)`, in the base layer's number format.

        The update is computed in the factors' format (or autocast's) and rounded once, after the sum.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.tensor_factors:
                factors = self.network(name)
                x_cast = self.tensor_dropout[name](self._cast_input_dtype(x, factors.dtype))
                result = result + factors(x_cast, self.tensor_sites[name])
        return result.to(dtype)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The dense `dW` of one adapter, `(d_out, d_in)`."""
        return self.network(adapter_name).delta(self.tensor_sites[adapter_name])

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of the named adapters (default: the active ones) into the base weight.

        Raises:
            BrokenAdapterError: With `safe_merge`, the merged weight would hold NaN or infinity; it is not changed.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.tensor_factors:
                merged = self._base_plus(name, 1)
                if safe_merge and not torch.isfinite(merged).all():
                    raise BrokenAdapterError(
                        f"NaNs detected in the merged weights. The adapter {name} seems to be broken: its update of "
                        f"'{self.tensor_sites[name].path}' is not finite, and was not merged"
                    )
                self.set_base_weight(merged)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take every merged update out of the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.tensor_factors:
                self.set_base_weight(self._base_plus(name, -1))

    @torch.no_grad()
    def _base_plus(self, adapter_name: str, sign: int) -> Tensor:
        weight = self.get_base_weight()
        # The sum is taken in the wider of the two formats: a bf16 update added to a bf16 weight is rounded twice.
        return (weight + sign * self.get_delta_weight(adapter_name).to(weight.device)).to(weight.dtype)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's version would also cast the factors to the base layer's format, which loses bits of a loaded fp32
        # adapter. The factors are shared, so the first site of their group decides alone.
        if adapter_name not in self.tensor_factors:
            return
        factors = self.network(adapter_name)
        on_meta = any(parameter.is_meta for parameter in factors.parameters())
        if self.tensor_sites[adapter_name].path == factors.sites[0].path and not on_meta:
            factors.to(device or self.base_layer.weight.device)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "tensor." + super().__repr__()

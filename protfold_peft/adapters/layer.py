"""The layer that PEFT puts in the place of an adapted linear module.

Legend: `...` any leading axes (batch b, tokens n), `d_in`, `d_out` the widths of the module, `q` the inner width of an
update.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn

from protfold_peft.adapters.distributed import refuse_reentrant_checkpointing
from protfold_peft.adapters.linear_maps import linear_shape
from protfold_peft.adapters.mixed_batch import mixed_batch
from protfold_peft.adapters.networks import LowRankNetwork, TensorNetwork
from protfold_peft.adapters.networks.base import apply_thin, thin
from protfold_peft.adapters.references import ModuleReferences
from protfold_peft.adapters.sites import Site
from protfold_peft.errors import NonFiniteError

# Part of every factor's name and of no base module's. PEFT warns when an adapter's name lies within it, so it avoids
# words such as "adapter" and "default".
PREFIX = "tensor_factors"
Matrices = tuple[Tensor, Tensor]


class BrokenAdapterError(NonFiniteError, ValueError):
    """An adapter whose update holds NaN or infinity; a ValueError too, as PEFT's callers expect of a safe merge."""


class TensorLinear(nn.Module, BaseTunerLayer):
    """`y = base(x) + sum over active adapters of x dW^T`, with the factors of each `dW` owned by the tuner.

    A module has one site, or, where it is fused, one for each of its adapted parts.
    """

    adapter_layer_names = (PREFIX,)
    other_param_names = ("tensor_sites", "tensor_dropout", "tensor_weights")

    # What BaseTunerLayer brings, declared for the type checker, to which nn.Module.__getattr__ hides it.
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool
    _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]
    get_base_layer: Callable[[], nn.Module]
    get_base_weight: Callable[[], Tensor]
    set_base_weight: Callable[[Tensor], None]

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        super().__init__()
        shape = linear_shape(base_layer)
        assert shape is not None
        self.base_layer = base_layer
        self.out_features, self.in_features, self.transposed = shape
        self.quantization_backend = resolve_quantization_backend(base_layer, **quantization)
        self.tensor_factors = ModuleReferences()
        self.tensor_sites: dict[str, tuple[Site, ...]] = {}
        self.tensor_dropout = nn.ModuleDict()
        # Of the adapters that count other than once.
        self.tensor_weights: dict[str, float] = {}
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []
        # The matrices of collapsed adapters with what they were made from; None: they are not kept.
        self._collapsed: dict[str, tuple[object, Matrices]] | None = None

    def update_layer(
        self, adapter_name: str, networks: dict[str, TensorNetwork], sites: Sequence[Site], dropout: float
    ) -> None:
        """Add an adapter, or replace the one of this name.

        Args:
            adapter_name: Its name.
            networks: All its networks by group; those of the sites are kept.
            sites: What it changes of this module.
            dropout: Probability of dropping an input.
        """
        self.tensor_factors[adapter_name] = nn.ModuleDict({site.group: networks[site.group] for site in sites})
        self.tensor_sites[adapter_name] = tuple(sites)
        self.tensor_weights.pop(adapter_name, None)
        # A new module starts in training mode; this one must not drop inputs of a model that is in evaluation.
        self.tensor_dropout[adapter_name] = nn.Dropout(dropout).train(self.base_layer.training)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def network(self, adapter_name: str, site: Site) -> TensorNetwork:
        """The factors that a site of this layer uses."""
        return cast(TensorNetwork, cast(nn.ModuleDict, self.tensor_factors[adapter_name])[site.group])

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """`(..., d_in)` to `(..., d_out)`, in the base layer's number format.

        The update is computed in the factors' format (or autocast's) and rounded once, after the sum.

        Args:
            x: Input.
            adapter_names: The adapter of every sample of the batch, `__base__` for none; None: the active ones.

        Raises:
            MixedBatchError: See `mixed_batch`.
        """
        if self.training and self._shares_factors():
            refuse_reentrant_checkpointing()
        if self.disable_adapters and self.merged:
            self.unmerge()
        if adapter_names is not None and not self.disable_adapters:
            return mixed_batch(self, x, list(adapter_names), *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for name in self.active_adapters:
            if name in self.tensor_factors:
                result = result + self.update(name, x)
        return result.to(dtype)

    def _shares_factors(self) -> bool:
        """Whether an active adapter's factors are used by other sites too."""
        return any(
            len(self.network(name, site).sites) > 1
            for name in self.active_adapters
            for site in self.tensor_sites.get(name, ())
        )

    def update(self, adapter_name: str, x: Tensor) -> Tensor:
        """`x dW^T` of one adapter, `(..., d_out)`, without building `dW`."""
        sites = self.tensor_sites[adapter_name]
        networks = [self.network(adapter_name, site) for site in sites]
        x = self.tensor_dropout[adapter_name](self._cast_input_dtype(x, networks[0].dtype))
        if self.is_low_rank(adapter_name):
            return apply_thin(x, self.matrices(adapter_name))
        weight = self.tensor_weights.get(adapter_name, 1.0)
        parts = [self._placed(network(x, site), site) for network, site in zip(networks, sites, strict=True)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total if weight == 1 else weight * total

    def _placed(self, rows: Tensor, site: Site) -> Tensor:
        """A site's outputs `(..., n_rows)` among those of the module `(..., d_out)`."""
        return rows if site.rows is None else site.rows.place(rows, self.out_features)

    def matrices(self, adapter_name: str) -> Matrices:
        """The update of one adapter of low-rank networks as `down (q, d_in)` and `up (q, d_out)`: `dW = up.T @ down`.

        Inside `collapsed` and without gradients it is kept until a factor is changed or exchanged.
        """
        keep = self._collapsed is not None and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        networks = self.tensor_factors[adapter_name].children() if keep else ()
        factors = [factor for network in networks for factor in network.parameters(recurse=False)]
        if not keep or any(factor.is_inference() for factor in factors):  # such tensors do not count their changes
            return self._make_matrices(adapter_name)
        assert self._collapsed is not None
        state = (
            self.tensor_weights.get(adapter_name, 1.0),
            *((factor.data_ptr(), factor.dtype, factor._version) for factor in factors),
        )
        if adapter_name not in self._collapsed or self._collapsed[adapter_name][0] != state:
            self._collapsed[adapter_name] = state, self._make_matrices(adapter_name)
        return self._collapsed[adapter_name][1]

    def _make_matrices(self, adapter_name: str) -> Matrices:
        """`matrices`, made afresh: the pairs of all sites, one below the other."""
        downs, ups = [], []
        for site in self.tensor_sites[adapter_name]:
            down, up = cast(LowRankNetwork, self.network(adapter_name, site)).pair(site)
            downs.append(down)
            ups.append(up if site.rows is None else self._placed(up.T, site).T)
        down, up = (downs[0], ups[0]) if len(downs) == 1 else (torch.cat(downs), torch.cat(ups, dim=1))
        weight = self.tensor_weights.get(adapter_name, 1.0)
        return thin((down, up if weight == 1 else weight * up))

    def is_low_rank(self, adapter_name: str) -> bool:
        """Whether all that an adapter changes of this layer is of low rank, so that `matrices` are thin."""
        sites = self.tensor_sites[adapter_name]
        return all(isinstance(self.network(adapter_name, site), LowRankNetwork) for site in sites)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The dense `dW` of one adapter, in the shape of the module's weight: `(d_out, d_in)`, or transposed."""
        total: Tensor | None = None
        for site in self.tensor_sites[adapter_name]:
            delta = self.network(adapter_name, site).delta(site)
            part = self._placed(delta.T, site).T
            total = part if total is None else total + part
        assert total is not None
        total = self.tensor_weights.get(adapter_name, 1.0) * total
        return total.T if self.transposed else total

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of the named adapters (default: the active ones) into the base weight.

        A quantised weight is restored, changed and quantised anew, which loses what falls between its steps.

        Raises:
            BrokenAdapterError: With `safe_merge`, the merged weight would hold NaN or infinity; it is not changed.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.tensor_factors:
                merged = self._base_plus(name, 1)
                if safe_merge and not torch.isfinite(merged).all():
                    raise BrokenAdapterError(
                        f"NaNs detected in the merged weights. The adapter {name} seems to be broken: its update of "
                        f"'{self.tensor_sites[name][0].path}' is not finite, and was not merged"
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
        """The base weight with an adapter's update added (`sign` 1) or taken away (-1)."""
        weight = self.get_base_weight()
        # The sum is taken in the wider of the two formats: a bf16 update added to a bf16 weight is rounded twice.
        return (weight + sign * self.get_delta_weight(adapter_name).to(weight.device)).to(weight.dtype)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's hook after an adapter is added, here without its change of number format."""
        # PEFT's version would also cast the factors to the base layer's format, which loses bits of a loaded fp32
        # adapter. The factors are shared, so the first site of their group decides alone.
        if adapter_name not in self.tensor_factors:
            return
        if device is None:
            device = cast(Tensor, self.get_base_layer().weight).device
        for site in self.tensor_sites[adapter_name]:
            factors = self.network(adapter_name, site)
            if site.key != factors.sites[0].key:
                continue
            if not any(parameter.is_meta for parameter in factors.parameters()):
                factors.to(device)
                continue
            for name, buffer in factors.named_buffers():  # made already, unlike the factors that are to be loaded
                setattr(factors, name, buffer.to(device))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT's question whether `convert_to_lora` can take this layer: it works from the dense update, so yes."""
        return True

    def extra_repr(self) -> str:
        """How the base layer is quantised, as PEFT's own layers show it."""
        return quantization_extra_repr(self)

    def __repr__(self) -> str:
        return "tensor." + super().__repr__()


@contextmanager
def collapsed(model: nn.Module) -> Iterator[None]:
    """Keep every adapter's update as two thin matrices per module, for inference inside this context.

    They are made once instead of in every forward pass, which counts where a pass is short: when text is generated
    token by token. A factor that is changed in place or exchanged is noticed, as is a weight of the adapter; only a
    change through `factor.data` is not. Networks that are not of low rank (TeRA) are unaffected, and so are passes that
    record gradients.
    """
    layers = [module for module in model.modules() if isinstance(module, TensorLinear)]
    before = [layer._collapsed for layer in layers]
    for layer in layers:
        layer._collapsed = {}
    try:
        yield
    finally:
        for layer, kept in zip(layers, before, strict=True):
            layer._collapsed = kept

"""A forward pass of one layer in which every sample of the batch has its own adapter.

Adapters of low rank go through one pair of batched products, whatever their ranks; others one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from protfold_peft.errors import ConfigError

if TYPE_CHECKING:
    from protfold_peft.adapters.layer import TensorLinear

# The name that stands for no adapter, in a batch of mixed ones.
BASE = "__base__"


class MixedBatchError(ConfigError, ValueError):
    """`adapter_names` that cannot be served; a ValueError too, as PEFT's callers expect."""


def mixed_batch(layer: TensorLinear, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
    """The layer's output `(b, ..., d_out)` with every sample `(b, ..., d_in)` through the adapter that it names.

    Args:
        layer: The layer, whose other arguments follow its input.
        x: Input.
        adapter_names: The adapter of every sample, `__base__` for none.

    Raises:
        MixedBatchError: There is not one name per sample, an adapter is merged, or the leading axis of this
            module's input is not the batch.
    """
    named = [name for name in dict.fromkeys(adapter_names) if name in layer.tensor_factors]
    sites = [site for name in named or layer.tensor_sites for site in layer.tensor_sites[name]]
    batch_first = bool(sites) and all(site.batch_first for site in sites)
    if layer.merged:
        raise MixedBatchError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    if named and not batch_first:
        raise MixedBatchError(
            f"adapter_names cannot be used with an adapter of '{sites[0].path}': the leading axis of its input is "
            "not the batch; call the model once for each adapter, after set_adapter"
        )
    if batch_first and len(x) != len(adapter_names):
        raise MixedBatchError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(adapter_names)} and {len(x)} respectively."
        )
    if not named:
        return layer.base_layer(x, *args, **kwargs)
    result = layer.base_layer(x, *args, **kwargs)
    if layer.quantization_backend is not None:
        result = layer.quantization_backend.maybe_clone_base_result(result)
    # Adapters of thin matrices go through one pair of batched products; the others one after the other.
    thin = [name for name in named if layer.is_low_rank(name)]
    for names in ([thin] if len(thin) > 1 else [[name] for name in thin]) + [[n] for n in named if n not in thin]:
        rows = torch.tensor([i for i, name in enumerate(adapter_names) if name in names], device=x.device)
        own = x if len(rows) == len(x) else x[rows]
        if len(names) == 1:
            update = layer.update(names[0], own)
        else:
            update = _stacked_update(layer, own, [name for name in adapter_names if name in names])
        result.index_add_(0, rows, update.to(result.dtype))
    return result


def _stacked_update(layer: TensorLinear, x: Tensor, adapter_names: list[str]) -> Tensor:
    """`x dW^T` with a `dW` for every sample, from adapters of low rank, narrower ones padded with zeros.

    Args:
        layer: The layer.
        x: `(b, ..., d_in)`.
        adapter_names: The adapter of every sample.
    """
    names = list(dict.fromkeys(adapter_names))
    matrices = [layer.matrices(name) for name in names]
    q = max(len(down) for down, _ in matrices)
    downs, ups = (
        torch.stack([F.pad(matrix, (0, 0, 0, q - len(matrix))) for matrix in side]).to(x.device)
        for side in zip(*matrices, strict=True)
    )
    which = torch.tensor([names.index(name) for name in adapter_names], device=x.device)
    tokens = layer._cast_input_dtype(x, downs.dtype).reshape(len(x), -1, x.shape[-1])
    update = tokens @ downs[which].mT @ ups[which]
    return update.reshape(*x.shape[:-1], layer.out_features)

"""Layers that share an input, as one matrix product."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.esm.modeling_esmfold import EsmFoldLayerNorm, EsmFoldLinear

_PLAIN = (nn.Linear, EsmFoldLinear, nn.LayerNorm, EsmFoldLayerNorm)


def is_plain(module: Any) -> bool:
    """Whether a layer is what it was built as: no adapter, no quantised weight, no hook, no other device."""
    return (
        type(module) in _PLAIN
        and "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def untouched(module: nn.Module) -> bool:
    """Whether every part of a module is transformers' own, PyTorch's or ours, without a hook: no adapter anywhere."""
    return all(
        type(part).__module__.startswith(("torch.nn.modules.", "transformers.models.esm.", "protfold_peft.folding."))
        and "forward" not in vars(part)
        and not part._forward_hooks
        and not part._forward_pre_hooks
        for part in module.modules()
    )


def joined(modules: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Weights and biases laid end to end, zeros where a layer has no bias; gradients find their way back."""
    weight = torch.cat([module.weight for module in modules])
    biases = [module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias for module in modules]
    return weight, torch.cat(biases)


def together(*modules: Any) -> Callable[[Tensor], Tensor]:
    """Linear layers that share an input as one: outputs `(..., c)` laid end to end along the last axis.

    Layers that an adapter, quantisation or offloading has changed are called one by one. The weights are those of this
    moment: make it anew in every pass.
    """
    if all(map(is_plain, modules)):
        weight, bias = joined(modules)
        return functools.partial(F.linear, weight=weight, bias=bias)
    return lambda x: torch.cat([module(x) for module in modules], dim=-1)

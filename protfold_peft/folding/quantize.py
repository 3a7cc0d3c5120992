"""Weights held in fewer bits, where they are frozen and memory is short.

The language model's matrices in 8 or 4 bits, to train adapters on (QLoRA); the trunk's in bf16, where its products are
made in bf16 anyway.

Source: Dettmers et al., LLM.int8(), NeurIPS 2022; Dettmers et al., QLoRA, NeurIPS 2023, whose NF4 with double
quantisation is taken for 4 bits. Both are bitsandbytes' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from protfold_peft.errors import ConfigError
from protfold_peft.runtime import require_bitsandbytes


def quantize_language_model(network: Any, bits: str, compute_dtype: torch.dtype) -> None:
    """Replace every linear layer of ESM-2's encoder, in place; they are packed when they move to their device.

    Args:
        network: An `EsmFold`.
        bits: `8bit` or `4bit`.
        compute_dtype: The format of the products.

    Raises:
        ConfigError: bitsandbytes is not installed or too old, or `bits` is neither.
    """
    if bits not in ("8bit", "4bit"):
        raise ConfigError(f"quantize={bits}: use 8bit or 4bit")
    require_bitsandbytes(f"quantize={bits}")
    import bitsandbytes as bnb

    encoder = network.esm.encoder
    for path, layer in [(path, module) for path, module in encoder.named_modules() if type(module) is nn.Linear]:
        has_bias = layer.bias is not None
        packed: Any
        if bits == "8bit":
            packed = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, has_bias, has_fp16_weights=False)
            packed.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            packed = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, has_bias, compute_dtype=compute_dtype, quant_type="nf4"
            )
            # Else the first evaluation on a CPU repacks the weights for good, and no gradient passes them any more.
            packed.support_avx512bf16_for_cpu = False
            packed.weight = bnb.nn.Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
        if has_bias:
            packed.bias = nn.Parameter(layer.bias.data, requires_grad=False)
        parent, _, name = path.rpartition(".")
        setattr(encoder.get_submodule(parent), name, packed)


def halve_frozen_trunk(network: Any) -> None:
    """Hold the trunk blocks' frozen linear layers in bf16, in place, if their products are made in it.

    Autocast would round the same weights every time it meets them: not one digit of a result changes, and 1.4 GB of
    the published model's are spared. What is trained stays as it is.

    Args:
        network: An `EsmFold`, adapters injected or not.
    """
    if network.trunk.autocast_dtype != torch.bfloat16:
        return
    for module in network.trunk.blocks.modules():
        if isinstance(module, nn.Linear) and not any(p.requires_grad for p in module.parameters()):
            module.to(torch.bfloat16)

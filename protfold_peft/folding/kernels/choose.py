"""Triangle attention by the fastest means at hand.

Axis letters: `b` batch, `r` rows, `n` residues, `h` heads, `d` head width, `c` channels.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from protfold_peft.folding import kernels

HALF = (torch.bfloat16, torch.float16)


def attention_kernel(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Which of `triton`, `cuequivariance` and `torch` is to compute triangle attention.

    Args:
        device: Where the pair state is.
        dtype: What queries, keys and values are made in; fp32 stays with PyTorch.
        width: Of a head.
    """
    chosen = kernels.settings().attention
    if kernels.settings().reference or chosen == "torch" or device.type != "cuda" or dtype not in HALF:
        return "torch"
    if chosen in ("auto", "triton") and kernels.triton_runs(device):
        from protfold_peft.folding.kernels.triton_attention import supports

        if supports(width, device):
            return "triton"
    if chosen in ("auto", "cuequivariance") and kernels.has_cuequivariance() and width % 8 == 0:
        return "cuequivariance"
    return "torch"


def cuequivariance_attention(x: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Triangle attention by NVIDIA's `cuequivariance_torch.triangle_attention`; differentiable.

    Args:
        x: `(b, r, n, 3 or 4, h, d)` queries, keys, values and, where there is a fourth, gates.
        bias: `(b, h, n, n)`, padding included.
        scale: Factor of the scores.

    Returns:
        `(b, r, n, h, d)`.
    """
    library: Any = importlib.import_module("cuequivariance_torch")
    q, k, v = (x.select(3, slot).transpose(2, 3) for slot in range(3))
    out = library.triangle_attention(q, k, v, bias[:, None].float(), scale=scale).transpose(2, 3)
    return out * x.select(3, 3).sigmoid() if x.shape[3] == 4 else out

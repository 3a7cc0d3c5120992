"""Attention with a pair bias, without the score matrix of every row at once.

Triangle attention attends along each of the `n` rows of the pair representation with one bias `(h, n, n)` shared by
all rows. Written plainly it holds `n x h x n x n` scores, twice. Here the forward pass is PyTorch's fused
scaled-dot-product attention with the bias expanded by stride, and the backward pass recomputes the probabilities for
a few rows at a time and sums the bias gradient as it goes: the same numbers, memory linear in the rows held.

Axis letters: `b` batch, `n` residues, `r` rows, `h` heads, `d` head width, `c` channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.models.esm.modeling_esmfold import EsmFoldSelfAttention, EsmFoldTriangleAttention

from protfold_peft.folding.kernels.choose import attention_kernel, cuequivariance_attention
from protfold_peft.folding.kernels.linear import together

# Scores held at once in the backward pass, in elements: on a CPU 1 MiB in fp32, which stays in a core's cache; else
# 64 MiB.
_CPU_SCORES, _DEVICE_SCORES = 2**18, 2**24


def row_slices(n_rows: int, rows: int) -> Iterator[slice]:
    """Slices that cover `range(n_rows)` in steps of `rows`."""
    for start in range(0, n_rows, rows):
        yield slice(start, min(start + rows, n_rows))


class _RowAttention(torch.autograd.Function):
    """`softmax(scale q k^T + bias) v` for `r` independent rows that share `bias`.

    `x`: `(r, n, 3, h, d)` queries, keys and values; `bias`: `(h, n, n)`; result `(r, n, h, d)`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, scale: float) -> Tensor:
        """The attention by PyTorch's fused kernels; the probabilities are not kept."""
        q, k, v = x.detach().transpose(1, 3).unbind(2)
        # Detached: for a bias that asks for a gradient PyTorch gives up its fused kernels. Not expanded to the rows:
        # where the length is no multiple of 8 it would be copied for each.
        mask = bias.detach().unsqueeze(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)
        ctx.save_for_backward(x, bias, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of `x` and `bias`, with the probabilities computed again, some rows at a time."""
        x, bias, out = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        # Many rows add into one bias: the sum is kept in fp32 even where the attention ran in bf16.
        grad_bias = torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))
        most = _CPU_SCORES if x.device.type == "cpu" else _DEVICE_SCORES
        for part in row_slices(x.shape[0], max(1, most // bias.numel())):
            q, k, v = x[part].transpose(1, 3).unbind(2)
            q = q * ctx.scale
            scores = q @ k.transpose(-1, -2)
            probabilities = scores.add_(bias).softmax(-1)
            grad = grad_out[part].to(v.dtype).transpose(1, 2)
            grad_v = probabilities.transpose(-1, -2) @ grad
            # d softmax: P * (dP - sum(dP * P)), and sum(dP * P) = sum(dO * O) over the head width.
            grad_scores = grad @ v.transpose(-1, -2)
            grad_scores -= (grad * out[part].transpose(1, 2)).sum(-1, keepdim=True)
            grad_scores *= probabilities
            grad_q = (grad_scores @ k).mul_(ctx.scale)
            grad_k = grad_scores.transpose(-1, -2) @ q
            for slot, gradient in enumerate((grad_q, grad_k, grad_v)):
                grad_x[part, :, slot] = gradient.transpose(1, 2)
            grad_bias += grad_scores.sum(0, dtype=grad_bias.dtype)
        return grad_x, grad_bias.to(bias.dtype), None


def row_attention(x: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention of independent rows that share a bias.

    Args:
        x: `(b, r, n, 3, h, d)` queries, keys and values.
        bias: `(b, h, n, n)` added to the scaled scores of every row.
        scale: Factor of the scores.

    Returns:
        `(b, r, n, h, d)`.
    """
    bias = bias.to(x.dtype)
    # One sample at a time: the fused kernels take one batch axis, and each sample has its own bias.
    if len(x) == 1:
        return _RowAttention.apply(x[0], bias[0], scale).unsqueeze(0)
    return torch.stack([_RowAttention.apply(*sample, scale) for sample in zip(x, bias)])


def _triton_attention(x: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Our kernel, which is imported where there is Triton."""
    from protfold_peft.folding.kernels.triton_attention_backward import triangle_attention

    return triangle_attention(x, bias.to(x.dtype), scale)


_ATTENTION = {"torch": row_attention, "triton": _triton_attention, "cuequivariance": cuequivariance_attention}


class SequenceAttention(EsmFoldSelfAttention):
    """Gated self-attention of the sequence state, biased by the pair state, on fused kernels."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, indices: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            x: `(b, n, c)`.
            mask: `(b, n)`, nonzero at real residues; padding is not attended to.
            bias: `(b, n, n, h)` added to the scores.
            indices: Unused; kept for the signature of the class it replaces.

        Returns:
            `(b, n, c)`, and None in place of the attention maps, which nothing reads.
        """
        b, n, _ = x.shape
        q, k, v = self.proj(x).view(b, n, self.num_heads, -1).transpose(1, 2).chunk(3, dim=-1)
        scores = None if bias is None else bias.permute(0, 3, 1, 2).contiguous()
        if mask is not None:
            padding = mask.bool().logical_not()[:, None, None]
            scores = x.new_zeros(b, 1, 1, n) if scores is None else scores
            scores = scores.masked_fill(padding, -torch.inf)
        if scores is not None:
            scores = scores.to(q.dtype).expand(b, self.num_heads, n, n)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=scores, scale=self.rescale_factor)
        y = y.transpose(1, 2).reshape(b, n, -1)
        if self.gated:
            y = self.g_proj(x).sigmoid() * y
        return self.o_proj(y), None


class TriangleAttention(EsmFoldTriangleAttention):
    """Triangle attention (AlphaFold 2 supplement, Algorithms 13 and 14).

    Padding is masked on the attended residue only: it is the mask of every row that holds a real residue, so results
    at real pairs are those of the class this replaces. Pairs with padding hold values that nothing reads.
    """

    def attention_bias(self, x: Tensor, mask: Tensor, rows: int | None = None) -> Tensor:
        """`(b, h, n, n)` bias shared by all rows, with padding of `mask` `(b, n)` masked.

        From `x` `(b, n, n, c)`, already normalised or, given `rows`, to be normalised that many rows at a time.
        """
        if rows is None:
            bias = self.linear(x)
        else:
            bias = torch.cat([self.linear(self.layer_norm(x[:, p])) for p in row_slices(x.shape[1], rows)], dim=1)
        bias = bias.permute(0, 3, 1, 2) if self.starting else bias.permute(0, 3, 2, 1)
        # Keys have to lie next to each other: else PyTorch copies the bias for every row, or writes out all scores.
        return bias.contiguous() + (self.inf * (mask.to(bias.dtype) - 1))[:, None, None, :]

    def attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """The update of pairs `x`, already normalised, under `bias` `(b, h, n, n)`.

        Attention runs along the third axis of `x` `(b, r, n, c)`, at the ending node along the second of
        `(b, n, r, c)`: strides tell, and nothing is transposed in memory.
        """
        mha = self.mha
        width = mha.c_hidden
        layers = (mha.linear_q, mha.linear_k, mha.linear_v, mha.linear_g)
        projected = together(*(layer for layer in layers if layer is not None))(x)
        # Split, not sliced: the gradient is one concatenation.
        qkv, *gates = projected.split(3 * mha.no_heads * width, dim=-1)
        qkv = qkv.unflatten(-1, (3, mha.no_heads, width))
        kernel = attention_kernel(qkv.device, qkv.dtype, width)
        o = _ATTENTION[kernel](qkv if self.starting else qkv.transpose(1, 2), bias, width**-0.5)
        o = (o if self.starting else o.transpose(1, 2)).flatten(-2)
        for gate in gates:
            o = o * gate.sigmoid()
        return mha.linear_o(o)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The update of the whole pair state.

        Args:
            x: `(b, n, n, c)`.
            mask: `(b, n)`, 1 at real residues.
        """
        x = self.layer_norm(x)
        return self.attend(x, self.attention_bias(x, mask))

    def add_update_(self, z: Tensor, mask: Tensor, rows: int) -> None:
        """Add the update to `z` `(b, n, n, c)` in place, `rows` rows at a time (inference only)."""
        axis = 1 if self.starting else 2
        bias = self.attention_bias(z, mask, rows)
        for part in row_slices(z.shape[axis], rows):
            block = z[:, part] if self.starting else z[:, :, part]
            block += self.attend(self.layer_norm(block), bias)

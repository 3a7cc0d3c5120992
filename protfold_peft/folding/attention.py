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

# Scores held at once in the backward pass, in elements: 64 MiB in fp32.
_BACKWARD_SCORES = 2**24


def row_slices(n_rows: int, rows: int) -> Iterator[slice]:
    """Slices that cover `range(n_rows)` in steps of `rows`."""
    for start in range(0, n_rows, rows):
        yield slice(start, min(start + rows, n_rows))


class _RowAttention(torch.autograd.Function):
    """`softmax(q k^T + bias) v` for `r` independent rows that share `bias`; `q` comes already scaled.

    `q, k, v`: `(r, h, n, d)`; `bias`: `(h, n, n)`; result `(r, h, n, d)`.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        mask = bias.expand(q.shape[0], *bias.shape)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        ctx.save_for_backward(q, k, v, bias, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, bias, out = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        # Many rows add into one bias: the sum is kept in fp32 even where the attention ran in bf16.
        grad_bias = torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))
        rows = max(1, _BACKWARD_SCORES // bias.numel())
        for part in row_slices(q.shape[0], rows):
            probabilities = (q[part] @ k[part].transpose(-1, -2) + bias).softmax(-1)
            grad = grad_out[part].to(v.dtype)
            grad_v[part] = probabilities.transpose(-1, -2) @ grad
            # d softmax: P * (dP - sum(dP * P)), and sum(dP * P) = sum(dO * O) over the head width.
            grad_scores = grad @ v[part].transpose(-1, -2)
            grad_scores -= (grad * out[part]).sum(-1, keepdim=True)
            grad_scores *= probabilities
            grad_q[part] = grad_scores @ k[part]
            grad_k[part] = grad_scores.transpose(-1, -2) @ q[part]
            grad_bias += grad_scores.sum(0, dtype=grad_bias.dtype)
        return grad_q, grad_k, grad_v, grad_bias.to(bias.dtype)


def row_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of independent rows that share a bias.

    Args:
        q: `(b, r, h, n, d)` queries, already divided by `sqrt(d)`.
        k: `(b, r, h, n, d)` keys.
        v: `(b, r, h, n, d)` values.
        bias: `(b, h, n, n)` added to the scores of every row.

    Returns:
        `(b, r, h, n, d)`.
    """
    bias = bias.to(q.dtype)
    # One sample at a time: the fused kernels take one batch axis, and each sample has its own bias.
    return torch.stack([_RowAttention.apply(*sample) for sample in zip(q, k, v, bias)])


def _triton_attention(x: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Our kernel, which is imported where there is Triton."""
    from protfold_peft.folding.kernels.triton_attention import triangle_attention

    return triangle_attention(x, bias, scale)


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
        scores = None if bias is None else bias.permute(0, 3, 1, 2)
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

    def attention_bias(self, x: Tensor, mask: Tensor, rows: int) -> Tensor:
        """`(b, h, n, n)` bias shared by all rows of `x` `(b, n, n, c)`, with padding of `mask` `(b, n)` masked."""
        parts = [self.linear(self.layer_norm(x[:, part])) for part in row_slices(x.shape[1], rows)]
        bias = torch.cat(parts, dim=1).permute(0, 3, 1, 2)
        return bias + (self.inf * (mask.to(bias.dtype) - 1))[:, None, None, :]

    def attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """The update of rows `x` `(b, r, n, c)`, already normalised, under `bias` `(b, h, n, n)`."""
        mha = self.mha
        width = mha.linear_q.out_features // mha.no_heads
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        kernel = attention_kernel(x.device, dtype, width)
        if kernel != "torch":
            qkv = together(x, mha.linear_q, mha.linear_k, mha.linear_v).unflatten(-1, (3, mha.no_heads, width))
            attend = cuequivariance_attention if kernel == "cuequivariance" else _triton_attention
            o = attend(qkv, bias.to(qkv.dtype), width**-0.5).flatten(-2)
            if mha.linear_g is not None:
                o = o * mha.linear_g(x).sigmoid()
            return mha.linear_o(o)

        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (mha.no_heads, -1)).transpose(2, 3)

        q = heads(mha.linear_q(x)) * mha.c_hidden**-0.5
        o = row_attention(q, heads(mha.linear_k(x)), heads(mha.linear_v(x)), bias)
        o = o.transpose(2, 3).flatten(-2)
        if mha.linear_g is not None:
            o = o * mha.linear_g(x).sigmoid()
        return mha.linear_o(o)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The update of the whole pair state.

        Args:
            x: `(b, n, n, c)`.
            mask: `(b, n)`, 1 at real residues.
        """
        if not self.starting:
            x = x.transpose(1, 2)
        bias = self.attention_bias(x, mask, rows=x.shape[1])
        update = self.attend(self.layer_norm(x), bias)
        return update if self.starting else update.transpose(1, 2)

    def add_update_(self, z: Tensor, mask: Tensor, rows: int) -> None:
        """Add the update to `z` `(b, n, n, c)` in place, `rows` rows at a time (inference only)."""
        x = z if self.starting else z.transpose(1, 2)
        bias = self.attention_bias(x, mask, rows)
        for part in row_slices(x.shape[1], rows):
            x[:, part] += self.attend(self.layer_norm(x[:, part]), bias)

"""Gradients of triangle attention: Triton kernels, and the differentiable function.

The probabilities are computed again from the log-sum-exps in three kernels: for keys and values, for queries, and for
the bias. The last holds one tile of the bias and walks the rows, so that its gradient is summed in fp32 registers, in
one order, without atomic additions.

Axis letters: `b` batch, `r` rows, `n` residues, `h` heads, `d` head width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from protfold_peft.folding.kernels.triton_attention import TILES, _like, _precision, attend_rows

# Partial sums of the bias gradient are made until there are about this many programs: two a processor of an H100.
_PROGRAMS = 264


@triton.jit
def _row_sums(O, G, DELTA, n, rows, heads, o_b, o_r, o_n, D: tl.constexpr, BM: tl.constexpr):
    tiles = tl.cdiv(n, BM)
    group = tl.program_id(0) // tiles
    head = group % heads
    row = (group // heads) % rows
    sample = (group // (heads * rows)).to(tl.int64)
    first = (tl.program_id(0) % tiles * BM).to(tl.int64)
    m, d = tl.arange(0, BM), tl.arange(0, D)
    inside = first + m < n
    place = sample * o_b + row.to(tl.int64) * o_r + first * o_n + head * D + m[:, None] * o_n + d[None, :]
    o = tl.load(O + place, mask=inside[:, None], other=0.0).to(tl.float32)
    g = tl.load(G + place, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(DELTA + group.to(tl.int64) * n + first + m, tl.sum(o * g, 1), mask=inside)


@triton.jit
def _backward_keys(
    X, B, G, LSE, DELTA, DX, n, rows, heads, scale,
    x_b, x_r, x_n, x_t, o_b, o_r, o_n, y_b, y_r, y_n, y_t,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    LOG2E: tl.constexpr = 1.4426950408889634
    tiles = tl.cdiv(n, BN)
    group = tl.program_id(0) // tiles
    head = group % heads
    row = (group // heads) % rows
    sample = (group // (heads * rows)).to(tl.int64)
    first = (tl.program_id(0) % tiles * BN).to(tl.int64)
    m, c, d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, D)
    j_in = first + c < n
    queries = X + sample * x_b + row.to(tl.int64) * x_r + head * D
    keys = queries + x_t + first * x_n + c[:, None] * x_n + d[None, :]
    k = tl.load(keys, mask=j_in[:, None], other=0.0)
    v = tl.load(keys + x_t, mask=j_in[:, None], other=0.0)
    grads = G + sample * o_b + row.to(tl.int64) * o_r + head * D
    bias = B + (sample * heads + head) * n * n + first
    sums = group.to(tl.int64) * n
    x_m = m[:, None] * x_n + d[None, :]
    o_m = m[:, None] * o_n + d[None, :]
    b_mc = m[:, None] * n + c[None, :]
    dk = tl.zeros([BN, D], tl.float32)
    dv = tl.zeros([BN, D], tl.float32)
    for start in range(0, n, BM):
        i_in = start + m < n
        q = tl.load(queries + x_m, mask=i_in[:, None], other=0.0)
        do = tl.load(grads + o_m, mask=i_in[:, None], other=0.0)
        # Queries past the end: a log-sum-exp of infinity makes their probabilities zero.
        lse = tl.load(LSE + sums + start + m, mask=i_in, other=float("inf"))
        delta = tl.load(DELTA + sums + start + m, mask=i_in, other=0.0)
        b = tl.load(bias + b_mc, mask=i_in[:, None] & j_in[None, :], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E) + b.to(tl.float32) * LOG2E
        p = tl.exp2(s - lse[:, None])
        dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv, input_precision=PRECISION)
        ds = p * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision=PRECISION)
        queries += x_n * BM
        grads += o_n * BM
        bias += n * BM
    y = DX + sample * y_b + row.to(tl.int64) * y_r + y_t + head * D + first * y_n + c[:, None] * y_n + d[None, :]
    tl.store(y, (dk * scale).to(DX.dtype.element_ty), mask=j_in[:, None])
    tl.store(y + y_t, dv.to(DX.dtype.element_ty), mask=j_in[:, None])


@triton.jit
def _backward_queries(
    X, B, G, LSE, DELTA, DX, n, rows, heads, scale,
    x_b, x_r, x_n, x_t, o_b, o_r, o_n, y_b, y_r, y_n, y_t,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    LOG2E: tl.constexpr = 1.4426950408889634
    tiles = tl.cdiv(n, BM)
    group = tl.program_id(0) // tiles
    head = group % heads
    row = (group // heads) % rows
    sample = (group // (heads * rows)).to(tl.int64)
    first = (tl.program_id(0) % tiles * BM).to(tl.int64)
    m, c, d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, D)
    i_in = first + m < n
    x = X + sample * x_b + row.to(tl.int64) * x_r + head * D
    q = tl.load(x + first * x_n + m[:, None] * x_n + d[None, :], mask=i_in[:, None], other=0.0)
    g = G + sample * o_b + row.to(tl.int64) * o_r + head * D + first * o_n
    do = tl.load(g + m[:, None] * o_n + d[None, :], mask=i_in[:, None], other=0.0)
    sums = group.to(tl.int64) * n + first + m
    lse = tl.load(LSE + sums, mask=i_in, other=float("inf"))
    delta = tl.load(DELTA + sums, mask=i_in, other=0.0)
    bias = B + ((sample * heads + head) * n + first) * n
    x_c = c[:, None] * x_n + d[None, :]
    b_mc = m[:, None] * n + c[None, :]
    dq = tl.zeros([BM, D], tl.float32)
    keys = x + x_t
    for start in range(0, n, BN):
        # Keys past the end have a bias of minus infinity, so no probability.
        j_in = start + c < n
        k = tl.load(keys + x_c, mask=j_in[:, None], other=0.0)
        v = tl.load(keys + x_t + x_c, mask=j_in[:, None], other=0.0)
        b = tl.load(bias + start + b_mc, mask=i_in[:, None] & j_in[None, :], other=float("-inf"))
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E) + b.to(tl.float32) * LOG2E
        p = tl.exp2(s - lse[:, None])
        ds = p * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        keys += x_n * BN
    y = DX + sample * y_b + row.to(tl.int64) * y_r + head * D + first * y_n
    tl.store(y + m[:, None] * y_n + d[None, :], (dq * scale).to(DX.dtype.element_ty), mask=i_in[:, None])


@triton.jit
def _backward_bias(
    X, B, G, LSE, DELTA, DB, n, rows, heads, scale, part, parts,
    x_b, x_r, x_n, x_t, o_b, o_r, o_n,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    LOG2E: tl.constexpr = 1.4426950408889634
    tiles = tl.cdiv(n, BN)
    tile = tl.program_id(0) % (tl.cdiv(n, BM) * tiles)
    group = tl.program_id(0) // (tl.cdiv(n, BM) * tiles)
    head = group % heads
    sample = (group // (heads * parts)).to(tl.int64)
    row = ((group // heads) % parts) * part
    i, j = ((tile // tiles) * BM).to(tl.int64), ((tile % tiles) * BN).to(tl.int64)
    m, c, d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, D)
    i_in, j_in = i + m < n, j + c < n
    inside = i_in[:, None] & j_in[None, :]
    corner = i * n + j
    b_mc = m[:, None] * n + c[None, :]
    b = tl.load(B + (sample * heads + head) * n * n + corner + b_mc, mask=inside, other=0.0).to(tl.float32) * LOG2E
    x = X + sample * x_b + row.to(tl.int64) * x_r + head * D
    queries = x + i * x_n + m[:, None] * x_n + d[None, :]
    keys = x + x_t + j * x_n + c[:, None] * x_n + d[None, :]
    grads = G + sample * o_b + row.to(tl.int64) * o_r + head * D + i * o_n + m[:, None] * o_n + d[None, :]
    sums = ((sample * rows + row) * heads + head) * n + i
    acc = tl.zeros([BM, BN], tl.float32)
    for _ in range(row, tl.minimum(row + part, rows)):
        q = tl.load(queries, mask=i_in[:, None], other=0.0)
        do = tl.load(grads, mask=i_in[:, None], other=0.0)
        k = tl.load(keys, mask=j_in[:, None], other=0.0)
        v = tl.load(keys + x_t, mask=j_in[:, None], other=0.0)
        lse = tl.load(LSE + sums + m, mask=i_in, other=float("inf"))
        delta = tl.load(DELTA + sums + m, mask=i_in, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E) + b
        p = tl.exp2(s - lse[:, None])
        acc += p * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        queries += x_r
        keys += x_r
        grads += o_r
        sums += heads * n
    tl.store(DB + group.to(tl.int64) * n * n + corner + b_mc, acc, mask=inside)


def row_sums(out: Tensor, grad: Tensor) -> Tensor:
    """`(b, r, h, n)`: sums over the head width of `out * grad`, `(b, r, n, h, d)` of the same strides.

    A gate that multiplies the result may be in both or in neither: the sums are the same.
    """
    b, r, n, h, d = out.shape
    sums = torch.empty((b, r, h, n), dtype=torch.float32, device=out.device)
    strides = (out.stride(0), out.stride(1), out.stride(2))
    _row_sums[(triton.cdiv(n, 64) * b * r * h,)](out, grad, sums, n, r, h, *strides, D=d, BM=64, num_warps=4)
    return sums


def attend_rows_backward(
    x: Tensor,
    bias: Tensor,
    out: Tensor,
    sums: Tensor,
    grad: Tensor,
    scale: float,
    *,
    bias_gradient: bool = True,
    grad_x: Tensor | None = None,
    delta: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `attend_rows` without a gate.

    Args:
        x: `(b, r, n, 3 or 4, h, d)` as in the forward pass; a fourth slot is left alone.
        bias: `(b, h, n, n)`.
        out: `(b, r, n, h, d)` that the forward pass gave.
        sums: `(b, r, h, n)` that the forward pass gave.
        grad: `(b, r, n, h, d)` gradient of the result.
        scale: Factor of the scores.
        bias_gradient: False leaves the bias's gradient out.
        grad_x: Where to write the gradient of `x`, the last two axes contiguous.
        delta: `(b, r, h, n)` of `row_sums`, where it is known already.

    Returns:
        Gradients of `x`, same shape, and of the bias, fp32.
    """
    b, r, n, _, h, d = x.shape
    if grad.stride() != out.stride() or grad.dtype != out.dtype:
        grad = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device).copy_(grad)
    delta = row_sums(out, grad) if delta is None else delta
    o_strides = (out.stride(0), out.stride(1), out.stride(2))
    x_strides = (x.stride(0), x.stride(1), x.stride(2), x.stride(3))
    grad_x = _like(x, 3, h, d) if grad_x is None else grad_x
    y_strides = (grad_x.stride(0), grad_x.stride(1), grad_x.stride(2), grad_x.stride(3))
    tile = TILES["backward, fp32" if x.element_size() == 4 else "backward"]
    shared: dict[str, Any] = {"D": d, "BM": tile.queries, "BN": tile.keys, "PRECISION": _precision(x)}
    shared |= {"num_warps": tile.warps, "num_stages": tile.stages}
    query_tiles, key_tiles = triton.cdiv(n, tile.queries), triton.cdiv(n, tile.keys)
    inputs = (x, bias, grad, sums, delta)
    for kernel, tiles in ((_backward_keys, key_tiles), (_backward_queries, query_tiles)):
        kernel[(tiles * b * r * h,)](*inputs, grad_x, n, r, h, scale, *x_strides, *o_strides, *y_strides, **shared)
    if not bias_gradient:
        return grad_x, None
    parts = min(r, max(1, triton.cdiv(_PROGRAMS, query_tiles * key_tiles * h * b)))
    part = triton.cdiv(r, parts)
    parts = triton.cdiv(r, part)
    partial = torch.empty((b, parts, h, n, n), dtype=torch.float32, device=x.device)
    _backward_bias[(query_tiles * key_tiles * b * parts * h,)](
        *inputs, partial, n, r, h, scale, part, parts, *x_strides, *o_strides, **shared
    )
    return grad_x, partial.sum(1) if parts > 1 else partial[:, 0]


class _TriangleAttention(torch.autograd.Function):
    """`attend_rows` with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, scale: float) -> Tensor:
        """As `attend_rows`, which also gives the sums that the backward pass needs."""
        out, sums = attend_rows(x, bias, scale, save=True)
        ctx.save_for_backward(x, bias, out, sums)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Gradients of `x` and, where it asks for one, of `bias`."""
        x, bias, out, sums = ctx.saved_tensors
        grad_x, grad_bias = attend_rows_backward(
            x, bias, out, sums, grad, ctx.scale, bias_gradient=ctx.needs_input_grad[1]
        )
        return grad_x, None if grad_bias is None else grad_bias.to(bias.dtype), None


def triangle_attention(x: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`softmax(scale q k^T + bias) v` for rows that share a bias, differentiable.

    Args:
        x: `(b, r, n, 3, h, d)` queries, keys and values; rows and residues may lie in memory in either order.
        bias: `(b, h, n, n)`.
        scale: Factor of the scores.

    Returns:
        `(b, r, n, h, d)`, in memory in the order of `x`.
    """
    d = x.shape[-1]
    if x.stride()[-2:] != (d, 1):
        x = x.contiguous()
    bias = bias.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
        return _TriangleAttention.apply(x, bias, scale)
    return attend_rows(x, bias, scale)[0]

"""Gradients of what `triton_pair` does to the pair state, for weights that ask for none.

Each kernel computes again in registers what its forward kernel computed there, and adds to the gradient of the pair
state in place: an update is a branch beside the state itself, so its gradient is one more term.

Axis letters: `b` batch, `n` residues, `c` channels, `h` heads, `m` residues rounded up to a multiple of 8.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from protfold_peft.folding.kernels.triton_attention import _precision
from protfold_peft.folding.kernels.triton_pair import (
    Layer,
    Norm,
    PackedMultiplication,
    _block,
    _normalised,
    product_gradients,
)


@triton.jit
def _norm_gradient(z, dx, gain, eps, C: tl.constexpr):
    """Gradient of the input of a layer norm of a tile `(positions, C)` from that of its result."""
    mean = tl.sum(z, 1) / C
    centred = z - mean[:, None]
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)
    unit = centred * scale[:, None]
    dx = dx * gain[None, :]
    along = tl.sum(dx * unit, 1) / C
    return scale[:, None] * (dx - (tl.sum(dx, 1) / C)[:, None] - unit * along[:, None])


@triton.jit
def _norm_backward(
    Z, G, DX, DB, GAIN, W, count, n, heads, eps,
    C: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, DENSE: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    inside = place < count
    c, h = tl.arange(0, C), tl.arange(0, H)
    at = place[:, None] * C + c[None, :]
    j = place % n
    i = (place // n) % n
    sample = place // n // n
    flat = j * n + i if TRANSPOSED else i * n + j
    here = inside[:, None] & (h < heads)[None, :]
    db = tl.load(
        DB + sample[:, None] * n * n * heads + h[None, :].to(tl.int64) * n * n + flat[:, None], mask=here, other=0.0
    )
    w = tl.load(W + h[:, None] * C + c[None, :], mask=(h < heads)[:, None], other=0.0)
    dx = tl.dot(db.to(w.dtype), w, input_precision=PRECISION)
    if DENSE:
        dx += tl.load(DX + at, mask=inside[:, None], other=0.0).to(tl.float32)
    z = tl.load(Z + at, mask=inside[:, None], other=0.0).to(tl.float32)
    dz = _norm_gradient(z, dx, tl.load(GAIN + c).to(tl.float32), eps, C)
    g = tl.load(G + at, mask=inside[:, None], other=0.0)
    tl.store(G + at, g + dz, mask=inside[:, None])


@triton.jit
def _gate_backward(DO, O, X, DX, count, C: tl.constexpr, BM: tl.constexpr):
    LOG2E: tl.constexpr = 1.4426950408889634
    place = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    inside = (place < count)[:, None]
    c = tl.arange(0, C)
    at = place[:, None] * C + c[None, :]
    wide = place[:, None] * (4 * C) + 3 * C + c[None, :]
    grad = tl.load(DO + at, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(O + at, mask=inside, other=0.0).to(tl.float32)
    gate = 1.0 / (1.0 + tl.exp2(-tl.load(X + wide, mask=inside, other=0.0).to(tl.float32) * LOG2E))
    tl.store(DX + wide, (grad * o * (1.0 - gate)).to(DX.dtype.element_ty), mask=inside)
    tl.store(DO + at, (grad * gate).to(DO.dtype.element_ty), mask=inside)


@triton.jit
def _transition_backward(
    Z, G, GAIN, SHIFT, W1, B1, W2, count, eps,
    C: tl.constexpr, INNER: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BM
    row = tl.arange(0, BM)
    inside = (first + row < count)[:, None]
    c, h = tl.arange(0, C), tl.arange(0, BH)
    Z += first * C
    G += first * C
    at = row[:, None] * C + c[None, :]
    kind = W1.dtype.element_ty
    z = tl.load(Z + at, mask=inside, other=0.0).to(tl.float32)
    x = _normalised(z, tl.load(GAIN + c).to(tl.float32), tl.load(SHIFT + c).to(tl.float32), eps, C).to(kind)
    g = tl.load(G + at, mask=inside, other=0.0).to(kind)
    dx = tl.zeros([BM, C], tl.float32)
    for start in range(0, INNER, BH):
        w1 = tl.load(W1 + (start + h)[None, :] * C + c[:, None])
        y = tl.dot(x, w1, input_precision=PRECISION) + tl.load(B1 + start + h).to(tl.float32)[None, :]
        w2 = tl.load(W2 + c[:, None] * INNER + (start + h)[None, :])
        dy = tl.where(y > 0.0, tl.dot(g, w2, input_precision=PRECISION), 0.0)
        dx = tl.dot(dy.to(kind), tl.trans(w1), dx, input_precision=PRECISION)
    z = tl.load(Z + at, mask=inside, other=0.0).to(tl.float32)
    dz = _norm_gradient(z, dx, tl.load(GAIN + c).to(tl.float32), eps, C)
    tl.store(G + at, tl.load(G + at, mask=inside, other=0.0) + dz, mask=inside)


@triton.jit
def _multiply_out_backward(
    G, X, P, DP, DX, GAIN, SHIFT, WZ, BZ, WG, BG, n, m, eps,
    C: tl.constexpr, BP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    LOG2E: tl.constexpr = 1.4426950408889634
    i = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2).to(tl.int64)
    j = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.arange(0, C)
    inside = (j < n)[:, None]
    kind = WZ.dtype.element_ty
    start = (sample * n + i) * n * C
    at = j[:, None] * C + c[None, :]
    first = sample * C * m * m + i * m
    planes = c[None, :] * (m * m) + j[:, None]
    w_at = c[None, :] * C + c[:, None]
    gain = tl.load(GAIN + c).to(tl.float32)
    p = tl.load(P + first + planes, mask=inside, other=0.0).to(tl.float32)
    y = _normalised(p, gain, tl.load(SHIFT + c).to(tl.float32), eps, C).to(kind)
    wz = tl.load(WZ + w_at)
    u = tl.dot(y, wz, input_precision=PRECISION) + tl.load(BZ + c).to(tl.float32)[None, :]
    wg = tl.load(WG + w_at)
    x = tl.load(X + start + at, mask=inside, other=0.0)
    gate = tl.dot(x, wg, input_precision=PRECISION) + tl.load(BG + c).to(tl.float32)[None, :]
    gate = 1.0 / (1.0 + tl.exp2(-gate * LOG2E))
    g = tl.load(G + start + at, mask=inside, other=0.0).to(tl.float32)
    dx = tl.dot((g * u * gate * (1.0 - gate)).to(kind), tl.trans(wg), input_precision=PRECISION)
    tl.store(DX + start + at, dx.to(DX.dtype.element_ty), mask=inside)
    dy = tl.dot((g * gate).to(kind), tl.trans(wz), input_precision=PRECISION)
    p = tl.load(P + first + planes, mask=inside, other=0.0).to(tl.float32)
    dp = tl.where(inside, _norm_gradient(p, dy, gain, eps, C), 0.0)
    tl.store(DP + first + planes, dp.to(DP.dtype.element_ty), mask=(j < m)[:, None])


@triton.jit
def _multiply_in_backward(
    Z, G, DX, DAB, GAIN, SHIFT, W, WB, MASK, n, m, eps,
    C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    LOG2E: tl.constexpr = 1.4426950408889634
    i = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2).to(tl.int64)
    j = tl.program_id(0) * BP + tl.arange(0, BP)
    c, t = tl.arange(0, C), tl.arange(0, BC)
    inside = j < n
    kind = W.dtype.element_ty
    start = (sample * n + i) * n * C
    at = j[:, None] * C + c[None, :]
    gain = tl.load(GAIN + c).to(tl.float32)
    z = tl.load(Z + start + at, mask=inside[:, None], other=0.0).to(tl.float32)
    x = _normalised(z, gain, tl.load(SHIFT + c).to(tl.float32), eps, C).to(kind)
    real = tl.load(MASK + sample * n + i).to(tl.float32)
    real = real * tl.load(MASK + sample * n + j, mask=inside, other=0.0).to(tl.float32)
    grads = DAB + sample * (2 * C) * m * m + i * m
    planes = t[None, :] * (m * m) + j[:, None]
    w_at = t[None, :] * C + c[:, None]
    dx = tl.load(DX + start + at, mask=inside[:, None], other=0.0).to(tl.float32)
    for channel in range(0, 2 * C, BC):
        wp = tl.load(W + channel * C + w_at)
        p = tl.dot(x, wp, input_precision=PRECISION) + tl.load(WB + channel + t).to(tl.float32)[None, :]
        wg = tl.load(W + (channel + 2 * C) * C + w_at)
        gate = tl.dot(x, wg, input_precision=PRECISION) + tl.load(WB + 2 * C + channel + t).to(tl.float32)[None, :]
        gate = 1.0 / (1.0 + tl.exp2(-gate * LOG2E))
        d = tl.load(grads + planes, mask=inside[:, None], other=0.0).to(tl.float32) * real[:, None]
        dx = tl.dot((d * gate).to(kind), tl.trans(wp), dx, input_precision=PRECISION)
        dx = tl.dot((d * p * gate * (1.0 - gate)).to(kind), tl.trans(wg), dx, input_precision=PRECISION)
        grads += m * m * BC
    z = tl.load(Z + start + at, mask=inside[:, None], other=0.0).to(tl.float32)
    dz = _norm_gradient(z, dx, gain, eps, C)
    tl.store(G + start + at, tl.load(G + start + at, mask=inside[:, None], other=0.0) + dz, mask=inside[:, None])


def norm_and_bias_backward_(
    g: Tensor,
    z: Tensor,
    norm: Norm,
    weight: Tensor,
    grad_bias: Tensor,
    grad_x: Tensor | None,
    *,
    transposed: bool = False,
) -> None:
    """Add to `g` what `norm_and_bias` of `z` passes back.

    Args:
        g: `(b, n, n, c)` fp32 gradient of the pair state.
        z: `(b, n, n, c)`.
        norm: Of `norm_and_bias`.
        weight: `(h, c)`, of the bias.
        grad_bias: `(b, h, n, n)` fp32 gradient of the bias.
        grad_x: `(b, n, n, c)` gradient of the norm, or None.
        transposed: As in `norm_and_bias`.
    """
    b, n, _, c = z.shape
    heads, count = len(weight), b * n * n
    _norm_backward[(triton.cdiv(count, 32),)](
        z, g, g if grad_x is None else grad_x, grad_bias, norm[0], weight, count, n, heads, norm[2],
        C=c, H=max(16, triton.next_power_of_2(heads)), BM=32, DENSE=grad_x is not None, TRANSPOSED=transposed,
        PRECISION=_precision(weight),
    )  # fmt: skip


def gate_backward_(grad: Tensor, out: Tensor, x: Tensor, grad_x: Tensor) -> None:
    """The gates of attention: `grad` `(..., c)` becomes that of what they multiply.

    Args:
        grad: `(..., c)` gradient of the gated result, contiguous; overwritten.
        out: `(..., c)` the gated result.
        x: `(..., 4 c)` projections, of which gates are the last quarter.
        grad_x: `(..., 4 c)`, of which the last quarter is written.
    """
    c = grad.shape[-1]
    count = grad.numel() // c
    _gate_backward[(triton.cdiv(count, 32),)](grad, out, x, grad_x, count, C=c, BM=32)


def transition_backward_(g: Tensor, z: Tensor, norm: Norm, first: Layer, second: Layer) -> None:
    """Add to `g` `(b, n, n, c)` what `transition_` of `z` passes back."""
    c, inner = z.shape[-1], first[0].shape[0]
    count, block = z.numel() // z.shape[-1], _block(first[0])
    _transition_backward[(triton.cdiv(count, block),)](
        z, g, *norm[:2], *first, second[0], count, norm[2],
        C=c, INNER=inner, BM=block, BH=min(block, inner), PRECISION=_precision(first[0]), num_warps=block // 8,
        num_stages=2,
    )  # fmt: skip


def multiply_backward_(
    g: Tensor, z: Tensor, mask: Tensor, kept: tuple[Tensor, Tensor, Tensor], w: PackedMultiplication, *, outgoing: bool
) -> None:
    """Add to `g` `(b, n, n, c)` what `multiply_` of `z` passes back.

    Args:
        g: `(b, n, n, c)` fp32 gradient of the pair state.
        z: `(b, n, n, c)` before the update.
        mask: `(b, n)`, 1 at real residues.
        kept: What `multiply_` gave for `z`: its norm, operands and product.
        w: The weights.
        outgoing: Which of the two algorithms.
    """
    x, operands, product = kept
    b, n, _, c = z.shape
    m, block, precision = product.shape[-1], _block(w.out[0]), _precision(x)
    grad_product, grad_x = torch.empty_like(product), torch.empty_like(x)
    if m > n:
        grad_product[:, :, n:] = 0
    _multiply_out_backward[(triton.cdiv(m, block), n, b)](
        g, x, product, grad_product, grad_x, *w.norm_out[:2], *w.out, *w.gate, n, m, w.norm_out[2],
        C=c, BP=block, PRECISION=precision, num_warps=block // 8, num_stages=2,
    )  # fmt: skip
    grads = product_gradients(operands, grad_product, outgoing=outgoing)
    del grad_product
    _multiply_in_backward[(triton.cdiv(n, block), n, b)](
        z, g, grad_x, grads, *w.norm[:2], *w.operands, mask, n, m, w.norm[2],
        C=c, BP=block, BC=min(32, c), PRECISION=precision, num_warps=block // 8, num_stages=2,
    )  # fmt: skip

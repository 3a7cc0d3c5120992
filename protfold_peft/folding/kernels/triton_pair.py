"""What a trunk block does to the pair state at inference, in few passes over it: Triton kernels.

The pair state is far larger than the weights that act on it, so what a block costs is how often the state goes through
memory. Each kernel here normalises, projects, gates and adds in registers what would else be written and read again.
The state keeps its format (fp32); products take the format of the weights; statistics and sums are fp32. Channels
have to be a power of two, 16 or more, and `c m m` below 2^31: tiles are addressed by 32-bit offsets.

Axis letters: `b` batch, `n` residues, `c` channels, `h` heads, `m` residues rounded up to a multiple of 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from protfold_peft.folding.kernels.triton_attention import _precision

# Gain, shift, and what is added to the variance; weight and bias.
Norm = tuple[Tensor, Tensor, float]
Layer = tuple[Tensor, Tensor]


@triton.jit
def _normalised(z, weight, bias, eps, C: tl.constexpr):
    """Layer norm of a tile `(positions, C)` in fp32."""
    mean = tl.sum(z, 1) / C
    centred = z - mean[:, None]
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)
    return centred * scale[:, None] * weight[None, :] + bias[None, :]


@triton.jit
def _norm_kernel(
    Z, X, GAIN, SHIFT, W, BIAS, MASK, count, n, heads, eps,
    C: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, STORE: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    inside = place < count
    c = tl.arange(0, C)
    z = tl.load(Z + place[:, None] * C + c[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    x = _normalised(z, tl.load(GAIN + c).to(tl.float32), tl.load(SHIFT + c).to(tl.float32), eps, C)
    x = x.to(X.dtype.element_ty)
    if STORE:
        tl.store(X + place[:, None] * C + c[None, :], x, mask=inside[:, None])
    if H > 0:
        h = tl.arange(0, H)
        w = tl.load(W + h[None, :] * C + c[:, None], mask=(h < heads)[None, :], other=0.0)
        scores = tl.dot(x, w, input_precision=PRECISION)
        j = place % n
        i = (place // n) % n
        sample = place // n // n
        if TRANSPOSED:
            key, flat = i, j * n + i
        else:
            key, flat = j, i * n + j
        masked = tl.load(MASK + sample * n + key, mask=inside, other=1.0).to(tl.float32)
        scores += ((1.0 - masked) * -1e9)[:, None]
        out = BIAS + sample[:, None] * n * n * heads + h[None, :].to(tl.int64) * n * n + flat[:, None]
        tl.store(out, scores.to(BIAS.dtype.element_ty), mask=inside[:, None] & (h < heads)[None, :])


@triton.jit
def _multiply_in(
    Z, X, AB, GAIN, SHIFT, W, WB, MASK, n, m, eps,
    C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    LOG2E: tl.constexpr = 1.4426950408889634
    i = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2).to(tl.int64)
    j = tl.program_id(0) * BP + tl.arange(0, BP)
    c, t = tl.arange(0, C), tl.arange(0, BC)
    inside = j < n
    start = (sample * n + i) * n * C
    at = j[:, None] * C + c[None, :]
    z = tl.load(Z + start + at, mask=inside[:, None], other=0.0).to(tl.float32)
    x = _normalised(z, tl.load(GAIN + c).to(tl.float32), tl.load(SHIFT + c).to(tl.float32), eps, C)
    x = x.to(X.dtype.element_ty)
    tl.store(X + start + at, x, mask=inside[:, None])
    real = tl.load(MASK + sample * n + i).to(tl.float32)
    real = real * tl.load(MASK + sample * n + j, mask=inside, other=0.0).to(tl.float32)
    out = AB + sample * (2 * C) * m * m + i * m
    planes = t[None, :] * (m * m) + j[:, None]
    w_at = t[None, :] * C + c[:, None]
    for channel in range(0, 2 * C, BC):
        p = tl.dot(x, tl.load(W + channel * C + w_at), input_precision=PRECISION)
        p += tl.load(WB + channel + t).to(tl.float32)[None, :]
        g = tl.dot(x, tl.load(W + (channel + 2 * C) * C + w_at), input_precision=PRECISION)
        g += tl.load(WB + 2 * C + channel + t).to(tl.float32)[None, :]
        value = p / (1.0 + tl.exp2(-g * LOG2E)) * real[:, None]
        tl.store(out + planes, value.to(AB.dtype.element_ty), mask=(j < m)[:, None])
        out += m * m * BC


@triton.jit
def _multiply_out(
    Z, X, P, GAIN, SHIFT, WZ, BZ, WG, BG, n, m, eps, C: tl.constexpr, BP: tl.constexpr, PRECISION: tl.constexpr
):
    LOG2E: tl.constexpr = 1.4426950408889634
    i = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2).to(tl.int64)
    j = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.arange(0, C)
    inside = (j < n)[:, None]
    start = (sample * n + i) * n * C
    at = j[:, None] * C + c[None, :]
    p = tl.load(P + sample * C * m * m + i * m + (c[None, :] * (m * m) + j[:, None]), mask=inside, other=0.0).to(
        tl.float32
    )
    y = _normalised(p, tl.load(GAIN + c).to(tl.float32), tl.load(SHIFT + c).to(tl.float32), eps, C)
    w_at = c[None, :] * C + c[:, None]
    kind = WZ.dtype.element_ty
    u = tl.dot(y.to(kind), tl.load(WZ + w_at), input_precision=PRECISION) + tl.load(BZ + c).to(tl.float32)[None, :]
    x = tl.load(X + start + at, mask=inside, other=0.0)
    g = tl.dot(x, tl.load(WG + w_at), input_precision=PRECISION) + tl.load(BG + c).to(tl.float32)[None, :]
    z = tl.load(Z + start + at, mask=inside, other=0.0).to(tl.float32)
    z += u / (1.0 + tl.exp2(-g * LOG2E))
    tl.store(Z + start + at, z.to(Z.dtype.element_ty), mask=inside)


@triton.jit
def _transition_kernel(
    Z, GAIN, SHIFT, W1, B1, W2, B2, count, eps,
    C: tl.constexpr, INNER: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BM
    row = tl.arange(0, BM)
    inside = (first + row < count)[:, None]
    Z += first * C
    c, h = tl.arange(0, C), tl.arange(0, BH)
    at = row[:, None] * C + c[None, :]
    z = tl.load(Z + at, mask=inside, other=0.0).to(tl.float32)
    x = _normalised(z, tl.load(GAIN + c).to(tl.float32), tl.load(SHIFT + c).to(tl.float32), eps, C)
    x = x.to(W1.dtype.element_ty)
    acc = tl.zeros([BM, C], tl.float32) + tl.load(B2 + c).to(tl.float32)[None, :]
    for start in range(0, INNER, BH):
        w = tl.load(W1 + (start + h)[None, :] * C + c[:, None])
        y = tl.dot(x, w, input_precision=PRECISION) + tl.load(B1 + start + h).to(tl.float32)[None, :]
        w = tl.load(W2 + c[None, :] * INNER + (start + h)[:, None])
        acc = tl.dot(tl.maximum(y, 0.0).to(x.dtype), w, acc, input_precision=PRECISION)
    # Read again rather than held: the sums need the registers.
    z = tl.load(Z + at, mask=inside, other=0.0).to(tl.float32) + acc
    tl.store(Z + at, z.to(Z.dtype.element_ty), mask=inside)


@triton.jit
def _linear_add(Z, X, W, BIAS, count, C: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BM
    row = tl.arange(0, BM)
    inside = (first + row < count)[:, None]
    Z += first * C
    c, k = tl.arange(0, C), tl.arange(0, K)
    x = tl.load(X + first * K + row[:, None] * K + k[None, :], mask=inside, other=0.0)
    u = tl.dot(x, tl.load(W + c[None, :] * K + k[:, None]), input_precision=PRECISION)
    at = row[:, None] * C + c[None, :]
    z = tl.load(Z + at, mask=inside, other=0.0).to(tl.float32) + u + tl.load(BIAS + c).to(tl.float32)[None, :]
    tl.store(Z + at, z.to(Z.dtype.element_ty), mask=inside)


@triton.jit
def _outer_add(Z, QK, W, BIAS, n, C: tl.constexpr, K: tl.constexpr, BP: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2).to(tl.int64)
    j = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = (j < n)[:, None]
    c, k = tl.arange(0, C), tl.arange(0, K)
    q = tl.load(QK + (sample * n + j)[:, None] * (2 * K) + k[None, :], mask=inside, other=0.0).to(tl.float32)
    left = tl.load(QK + (sample * n + i) * (2 * K) + K + k).to(tl.float32)[None, :]
    w_at = c[None, :] * (2 * K) + k[:, None]
    kind = W.dtype.element_ty
    u = tl.dot((q * left).to(kind), tl.load(W + w_at), input_precision=PRECISION)
    u = tl.dot((q - left).to(kind), tl.load(W + K + w_at), u, input_precision=PRECISION)
    at = (sample * n + i) * n * C + j[:, None] * C + c[None, :]
    z = tl.load(Z + at, mask=inside, other=0.0).to(tl.float32) + u + tl.load(BIAS + c).to(tl.float32)[None, :]
    tl.store(Z + at, z.to(Z.dtype.element_ty), mask=inside)


def norm(z: Tensor, gain: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm of `z` `(..., c)`, contiguous, in `dtype`; statistics in fp32."""
    c = z.shape[-1]
    x = torch.empty_like(z, dtype=dtype)
    count = z.numel() // c
    bm = max(1, 4096 // c)
    _norm_kernel[(triton.cdiv(count, bm),)](
        z,
        x,
        gain,
        shift,
        gain,
        x,
        x,
        count,
        1,
        1,
        eps,
        C=c,
        H=0,
        BM=bm,
        STORE=True,
        TRANSPOSED=False,
        PRECISION="ieee",
    )
    return x


def norm_and_bias(
    z: Tensor,
    gain: Tensor,
    shift: Tensor,
    eps: float,
    weight: Tensor,
    mask: Tensor,
    *,
    transposed: bool = False,
    keep: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Layer norm of the pair state, and the attention bias that is projected from it.

    Args:
        z: `(b, n, n, c)`, contiguous.
        gain: `(c,)`.
        shift: `(c,)`.
        eps: Added to the variance.
        weight: `(h, c)`; its format is that of the results.
        mask: `(b, n)`, 1 at real residues; other keys get -1e9.
        transposed: The bias of pair `(i, j)` is that of query `j` and key `i`.
        keep: False returns no norm.

    Returns:
        `(b, n, n, c)` or None, and `(b, h, n, n)`.
    """
    b, n, _, c = z.shape
    heads = weight.shape[0]
    x = torch.empty_like(z, dtype=weight.dtype) if keep else None
    bias = z.new_empty((b, heads, n, n), dtype=weight.dtype)
    count = b * n * n
    _norm_kernel[(triton.cdiv(count, 32),)](
        z, x if keep else bias, gain, shift, weight, bias, mask, count, n, heads, eps,
        C=c, H=max(16, triton.next_power_of_2(heads)), BM=32, STORE=keep,
        TRANSPOSED=transposed, PRECISION=_precision(weight),
    )  # fmt: skip
    return x, bias


@dataclass(frozen=True)
class PackedMultiplication:
    """Weights of a triangle multiplication; those of the operands are both projections, then both gates."""

    norm: Norm
    operands: Layer
    norm_out: Norm
    out: Layer
    gate: Layer


def multiply_(
    z: Tensor, mask: Tensor, w: PackedMultiplication, *, outgoing: bool, keep: bool = False
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Add a triangle multiplicative update to the pair state in place (AlphaFold 2 supplement, Algorithms 11 and 12).

    Args:
        z: `(b, n, n, c)`, contiguous.
        mask: `(b, n)`, 1 at real residues.
        w: The weights.
        outgoing: Which of the two algorithms.
        keep: Return what the backward pass needs.

    Returns:
        None, or the norm `(b, n, n, c)`, the operands `(b, 2 c, m, m)` and their product `(b, c, m, m)`.
    """
    x, operands = operands_of(z, mask, w)
    product = product_of(operands, outgoing=outgoing)
    kept = (x, operands, product) if keep else None
    del operands
    b, n, _, c = z.shape
    block = _block(w.out[0])
    _multiply_out[(triton.cdiv(n, block), n, b)](
        z, x, product, *w.norm_out[:2], *w.out, *w.gate, n, product.shape[-1], w.norm_out[2],
        C=c, BP=block, PRECISION=_precision(x), num_warps=4, num_stages=2,
    )  # fmt: skip
    return kept


def _block(weight: Tensor) -> int:
    """Positions that a program works on."""
    return 64 if weight.element_size() == 2 else 32


def operands_of(z: Tensor, mask: Tensor, w: PackedMultiplication) -> tuple[Tensor, Tensor]:
    """The norm `(b, n, n, c)` of the pair state, and both operands `(b, 2 c, m, m)`, masked, one after the other."""
    b, n, _, c = z.shape
    weight = w.operands[0]
    # Rows of a multiple of 16 bytes: what matrix products need to run at full speed.
    m = triton.cdiv(n, 8) * 8
    x = torch.empty_like(z, dtype=weight.dtype)
    operands = z.new_empty((b, 2 * c, m, m), dtype=weight.dtype)
    if m > n:
        operands[:, :, n:] = 0
    block = _block(weight)
    _multiply_in[(triton.cdiv(m, block), n, b)](
        z, x, operands, *w.norm[:2], *w.operands, mask, n, m, w.norm[2],
        C=c, BP=block, BC=min(64, c), PRECISION=_precision(weight), num_warps=4, num_stages=2,
    )  # fmt: skip
    return x, operands


def product_of(operands: Tensor, *, outgoing: bool) -> Tensor:
    """Sums over the third residue, `(b, c, m, m)`."""
    left, right = operands.chunk(2, dim=1)
    return left @ right.transpose(-1, -2) if outgoing else left.transpose(-1, -2) @ right


def product_gradients(operands: Tensor, grad: Tensor, *, outgoing: bool) -> Tensor:
    """Gradient `(b, 2 c, m, m)` of both operands from that of `product_of` them, `(b, c, m, m)`."""
    left, right = operands.chunk(2, dim=1)
    grads = torch.empty_like(operands)
    sides = ((grad, right), (grad.mT, left)) if outgoing else ((right, grad.mT), (left, grad))
    for out, (one, other) in zip(grads.chunk(2, dim=1), sides):
        torch.matmul(one, other, out=out) if len(out) == 1 else out.copy_(one @ other)
    return grads


def transition_(
    z: Tensor, gain: Tensor, shift: Tensor, eps: float, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> None:
    """Add `w2 relu(w1 norm(z) + b1) + b2` to `z` `(..., c)` in place; `w1` `(k, c)`, `w2` `(c, k)`."""
    c, inner = z.shape[-1], w1.shape[0]
    count = z.numel() // c
    half = w1.element_size() == 2
    bm = 64 if half else 32
    _transition_kernel[(triton.cdiv(count, bm),)](
        z, gain, shift, w1, b1, w2, b2, count, eps,
        C=c, INNER=inner, BM=bm, BH=min(64 if half else 32, inner), PRECISION=_precision(w1), num_warps=4, num_stages=2,
    )  # fmt: skip


def linear_add_(z: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Add `weight x + bias` to `z` `(..., c)` in place; `x` `(..., k)` contiguous, `weight` `(c, k)`."""
    c, k = weight.shape
    count = z.numel() // c
    bm = 64 if weight.element_size() == 2 else 32
    _linear_add[(triton.cdiv(count, bm),)](
        z, x, weight, bias, count, C=c, K=k, BM=bm, PRECISION=_precision(weight), num_warps=4, num_stages=2
    )


def outer_add_(z: Tensor, qk: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Add `weight [q_j k_i, q_j - k_i] + bias` to every pair of `z` `(b, n, n, c)`; `qk` `(b, n, 2 k)`."""
    b, n, _, c = z.shape
    bp = 64 if weight.element_size() == 2 else 32
    _outer_add[(triton.cdiv(n, bp), n, b)](
        z, qk, weight, bias, n, C=c, K=qk.shape[-1] // 2, BP=bp, PRECISION=_precision(weight), num_warps=4, num_stages=2
    )

"""Triangle attention as one pass over the keys, without the scores: a Triton kernel.

Every row of the pair state attends along itself under one bias that all rows share. The kernel keeps a running softmax
(Milakov and Gimelshein 2018; Dao et al. 2022) and writes each query's log-sum-exp for the backward pass, which is in
`triton_attention_backward`. Scores and sums are fp32 whatever the inputs are.

Axis letters: `b` batch, `r` rows, `n` residues, `h` heads, `d` head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD_WIDTHS = (16, 32, 64)


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its work: queries and keys at a time, warps, and stages of its loop's loads."""

    queries: int
    keys: int
    warps: int
    stages: int


# No tuning at run time: each of these compiles in seconds, spills no registers on sm_90 for 16-bit inputs, and serves
# every length. The wide tile reads keys half as often; a short sequence would leave half of it empty.
TILES = {
    "forward": Tile(128, 64, 8, 3),
    "forward, short": Tile(64, 64, 4, 3),
    "backward": Tile(64, 64, 4, 2),
    "forward, fp32": Tile(64, 32, 4, 2),
    "backward, fp32": Tile(32, 32, 4, 2),
}


@triton.jit
def _forward(
    X, B, O, LSE, n, rows, heads, scale,
    x_b, x_r, x_n, x_t, o_b, o_r, o_n,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr, GATE: tl.constexpr, SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    LOG2E: tl.constexpr = 1.4426950408889634
    # One axis of the grid: the others hold 65,535 programs, fewer than the rows of a batch can need.
    tiles = tl.cdiv(n, BM)
    group = tl.program_id(0) // tiles
    head = group % heads
    row = (group // heads) % rows
    sample = (group // (heads * rows)).to(tl.int64)
    first = (tl.program_id(0) % tiles * BM).to(tl.int64)
    # Starts are 64-bit scalars; tiles are addressed from them by small 32-bit offsets, which saves registers.
    x = X + sample * x_b + row.to(tl.int64) * x_r + head * D
    bias = B + ((sample * heads + head) * n + first) * n
    m, c, d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, D)
    i_in = first + m < n
    x_m = m[:, None] * x_n + d[None, :]
    x_c = c[:, None] * x_n + d[None, :]
    b_mc = m[:, None] * n + c[None, :]
    q = tl.load(x + first * x_n + x_m, mask=i_in[:, None], other=0.0)
    acc = tl.zeros([BM, D], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    keys = x + x_t
    for start in range(0, n, BN):
        if EVEN:
            k = tl.load(keys + x_c)
            v = tl.load(keys + x_t + x_c)
            b = tl.load(bias + start + b_mc, mask=i_in[:, None], other=0.0)
        else:
            j_in = start + c < n
            k = tl.load(keys + x_c, mask=j_in[:, None], other=0.0)
            v = tl.load(keys + x_t + x_c, mask=j_in[:, None], other=0.0)
            b = tl.load(bias + start + b_mc, mask=i_in[:, None] & j_in[None, :], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E) + b.to(tl.float32) * LOG2E
        if not EVEN:
            s = tl.where((start + c < n)[None, :], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        shrink = tl.exp2(top - new_top)
        p = tl.exp2(s - new_top[:, None])
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        top = new_top
        keys += x_n * BN
    acc = acc / total[:, None]
    if GATE:
        gate = tl.load(x + 3 * x_t + first * x_n + x_m, mask=i_in[:, None], other=0.0).to(tl.float32)
        acc = acc / (1.0 + tl.exp2(-gate * LOG2E))
    out = O + sample * o_b + row.to(tl.int64) * o_r + head * D + first * o_n
    tl.store(out + m[:, None] * o_n + d[None, :], acc.to(O.dtype.element_ty), mask=i_in[:, None])
    if SAVE:
        tl.store(LSE + group.to(tl.int64) * n + first + m, top + tl.log2(total), mask=i_in)


def _precision(x: Tensor) -> str:
    """How fp32 tiles are multiplied: exactly, unless the user allowed TF32."""
    return "tf32" if x.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _like(x: Tensor, *inner: int) -> Tensor:
    """An empty `(b, r, n, *inner)` whose rows and residues lie in memory in the order of `x` `(b, r, n, ...)`."""
    b, r, n = x.shape[:3]
    if x.stride(1) < x.stride(2):
        return x.new_empty((b, n, r, *inner)).transpose(1, 2)
    return x.new_empty((b, r, n, *inner))


def supports(width: int, device: torch.device) -> bool:
    """Whether the kernels take heads of this width on this device."""
    return width in HEAD_WIDTHS and device.type == "cuda"


def attend_rows(x: Tensor, bias: Tensor, scale: float, *, save: bool = False) -> tuple[Tensor, Tensor | None]:
    """The forward pass, nothing recorded.

    Args:
        x: `(b, r, n, 3 or 4, h, d)` queries, keys, values and, where there is a fourth, gates whose sigmoid multiplies
            the result; the last two axes contiguous.
        bias: `(b, h, n, n)` added to the scaled scores of every row, contiguous.
        scale: Factor of the scores.
        save: Also return what the backward pass needs.

    Returns:
        `(b, r, n, h, d)`, and the log-sum-exps `(b, r, h, n)` to base 2 if asked for.
    """
    b, r, n, slots, h, d = x.shape
    out = _like(x, h, d)
    sums = torch.empty((b, r, h, n), dtype=torch.float32, device=x.device) if save else None
    name = "forward, fp32" if x.element_size() == 4 else "forward" if n > 64 else "forward, short"
    tile = TILES[name]
    bn = tile.keys
    _forward[(triton.cdiv(n, tile.queries) * b * r * h,)](
        x, bias, out, sums if save else out, n, r, h, scale,
        x.stride(0), x.stride(1), x.stride(2), x.stride(3), out.stride(0), out.stride(1), out.stride(2),
        D=d, BM=tile.queries, BN=bn, EVEN=n % bn == 0, GATE=slots == 4, SAVE=save, PRECISION=_precision(x),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, sums

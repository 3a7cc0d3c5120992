"""A trunk block in training on a GPU, its weights frozen: forward as at inference, gradients by kernels of their own.

The block keeps its two inputs and nothing else. Its backward pass computes it again, which costs as much as inference
does, and goes back through it with one gradient of the pair state that every part adds its share to. So it takes less
time than a block that keeps everything, and the memory of one that is checkpointed.

Axis letters: `b` batch, `n` residues, `c` channels, `h` heads, `d` head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from protfold_peft.folding.kernels import triton_pair as pair
from protfold_peft.folding.kernels import triton_pair_backward as back
from protfold_peft.folding.kernels.fast_block import PackedAttention, PackedBlock, layers, supported, update
from protfold_peft.folding.kernels.triton_attention import attend_rows
from protfold_peft.folding.kernels.triton_attention_backward import attend_rows_backward, row_sums, triangle_attention


class FrozenBlock:
    """Blocks of one trunk whose weights ask for no gradient; one set of packed weights serves all in turn."""

    def __init__(self) -> None:
        self._packed: PackedBlock | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenBlock:
        return FrozenBlock()

    def __reduce__(self) -> tuple[type[FrozenBlock], tuple[()]]:
        return FrozenBlock, ()

    def weights(self, block: Any, dtype: torch.dtype) -> PackedBlock:
        """The weights of a block, valid until the next call."""
        packed = self._packed
        if packed is None or packed.kind != (dtype, block.layernorm_1.weight.device):
            self._packed = packed = PackedBlock(block, dtype)
        else:
            packed.fill(block)
        return packed

    def __call__(self, block: Any, s: Tensor, z: Tensor, mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The block's new states, differentiable in the old ones; see `TrunkBlock.forward`."""
        return _Block.apply(s, z, mask, block, self, dtype)


def frozen(block: Any) -> bool:
    """Whether a block is `supported` and none of its weights asks for a gradient."""
    return supported(block) and not any(
        tensor is not None and tensor.requires_grad for layer in layers(block) for tensor in layer._parameters.values()
    )


class _Block(torch.autograd.Function):
    """A block of `(s, z, mask)`."""

    @staticmethod
    def forward(
        ctx: Any, s: Tensor, z: Tensor, mask: Tensor, block: Any, blocks: FrozenBlock, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The new states; only the old ones are kept."""
        ctx.save_for_backward(s, z, mask)
        ctx.block, ctx.blocks, ctx.dtype = block, blocks, dtype
        with torch.autocast(s.device.type, enabled=False):
            new_z = z.clone(memory_format=torch.contiguous_format)
            return update(s, new_z, mask, blocks.weights(block, dtype)), new_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_s: Tensor, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the old states; the block is computed once more on the way."""
        s, z, mask = ctx.saved_tensors
        with torch.autocast(s.device.type, enabled=False):
            weights = ctx.blocks.weights(ctx.block, ctx.dtype)
            g = grad_z.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            return (*_backward(s, z.contiguous(), mask, grad_s, g, weights), None, None, None, None)


def _backward(s: Tensor, z: Tensor, mask: Tensor, grad_s: Tensor, g: Tensor, w: PackedBlock) -> tuple[Tensor, Tensor]:
    """Gradients of the old states from those of the new; `g`, of the pair state, is overwritten."""
    _, bias = pair.norm_and_bias(z, *w.pair_bias_norm, w.pair_bias, mask, keep=False)
    with torch.enable_grad():
        leaves = (s.detach().requires_grad_(True), bias.requires_grad_(True))
        sequence = _sequence(*leaves, w)

    # The pair state before each part, and what the part's backward pass needs.
    states = [z.clone()]
    pair.outer_add_(states[0], sequence[1].detach(), *w.to_pair_out)
    products: list[tuple[Tensor, Tensor, Tensor]] = []
    for multiplication, outgoing in zip(w.multiplications, (True, False)):
        states.append(states[-1].clone())
        kept = pair.multiply_(states[-1], mask, multiplication, outgoing=outgoing, keep=True)
        assert kept is not None
        products.append(kept)
    attended = []
    for attention, starting in zip(w.attentions, (True, False)):
        states.append(states[-1].clone())
        attended.append(_attend_(states[-1], mask, attention, starting=starting))

    back.transition_backward_(g, states.pop(), *w.pair_mlp)
    for attention, starting in zip(reversed(w.attentions), (False, True)):
        _attend_backward_(g, states.pop(), attended.pop(), attention, starting=starting)
    for multiplication, outgoing in zip(reversed(w.multiplications), (False, True)):
        back.multiply_backward_(g, states.pop(), mask, products.pop(), multiplication, outgoing=outgoing)
    grad_qk = _outer_backward(g, sequence[1].detach(), w.to_pair_out[0])
    grad_s, grad_bias = torch.autograd.grad(sequence, leaves, (grad_s, grad_qk))
    back.norm_and_bias_backward_(g, z, w.pair_bias_norm, w.pair_bias, grad_bias.float(), None)
    return grad_s, g


def _sequence(s: Tensor, bias: Tensor, w: PackedBlock) -> tuple[Tensor, Tensor]:
    """The new sequence state `(b, n, c)` and what the pair state takes from it, differentiable: it is small."""
    b, n, _ = s.shape
    dtype = bias.dtype

    def norm(x: Tensor, weights: pair.Norm) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *weights).to(dtype)

    x = F.linear(norm(s, w.sequence_norm), *w.sequence_projections)
    qkv, gate = x.split((x.shape[-1] // 4 * 3, x.shape[-1] // 4), dim=-1)
    qkv = qkv.view(b, 1, n, 3, w.sequence_heads, -1)
    y = triangle_attention(qkv, bias, qkv.shape[-1] ** -0.5).reshape(b, n, -1) * gate.sigmoid()
    s = s + F.linear(y, *w.sequence_out)
    first_norm, first, second = w.sequence_mlp
    s = s + F.linear(F.linear(norm(s, first_norm), *first).relu(), *second)
    return s, F.linear(norm(s, w.to_pair_norm), *w.to_pair)


def _outer_backward(g: Tensor, qk: Tensor, weight: Tensor) -> Tensor:
    """Gradient of `qk` `(b, n, 2 k)` in `outer_add_` from that of the pair state, `(b, n, n, c)`."""
    q, k = qk.chunk(2, dim=-1)
    by_product, by_difference = weight.chunk(2, dim=-1)
    grad = g.to(weight.dtype) @ by_product
    # Sums over a residue of the other side; differences need no more than the sums of `g` itself.
    grad_q = (grad * k[:, :, None]).sum(1, dtype=torch.float32) + g.sum(1) @ by_difference.float()
    grad_k = (grad * q[:, None]).sum(2, dtype=torch.float32) - g.sum(2) @ by_difference.float()
    return torch.cat((grad_q, grad_k), dim=-1).to(qk.dtype)


Attended = tuple[Tensor, Tensor, Tensor, Tensor]


def _views(x: Tensor, w: PackedAttention, starting: bool) -> Tensor:
    """Projections `(b, n, n, 4 c)` as `(b, r, n, 4, h, d)`."""
    x = x.unflatten(-1, (4, w.heads, -1))
    return x if starting else x.transpose(1, 2)


def _attend_(z: Tensor, mask: Tensor, w: PackedAttention, *, starting: bool) -> Attended:
    """Add triangle attention to `z` in place; projections, bias, result and log-sum-exps are returned."""
    x, bias = pair.norm_and_bias(z, *w.norm, w.bias, mask, transposed=not starting)
    assert x is not None
    projected = F.linear(x, *w.projections)
    views = _views(projected, w, starting)
    out, sums = attend_rows(views, bias, views.shape[-1] ** -0.5, save=True)
    assert sums is not None
    pair.linear_add_(z, (out if starting else out.transpose(1, 2)).flatten(-2), *w.out)
    return projected, bias, out, sums


def _attend_backward_(g: Tensor, z: Tensor, kept: Attended, w: PackedAttention, *, starting: bool) -> None:
    """Add to `g` what `_attend_` of `z` passes back."""
    projected, bias, out, sums = kept
    views = _views(projected, w, starting)
    flat = (out if starting else out.transpose(1, 2)).flatten(-2)
    grad = g.to(flat.dtype) @ w.out[0]
    by_head = grad.unflatten(-1, (w.heads, -1))
    by_head = by_head if starting else by_head.transpose(1, 2)
    delta = row_sums(out, by_head)
    grad_projected = torch.empty_like(projected)
    back.gate_backward_(grad, flat, projected, grad_projected)
    _, grad_bias = attend_rows_backward(
        views, bias, out, sums, by_head, views.shape[-1] ** -0.5,
        delta=delta, grad_x=_views(grad_projected, w, starting),
    )  # fmt: skip
    assert grad_bias is not None
    grad_x = grad_projected @ w.projections[0]
    back.norm_and_bias_backward_(g, z, w.norm, w.bias, grad_bias, grad_x, transposed=not starting)

"""A trunk block at inference on a GPU: the same numbers as `TrunkBlock`, in a third of the kernels.

The weights are copied out of their modules in each forward pass, in the format of the products and with those that
share an input laid end to end, so that no change of a weight is missed. Blocks with modules
that are not plain layers (adapters, quantised weights, offloading) take the plain way.

Axis letters: `b` batch, `n` residues, `c` channels, `h` heads, `d` head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protfold_peft.folding.kernels import triton_pair as pair
from protfold_peft.folding.kernels.choose import attention_kernel, cuequivariance_attention
from protfold_peft.folding.kernels.linear import is_plain
from protfold_peft.folding.kernels.triton_attention import HEAD_WIDTHS, attend_rows
from protfold_peft.folding.kernels.triton_pair import Layer, Norm, PackedMultiplication

# Residues up to which the kernels' 32-bit offsets reach: `c m m` below 2^31.
LONGEST = 4088
# Elements of the projections of triangle attention made at once: 256 MiB in bf16, all rows up to 512 residues.
_PROJECTIONS = 2**27


def layers(block: Any) -> list[nn.Module]:
    """Every layer with weights of a trunk block."""
    found = [block.layernorm_1, block.seq_attention.proj, block.seq_attention.g_proj, block.seq_attention.o_proj]
    found += [block.pair_to_sequence.layernorm, block.pair_to_sequence.linear]
    found += [block.sequence_to_pair.layernorm, block.sequence_to_pair.proj, block.sequence_to_pair.o_proj]
    found += [mlp.mlp[i] for mlp in (block.mlp_seq, block.mlp_pair) for i in (0, 1, 3)]
    for m in (block.tri_mul_out, block.tri_mul_in):
        found += [m.layer_norm_in, m.linear_a_p, m.linear_b_p, m.linear_a_g, m.linear_b_g, m.layer_norm_out]
        found += [m.linear_z, m.linear_g]
    for a in (block.tri_att_start, block.tri_att_end):
        found += [
            a.layer_norm,
            a.linear,
            a.mha.linear_q,
            a.mha.linear_k,
            a.mha.linear_v,
            a.mha.linear_g,
            a.mha.linear_o,
        ]
    return found


def supported(block: Any) -> bool:
    """Whether the kernels can stand in for a block's modules."""
    try:
        found = layers(block)
    except (AttributeError, TypeError):  # a wrapper that lacks the parts of what it wraps
        return False
    if not all(map(is_plain, found)) or (block.training and block.drop.p > 0):
        return False
    pair_widths = (block.tri_mul_out.linear_z.in_features, block.sequence_to_pair.o_proj.in_features // 2)
    widths = (*pair_widths, block.mlp_pair.mlp[1].out_features, block.layernorm_1.normalized_shape[0])
    mha, attention = block.tri_att_start.mha, block.seq_attention
    return (
        all(width >= 16 and width & (width - 1) == 0 for width in widths)
        and mha.linear_q.out_features // mha.no_heads in HEAD_WIDTHS
        and attention.head_width in HEAD_WIDTHS
    )


@dataclass(frozen=True)
class PackedAttention:
    """Weights of a triangle attention."""

    norm: Norm
    bias: Tensor
    projections: Layer
    out: Layer
    heads: int


class PackedBlock:
    """Weights of a trunk block in the format of its products, those of an input end to end; norms in their own format.

    Args:
        block: A block that is `supported`, or another of the same shapes.
        dtype: The format of the products.
    """

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        self.kind = (dtype, block.layernorm_1.weight.device)
        self._dtype = dtype
        self._targets: list[Tensor] = []
        self._norm_targets: list[Tensor] = []
        attention, to_pair = block.seq_attention, block.sequence_to_pair
        self.sequence_norm = self._norm(block.layernorm_1)
        # Stock order is, head by head, query, key, value; the kernels want all queries, all keys, all values, gates.
        weight = attention.proj.weight
        rows, c = len(weight), weight.shape[1]
        self.sequence_projections = (
            weight.new_empty((rows + rows // 3, c), dtype=dtype),
            weight.new_zeros(rows + rows // 3, dtype=dtype),
        )
        self._by_head = self.sequence_projections[0][:rows].view(3, attention.num_heads, -1, c).transpose(0, 1)
        self._targets += [part[rows:] for part in self.sequence_projections]
        self.sequence_out = self._linear(attention.o_proj)
        self.sequence_heads: int = attention.num_heads
        self.pair_bias_norm = self._norm(block.pair_to_sequence.layernorm)
        self.pair_bias = self._linear(block.pair_to_sequence.linear)[0]
        self.to_pair_norm = self._norm(to_pair.layernorm)
        self.to_pair = self._linear(to_pair.proj)
        self.to_pair_out = self._linear(to_pair.o_proj)
        self.sequence_mlp, self.pair_mlp = (
            (self._norm(mlp[0]), self._linear(mlp[1]), self._linear(mlp[3]))
            for mlp in (block.mlp_seq.mlp, block.mlp_pair.mlp)
        )
        self.multiplications = tuple(
            PackedMultiplication(
                norm=self._norm(m.layer_norm_in),
                operands=self._linear(m.linear_a_p, m.linear_b_p, m.linear_a_g, m.linear_b_g),
                norm_out=self._norm(m.layer_norm_out),
                out=self._linear(m.linear_z),
                gate=self._linear(m.linear_g),
            )
            for m in (block.tri_mul_out, block.tri_mul_in)
        )
        self.attentions = tuple(
            PackedAttention(
                norm=self._norm(a.layer_norm),
                bias=self._linear(a.linear)[0],
                projections=self._linear(a.mha.linear_q, a.mha.linear_k, a.mha.linear_v, a.mha.linear_g),
                out=self._linear(a.mha.linear_o),
                heads=a.mha.no_heads,
            )
            for a in (block.tri_att_start, block.tri_att_end)
        )
        self.fill(block)

    def _norm(self, module: Any) -> Norm:
        parts = torch.empty_like(module.weight, requires_grad=False), torch.empty_like(module.bias, requires_grad=False)
        self._norm_targets += parts
        return (*parts, module.eps)

    def _linear(self, *modules: Any) -> Layer:
        """Room for layers that share an input, end to end; zeros where a layer has no bias."""
        first = modules[0].weight
        ends = [module.weight.shape[0] for module in modules]
        weight = first.new_empty((sum(ends), first.shape[1]), dtype=self._dtype)
        bias = first.new_zeros(sum(ends), dtype=self._dtype)
        for module, w, b in zip(modules, weight.split(ends), bias.split(ends)):
            self._targets += [w] if module.bias is None else [w, b]
        return weight, bias

    def fill(self, block: Any) -> None:
        """Take the weights that a block of the same shapes has now."""
        copy_weights([self], [block])

    def pairs(self, block: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """What is copied where: tensors of the products' format and their sources, norms and their sources."""
        attention, to_pair = block.seq_attention, block.sequence_to_pair
        order = [attention.g_proj, attention.o_proj, block.pair_to_sequence.linear, to_pair.proj, to_pair.o_proj]
        norms = [block.layernorm_1, block.pair_to_sequence.layernorm, to_pair.layernorm]
        for mlp in (block.mlp_seq.mlp, block.mlp_pair.mlp):
            norms.append(mlp[0])
            order += [mlp[1], mlp[3]]
        for m in (block.tri_mul_out, block.tri_mul_in):
            norms += [m.layer_norm_in, m.layer_norm_out]
            order += [m.linear_a_p, m.linear_b_p, m.linear_a_g, m.linear_b_g, m.linear_z, m.linear_g]
        for a in (block.tri_att_start, block.tri_att_end):
            norms.append(a.layer_norm)
            order += [a.linear, a.mha.linear_q, a.mha.linear_k, a.mha.linear_v, a.mha.linear_g, a.mha.linear_o]
        sources = [tensor for module in order for tensor in (module.weight, module.bias) if tensor is not None]
        return self._targets, sources, self._norm_targets, [t for norm in norms for t in (norm.weight, norm.bias)]


@torch.no_grad()
def copy_weights(packed: list[PackedBlock], blocks: Any) -> None:
    """Fill every packed block from its block, in a few kernels for all of them together."""
    every = [weights.pairs(block) for weights, block in zip(packed, blocks)]
    for target, source in ((0, 1), (2, 3)):
        torch._foreach_copy_(
            [t for pairs in every for t in pairs[target]], [t for pairs in every for t in pairs[source]]
        )
    for weights, block in zip(packed, blocks):
        weights._by_head.copy_(block.seq_attention.proj.weight.unflatten(0, (block.seq_attention.num_heads, 3, -1)))


def _update_sequence(s: Tensor, z: Tensor, mask: Tensor, w: PackedBlock) -> Tensor:
    """The sequence state `(b, n, c)` after attention, biased by `z`, and its transition."""
    b, n, _ = s.shape
    dtype = w.pair_bias.dtype
    _, bias = pair.norm_and_bias(z, *w.pair_bias_norm, w.pair_bias, mask, keep=False)
    x = F.linear(pair.norm(s, *w.sequence_norm, dtype), *w.sequence_projections)
    x = x.view(b, 1, n, 4, w.sequence_heads, -1)
    y = attend_rows(x, bias, x.shape[-1] ** -0.5)[0]
    s = s + F.linear(y.view(b, n, -1), *w.sequence_out)
    norm, (w1, b1), second = w.sequence_mlp
    hidden = torch._addmm_activation(b1, pair.norm(s, *norm, dtype).flatten(0, 1), w1.t())  # ReLU in the product
    return s + F.linear(hidden, *second).view_as(s)


def _attend_(z: Tensor, mask: Tensor, w: PackedAttention, *, starting: bool) -> None:
    """Add triangle attention to `z` `(b, n, n, c)` in place."""
    b, n = z.shape[:2]
    x, bias = pair.norm_and_bias(z, *w.norm, w.bias, mask, transposed=not starting)
    assert x is not None
    inner = w.projections[0].shape[0]
    scale = (inner // 4 // w.heads) ** -0.5
    rows = max(1, _PROJECTIONS // (b * n * inner))
    out = x if rows < n else None
    for start in range(0, n, rows):
        # Ending: attention runs down the columns; only strides tell.
        part = x[:, start : start + rows] if starting else x[:, :, start : start + rows]
        projected = F.linear(part, *w.projections).unflatten(-1, (4, w.heads, -1))
        projected = projected if starting else projected.transpose(1, 2)
        if attention_kernel(z.device, projected.dtype, projected.shape[-1]) == "cuequivariance":
            o = cuequivariance_attention(projected, bias, scale).flatten(-2)
        else:
            o = attend_rows(projected, bias, scale)[0].flatten(-2)
        o = o if starting else o.transpose(1, 2)
        if out is None:
            x = o.contiguous()
        else:  # these rows of `x` have served
            part.copy_(o)
    pair.linear_add_(z, x, *w.out)


def update(s: Tensor, z: Tensor, mask: Tensor, w: PackedBlock) -> Tensor:
    """A block: `z` `(b, n, n, c)`, contiguous, is updated in place; the new `s` `(b, n, c)` is returned.

    Args:
        s: `(b, n, c_s)`.
        z: `(b, n, n, c_z)`.
        mask: `(b, n)`, 1 at real residues.
        w: The block's weights.
    """
    s = _update_sequence(s, z, mask, w)
    qk = F.linear(pair.norm(s, *w.to_pair_norm, w.to_pair[0].dtype), *w.to_pair)
    pair.outer_add_(z, qk, *w.to_pair_out)
    for multiplication, outgoing in zip(w.multiplications, (True, False)):
        pair.multiply_(z, mask, multiplication, outgoing=outgoing)
    for attention, starting in zip(w.attentions, (True, False)):
        _attend_(z, mask, attention, starting=starting)
    norm, first, second = w.pair_mlp
    pair.transition_(z, *norm, *first, *second)
    return s

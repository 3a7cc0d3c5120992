"""A trunk block at inference on a GPU: the same numbers as `TrunkBlock`, in a third of the kernels.

The weights are taken out of their modules once for each forward pass, in the format of the products and with those that
share an input laid end to end; nothing is kept, so that no later change of a weight is missed. Blocks with modules
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
from protfold_peft.folding.kernels.linear import is_plain, joined
from protfold_peft.folding.kernels.triton_attention import HEAD_WIDTHS, attend_rows

# Elements of the projections of triangle attention made at once: 256 MiB in bf16, all rows up to 512 residues.
_PROJECTIONS = 2**27

Norm = tuple[Tensor, Tensor, float]
Layer = tuple[Tensor, Tensor]


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


def _norm(module: Any) -> Norm:
    return module.weight, module.bias, module.eps


def _pack(dtype: torch.dtype, *modules: Any) -> Layer:
    """Weights and biases of layers that share an input, laid end to end; zeros where a layer has no bias."""
    weight, bias = joined(modules)
    return weight.to(dtype), bias.to(dtype)


@dataclass(frozen=True)
class PackedAttention:
    """Weights of a triangle attention."""

    norm: Norm
    bias: Tensor
    projections: Layer
    out: Layer
    heads: int


@dataclass(frozen=True)
class PackedBlock:
    """Weights of a trunk block in the format of its products; norms as they are."""

    sequence_norm: Norm
    sequence_projections: Layer
    sequence_out: Layer
    sequence_heads: int
    pair_bias_norm: Norm
    pair_bias: Tensor
    sequence_mlp: tuple[Norm, Layer, Layer]
    to_pair_norm: Norm
    to_pair: Layer
    to_pair_out: Layer
    multiplications: tuple[tuple[tuple[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, ...]], ...]
    attentions: tuple[PackedAttention, PackedAttention]
    pair_mlp: tuple[Norm, Layer, Layer]

    @classmethod
    def of(cls, block: Any, dtype: torch.dtype) -> PackedBlock:
        """Take the weights out of a block that is `supported`."""
        attention = block.seq_attention
        weight, bias = _pack(dtype, attention.proj, attention.g_proj)
        c = weight.shape[1]
        # Stock order is, head by head, query, key, value; the kernels want all queries, all keys, all values, gates.
        by_head = weight[: 3 * c].view(attention.num_heads, 3, -1, c).transpose(0, 1).reshape(3 * c, c)
        multiplications = []
        for m in (block.tri_mul_out, block.tri_mul_in):
            norms = (*_norm(m.layer_norm_in)[:2], *_norm(m.layer_norm_out))
            operands = _pack(dtype, m.linear_a_p, m.linear_b_p, m.linear_a_g, m.linear_b_g)
            multiplications.append((norms, (*operands, *_pack(dtype, m.linear_z), *_pack(dtype, m.linear_g))))
        to_pair, pair_mlp, sequence_mlp = block.sequence_to_pair, block.mlp_pair.mlp, block.mlp_seq.mlp
        return cls(
            sequence_norm=_norm(block.layernorm_1),
            sequence_projections=(torch.cat((by_head, weight[3 * c :])), bias),
            sequence_out=_pack(dtype, attention.o_proj),
            sequence_heads=attention.num_heads,
            pair_bias_norm=_norm(block.pair_to_sequence.layernorm),
            pair_bias=_pack(dtype, block.pair_to_sequence.linear)[0],
            sequence_mlp=(_norm(sequence_mlp[0]), _pack(dtype, sequence_mlp[1]), _pack(dtype, sequence_mlp[3])),
            to_pair_norm=_norm(to_pair.layernorm),
            to_pair=_pack(dtype, to_pair.proj),
            to_pair_out=_pack(dtype, to_pair.o_proj),
            multiplications=tuple(multiplications),
            attentions=(_attention(block.tri_att_start, dtype), _attention(block.tri_att_end, dtype)),
            pair_mlp=(_norm(pair_mlp[0]), _pack(dtype, pair_mlp[1]), _pack(dtype, pair_mlp[3])),
        )


def _attention(module: Any, dtype: torch.dtype) -> PackedAttention:
    mha = module.mha
    return PackedAttention(
        norm=_norm(module.layer_norm),
        bias=_pack(dtype, module.linear)[0],
        projections=_pack(dtype, mha.linear_q, mha.linear_k, mha.linear_v, mha.linear_g),
        out=_pack(dtype, mha.linear_o),
        heads=mha.no_heads,
    )


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
    for (norms, weights), outgoing in zip(w.multiplications, (True, False)):
        pair.multiply_(z, mask, norms, weights, outgoing=outgoing)
    for attention, starting in zip(w.attentions, (True, False)):
        _attend_(z, mask, attention, starting=starting)
    norm, first, second = w.pair_mlp
    pair.transition_(z, *norm, *first, *second)
    return s

"""One block of the folding trunk, which updates the sequence and the pair state.

Two ways through a block give the same numbers. Where gradients are recorded the block is written plainly and
checkpointed as a whole; at inference it updates the pair state in place, a few rows at a time, so that it needs room
for about four pair states whatever the length.

Axis letters: `b` batch, `n` residues, `c` channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.esm.modeling_esmfold import (
    EsmFoldTriangleMultiplicativeUpdate,
    EsmFoldTriangularSelfAttentionBlock,
)

from protfold_peft.folding import kernels
from protfold_peft.folding.attention import SequenceAttention, TriangleAttention, row_slices
from protfold_peft.folding.kernels.linear import together

if TYPE_CHECKING:
    from protfold_peft.folding.kernels.fast_training import FrozenBlock

# Elements of the widest row-chunk intermediate that an unset chunk size aims at. On a CPU 2 MiB in fp32, which stays in
# a core's cache; elsewhere enough to keep the device busy.
_CPU_CHUNK_ELEMENTS, _DEVICE_CHUNK_ELEMENTS = 2**19, 2**24
_FEWEST_ROWS = 8


class TriangleMultiplication(EsmFoldTriangleMultiplicativeUpdate):
    """Triangle multiplicative update (AlphaFold 2 supplement, Algorithms 11 and 12)."""

    def _operands(self) -> Callable[[Tensor], Tensor]:
        """A function from normalised pairs `(b, r, n, c)` to both operands, end to end, `(b, r, n, 2 c)`, unmasked."""
        project = together(self.linear_a_p, self.linear_b_p, self.linear_a_g, self.linear_b_g)
        return lambda x: F.glu(project(x))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum over the third residue of operands `(b, c, n, n)`."""
        return a @ b.transpose(-1, -2) if self._outgoing else a.transpose(-1, -2) @ b

    def _finish(self, product: Tensor, x: Tensor) -> Tensor:
        """Normalise, project and gate `product` `(b, r, n, c)` with the normalised input rows `x`."""
        return self.linear_z(self.layer_norm_out(product)) * self.linear_g(x).sigmoid()

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override, unused-ignore]
        """The update of the pair state `z` `(b, n, n, c)`; `mask` `(b, n, n)` is 1 at real pairs."""
        x = self.layer_norm_in(z)
        operands = self._operands()(x).permute(0, 3, 1, 2).contiguous()
        a, b = operands.chunk(2, dim=1)
        # The third residue is one of `a` already: masked there it adds nothing.
        product = self._product(a * mask.unsqueeze(1).to(a.dtype), b)
        return self._finish(product.permute(0, 2, 3, 1), x)

    def add_update_(self, z: Tensor, mask: Tensor, rows: int) -> None:
        """Add the update to `z` in place (inference only)."""
        n = z.shape[1]
        project = self._operands()
        operands: Tensor | None = None
        for part in row_slices(n, rows):
            values = project(self.layer_norm_in(z[:, part]))
            if operands is None:
                # Channels first, as the product wants them: filled row by row, no permuted copy of the whole.
                operands = values.new_empty((z.shape[0], values.shape[-1], n, n))
            operands[:, :, part] = values.permute(0, 3, 1, 2)
        assert operands is not None
        a, b = operands.chunk(2, dim=1)
        a *= mask.unsqueeze(1).to(a.dtype)
        product = self._product(a, b)
        del operands, a, b
        for part in row_slices(n, rows):
            x = self.layer_norm_in(z[:, part])
            z[:, part] += self._finish(product[:, :, part].permute(0, 2, 3, 1), x)


class TrunkBlock(GradientCheckpointingLayer, EsmFoldTriangularSelfAttentionBlock):
    """One block of the trunk; parameter names are those of the class it replaces."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        c_s, c_z = config.sequence_state_dim, config.pairwise_state_dim
        n_heads = c_z // config.pairwise_head_width
        self.seq_attention = SequenceAttention(
            c_s, c_s // config.sequence_head_width, config.sequence_head_width, gated=True
        )
        self.tri_mul_out = TriangleMultiplication(config, _outgoing=True)
        self.tri_mul_in = TriangleMultiplication(config, _outgoing=False)
        self.tri_att_start = TriangleAttention(c_z, config.pairwise_head_width, n_heads, starting=True)
        self.tri_att_end = TriangleAttention(c_z, config.pairwise_head_width, n_heads, starting=False)
        # The room that the kernels need once, whatever the number of blocks that hold this list.
        self.shared_kernels: list[FrozenBlock] = []

    def forward(
        self, sequence_state: Tensor, pairwise_state: Tensor, mask: Tensor, chunk_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Update both states.

        Args:
            sequence_state: `(b, n, c_s)`.
            pairwise_state: `(b, n, n, c_z)`; overwritten where no gradient is recorded.
            mask: `(b, n)`, 1 at real residues.
            chunk_size: Rows of the pair state worked on at once where no gradient is recorded; None: chosen here.

        Returns:
            The two states, same shapes.
        """
        if (frozen := self._frozen_kernels(sequence_state)) is not None:
            return self._forward_frozen(frozen, sequence_state, pairwise_state, mask)
        bias = self.pair_to_sequence(pairwise_state)
        y, _ = self.seq_attention(self.layernorm_1(sequence_state), mask=mask, bias=bias)
        sequence_state = self.mlp_seq(sequence_state + self.drop(y))
        pair_mask = mask[:, :, None] * mask[:, None, :]
        if torch.is_grad_enabled():
            return sequence_state, self._updated(sequence_state, pairwise_state, mask, pair_mask)
        rows = chunk_size or auto_rows(pairwise_state)
        self._update_(sequence_state, pairwise_state, mask, pair_mask, rows)
        return sequence_state, pairwise_state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, checkpointed if asked for, unless that would hold no less and only compute once more."""
        # Offloading the inputs has a function of its own, which needs to be called.
        plain = getattr(getattr(self, "_gradient_checkpointing_func", None), "func", None) is checkpoint
        if self.gradient_checkpointing and plain and (frozen := self._frozen_kernels(args[0])) is not None:
            # Not `self.forward`: in some releases of transformers it is what checkpoints.
            return self._forward_frozen(frozen, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _forward_frozen(
        self,
        frozen: FrozenBlock,
        sequence_state: Tensor,
        pairwise_state: Tensor,
        mask: Tensor,
        chunk_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` on the kernels of `_frozen_kernels`, in autocast's number format."""
        dtype = torch.get_autocast_dtype(sequence_state.device.type)
        return frozen(self, sequence_state, pairwise_state, mask, dtype)

    def keeps_inputs_only(self, state: Tensor) -> bool:
        """Whether a pass over the sequence state `state` `(b, n, c_s)` saves only its inputs, checkpointed or not."""
        return self._frozen_kernels(state) is not None

    def _frozen_kernels(self, state: Tensor) -> FrozenBlock | None:
        """The kernels that train around this block, if it is frozen, in half precision and on a GPU that has them."""
        device = state.device
        if not torch.is_grad_enabled() or not kernels.triton_runs(device) or not torch.is_autocast_enabled(device.type):
            return None
        from protfold_peft.folding.kernels.fast_block import LONGEST
        from protfold_peft.folding.kernels.fast_training import FrozenBlock, frozen

        if state.shape[1] > LONGEST or not frozen(self):
            return None
        if not self.shared_kernels:
            self.shared_kernels.append(FrozenBlock())
        return self.shared_kernels[0]

    def _updated(self, s: Tensor, z: Tensor, mask: Tensor, pair_mask: Tensor) -> Tensor:
        """The new pair state, where gradients are recorded."""
        z = z + self.sequence_to_pair(s)
        z = z + _dropped(self.row_drop, self.tri_mul_out(z, pair_mask))
        z = z + _dropped(self.col_drop, self.tri_mul_in(z, pair_mask))
        z = z + _dropped(self.row_drop, self.tri_att_start(z, mask))
        z = z + _dropped(self.col_drop, self.tri_att_end(z, mask))
        return self.mlp_pair(z)

    def _update_(self, s: Tensor, z: Tensor, mask: Tensor, pair_mask: Tensor, rows: int) -> None:
        """The same in place, `rows` rows at a time, without dropout."""
        to_pair = self.sequence_to_pair
        q, k = to_pair.proj(to_pair.layernorm(s)).chunk(2, dim=-1)
        for part in row_slices(z.shape[1], rows):
            left, right = k[:, part, None, :], q[:, None, :, :]
            z[:, part] += to_pair.o_proj(torch.cat([right * left, right - left], dim=-1))
        self.tri_mul_out.add_update_(z, pair_mask, rows)
        self.tri_mul_in.add_update_(z, pair_mask, rows)
        self.tri_att_start.add_update_(z, mask, rows)
        self.tri_att_end.add_update_(z, mask, rows)
        for part in row_slices(z.shape[1], rows):
            z[:, part] += self.mlp_pair.mlp(z[:, part])


def _dropped(dropout: Any, x: Tensor) -> Tensor:
    """`dropout` of `x`; without a chance of dropping anything stock code still multiplies by ones."""
    return dropout(x) if dropout.r > 0 else x


def auto_rows(z: Tensor) -> int:
    """Rows of `z` `(b, n, n, c)` to work on at once when no chunk size is set."""
    b, n, _, c = z.shape
    elements = _CPU_CHUNK_ELEMENTS if z.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS
    return min(n, max(_FEWEST_ROWS, elements // (4 * b * n * c)))

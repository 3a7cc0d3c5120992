"""The folding trunk: blocks that update the sequence and pair states, and the recycling loop around them.

Two ways through a block give the same numbers. Where gradients are recorded the block is written plainly and
checkpointed as a whole; at inference it updates the pair state in place, a few rows at a time, so that it needs room
for about four pair states whatever the length.

Axis letters: `b` batch, `n` residues, `c` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.esm.modeling_esmfold import (
    EsmFoldingTrunk,
    EsmFoldTriangleMultiplicativeUpdate,
    EsmFoldTriangularSelfAttentionBlock,
)

from protfold_peft.folding import kernels
from protfold_peft.folding.attention import SequenceAttention, TriangleAttention, row_slices
from protfold_peft.folding.kernels.linear import together, untouched
from protfold_peft.folding.structure_module import StructureModule
from protfold_peft.structure.residues import RESTYPE_INDEX, UNKNOWN

if TYPE_CHECKING:
    from protfold_peft.folding.kernels.fast_training import FrozenBlock

GLYCINE = RESTYPE_INDEX["G"]

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
            dtype = torch.get_autocast_dtype(sequence_state.device.type)
            return frozen(self, sequence_state, pairwise_state, mask, dtype)
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
        if self.gradient_checkpointing and plain and self.keeps_inputs_only(args[0]):
            return self.forward(*args, **kwargs)
        return super().__call__(*args, **kwargs)

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
        z = z + self.sequence_to_pair(s)
        z = z + _dropped(self.row_drop, self.tri_mul_out(z, pair_mask))
        z = z + _dropped(self.col_drop, self.tri_mul_in(z, pair_mask))
        z = z + _dropped(self.row_drop, self.tri_att_start(z, mask))
        z = z + _dropped(self.col_drop, self.tri_att_end(z, mask))
        return self.mlp_pair(z)

    def _update_(self, s: Tensor, z: Tensor, mask: Tensor, pair_mask: Tensor, rows: int) -> None:
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


@contextmanager
def without_blocks(config: Any) -> Iterator[None]:
    """Let a stock class be built without the blocks that are about to be replaced: 0.7 billion parameters in all."""
    n_blocks, config.num_blocks = config.num_blocks, 0
    try:
        yield
    finally:
        config.num_blocks = n_blocks


def auto_rows(z: Tensor) -> int:
    """Rows of `z` `(b, n, n, c)` to work on at once when no chunk size is set."""
    b, n, _, c = z.shape
    elements = _CPU_CHUNK_ELEMENTS if z.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS
    return min(n, max(_FEWEST_ROWS, elements // (4 * b * n * c)))


class FoldingTrunk(EsmFoldingTrunk):
    """Recycling around the blocks and the structure module; parameter names are those of the class it replaces.

    Attributes:
        chunk_size: Rows of the pair state worked on at once at inference; None: chosen from the length.
        autocast_dtype: Number format of the blocks' matrix products (None: that of their weights). The states between
            blocks, the structure module and everything after it stay in fp32.
    """

    def __init__(self, config: Any) -> None:
        with without_blocks(config):
            super().__init__(config)
        self.blocks = nn.ModuleList([TrunkBlock(config) for _ in range(config.num_blocks)])
        for block in self.blocks:
            block.shared_kernels = self.blocks[0].shared_kernels
        self.structure_module = StructureModule(config.structure_module)
        self.chunk_size: int | None = None
        self.autocast_dtype: torch.dtype | None = None
        self._graphs: Any = None

    def forward(
        self, seq_feats: Tensor, aatype: Tensor, residue_index: Tensor, mask: Tensor, recycles: int
    ) -> dict[str, Tensor]:
        """Fold.

        Args:
            seq_feats: `(b, n, c_s)` sequence features.
            aatype: `(b, n)` amino acids, AlphaFold order, 20 = unknown.
            residue_index: `(b, n)` int64 places along the chain.
            mask: `(b, n)` float, 1 at real residues.
            recycles: Passes after the first; only the last pass records gradients.

        Returns:
            The structure module's outputs, and the final states `s_s` `(b, n, c_s)` and `s_z` `(b, n, n, c_z)`.
        """
        b, n, _ = seq_feats.shape
        shape = (b, n, n, self.config.pairwise_state_dim)
        s, z = torch.zeros_like(seq_feats), seq_feats.new_zeros(shape)
        recycle_bins = torch.zeros(shape[:-1], dtype=torch.int64, device=seq_feats.device)
        # Without a residue type there is no ideal geometry: what is written has the backbone of glycine. Earlier
        # passes keep the zero coordinates that the published weights saw for unknown residues.
        known = aatype.masked_fill(aatype == UNKNOWN, GLYCINE)

        bins = self.pairwise_positional_embedding.bins
        separations = (residue_index[:, None, :] - residue_index[:, :, None]).clamp(-bins, bins) + bins + 1
        separations = separations * (mask[:, None, :] * mask[:, :, None]).long()  # 0: pairs with padding

        training = torch.is_grad_enabled()
        if training and self._graphs is not None:
            self._graphs.clear()  # what graphs of a validation pass hold is not kept beside training's activations
        fused = (recycles > 0 or not training) and self._load_kernels(seq_feats)
        graphs = kernels.settings().graphs and not training
        for recycle in range(recycles + 1):
            last = recycle == recycles
            if last and training and fused:
                self._graphs.unload()
            with torch.set_grad_enabled(training and last):
                s = seq_feats + self.recycle_s_norm(s.detach())
                z = self.recycle_z_norm(z.detach()) + self.recycle_disto(recycle_bins)
                z = z + self.pairwise_positional_embedding.embedding(separations)
                structure: dict[str, Tensor] = {}
                if fused and not torch.is_grad_enabled():
                    s, z, structure = self._run_kernels(s, z, known if last else aatype, mask, graphs=graphs)
                else:
                    s, z = self._blocks(s, z, mask)
                structure = structure or self._place(s, z, known if last else aatype, mask)
                if not last:
                    backbone = structure["positions"][-1][:, :, :3]
                    recycle_bins = self.distogram(backbone, 3.375, 21.375, self.recycle_bins)
        if fused and not training:
            self._graphs.unload()
        structure["s_s"], structure["s_z"] = s, z
        return structure

    def _place(self, s: Tensor, z: Tensor, aatype: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The structure module's outputs for the states `s` and `z`."""
        return self.structure_module({"single": self.trunk2sm_s(s), "pair": self.trunk2sm_z(z)}, aatype, mask)

    def _load_kernels(self, s: Tensor) -> bool:
        """Whether passes without gradients run on the kernels of `folding.kernels`, whose weights are then loaded."""
        if self.autocast_dtype is None or not len(self.blocks) or not kernels.triton_runs(s.device):
            return False
        from protfold_peft.folding.kernels import fast_block, graphs

        if s.shape[1] > fast_block.LONGEST or not all(fast_block.supported(block) for block in self.blocks):
            return False
        if self._graphs is None:
            self._graphs = graphs.TrunkGraphs()
        placing = (self.structure_module, self.trunk2sm_s, self.trunk2sm_z)
        weights = [weight for module in placing for weight in module.parameters()]
        with torch.no_grad():
            self._graphs.load(self.blocks, self.autocast_dtype, weights)
        return True

    def _run_kernels(
        self, s: Tensor, z: Tensor, aatype: Tensor, mask: Tensor, *, graphs: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The blocks on loaded kernels; with them the structure module, where it can be recorded, else nothing."""
        unchanged = all(map(untouched, (self.structure_module, self.trunk2sm_s, self.trunk2sm_z)))
        with torch.autocast(s.device.type, enabled=False):
            return self._graphs.run(s, z, mask, aatype, self._place if unchanged else None, graphs=graphs)

    def _blocks(self, s: Tensor, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        enabled = self.autocast_dtype is not None
        with torch.autocast(s.device.type, dtype=self.autocast_dtype or torch.bfloat16, enabled=enabled):
            for block in self.blocks:
                s, z = block(s, z, mask=mask, chunk_size=self.chunk_size)
        return s, z

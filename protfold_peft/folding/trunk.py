"""The folding trunk: the recycling loop around the blocks of `trunk_block`, and the structure module after them.

Axis letters: `b` batch, `n` residues, `c` channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.esm.modeling_esmfold import EsmFoldingTrunk

from protfold_peft.folding import kernels
from protfold_peft.folding.kernels.linear import untouched
from protfold_peft.folding.structure_module import StructureModule
from protfold_peft.folding.trunk_block import TrunkBlock
from protfold_peft.structure.residues import RESTYPE_INDEX, UNKNOWN

GLYCINE = RESTYPE_INDEX["G"]


@contextmanager
def without_blocks(config: Any) -> Iterator[None]:
    """Let a stock class be built without the blocks that are about to be replaced: 0.7 billion parameters in all."""
    n_blocks, config.num_blocks = config.num_blocks, 0
    try:
        yield
    finally:
        config.num_blocks = n_blocks


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
        """The states after all blocks, one after the other on PyTorch's operations."""
        enabled = self.autocast_dtype is not None
        with torch.autocast(s.device.type, dtype=self.autocast_dtype or torch.bfloat16, enabled=enabled):
            for block in self.blocks:
                s, z = block(s, z, mask=mask, chunk_size=self.chunk_size)
        return s, z

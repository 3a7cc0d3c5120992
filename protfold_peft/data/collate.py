"""Samples to one padded batch: what the model takes, and what the losses compare it with.

Axis letters: `b` batch, `n` residues of the longest sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from protfold_peft.data.chains import TrainingChain
from protfold_peft.data.crops import Crop

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


def collate_chains(chains: Sequence[TrainingChain]) -> dict[str, torch.Tensor]:
    """Stack chains, padded on the right (the model takes a hole in the mask for the end of the sequence).

    Returns:
        For the model: `input_ids` `(b, n)` int64 residue types, `attention_mask` `(b, n)` int64, 0 at padding, and
        `position_ids` `(b, n)` int64 places along the chain, counting on through the padding.
        For the losses: `atom_positions` `(b, n, 37, 3)` float32 in angstrom and `atom_mask` `(b, n, 37)` bool; an
        unresolved residue is in the input, and false here.
    """
    length = max(len(chain) for chain in chains)

    def stack(arrays: Sequence[np.ndarray]) -> torch.Tensor:
        padded = np.zeros((len(arrays), length, *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        for row, array in zip(padded, arrays):
            row[: len(array)] = array
        return torch.from_numpy(padded)

    position_ids = stack([chain.residue_index for chain in chains])
    for row, chain in zip(position_ids, chains):
        row[len(chain) :] = row[len(chain) - 1] + torch.arange(1, length - len(chain) + 1)
    return {
        "input_ids": stack([chain.aatype for chain in chains]),
        "attention_mask": stack([np.ones(len(chain), dtype=np.int64) for chain in chains]),
        "position_ids": position_ids,
        "atom_positions": stack([chain.atom_positions for chain in chains]),
        "atom_mask": stack([chain.atom_mask for chain in chains]),
    }


def collate_crops(crops: Sequence[Crop]) -> dict[str, torch.Tensor]:
    """`collate_chains`, and `clamped` `(b,)` bool: whether FAPE is clamped for the sample."""
    return {
        **collate_chains([crop.chain for crop in crops]),
        "clamped": torch.tensor([crop.clamped for crop in crops]),
    }

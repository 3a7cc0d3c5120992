"""Samples to one padded batch: what the model takes, and what the losses compare it with.

Axis letters: `b` batch, `n` residues of the longest sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from protfold_peft.data.chains import TrainingChain
from protfold_peft.data.crops import Crop, Part

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
    """`collate_chains`, and what is drawn for every sample.

    Returns:
        Also `clamped` `(b,)` bool: whether FAPE is clamped for the sample; and where residues are hidden `masked_ids`
        `(b, n)` int64 residue types, `crops.HIDDEN` for a hidden one, and `masked_chosen` `(b, n)` bool, those asked
        for.
    """
    batch = {
        **collate_chains([crop.chain for crop in crops]),
        "clamped": torch.tensor([crop.clamped for crop in crops]),
    }
    masked = [crop.masked for crop in crops if crop.masked is not None]
    if masked:
        batch["masked_ids"] = pad_sequence([one.tokens for one in masked], batch_first=True)
        batch["masked_chosen"] = pad_sequence([one.chosen for one in masked], batch_first=True)
    return batch


def collate_parts(parts: Sequence[Part]) -> dict[str, Any]:
    """`collate_crops` of one part of a step, with its `number`, `step` and `share`."""
    (part,) = parts
    return {**collate_crops(part.crops), "number": part.number, "step": part.step, "share": part.share}

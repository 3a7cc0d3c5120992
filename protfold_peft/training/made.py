"""Made-up samples in the form that the model and the losses take, for measuring what a step needs.

Axis letters: `b` batch, `n` residues.
"""

from __future__ import annotations

import torch
from torch import Tensor


def made_batch(length: int, batch: int, device: torch.device) -> dict[str, Tensor]:
    """`batch` samples of `length` residues as `data.collate_crops` gives them, atoms on random walks, no padding."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, 20, (batch, length), generator=generator)
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(length).expand(batch, -1),
        "atom_positions": torch.randn(batch, length, 37, 3, generator=generator).cumsum(1),
        "atom_mask": torch.ones(batch, length, 37, dtype=torch.bool),
        "clamped": torch.ones(batch, dtype=torch.bool),
    }
    return {name: value.to(device) for name, value in made.items()}

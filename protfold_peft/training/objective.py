"""The structure loss of a batch: what the model gives, set against what the experiment saw.

Axis letters: `s` structure-module steps, `b` batch, `n` residues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from protfold_peft.losses import TotalLoss, backbone_fape, distogram_loss, total_loss
from protfold_peft.losses.fape import CLAMP
from protfold_peft.structure.geometry import backbone_frames, virtual_cb
from protfold_peft.structure.residues import ATOM_INDEX
from protfold_peft.structure.rigid import Rigid

N, CA, C, CB = (ATOM_INDEX[name] for name in ("N", "CA", "C", "CB"))


def structure_loss(
    output: Any,
    batch: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    *,
    scale_by_length: bool = True,
) -> TotalLoss:
    """Backbone FAPE and distogram loss, in fp32 whatever the model ran in.

    Args:
        output: Of `EsmFold`: `frames` `(s, b, n, 7)`, a quaternion and CA, and `distogram_logits` `(b, n, n, k)`.
        batch: From `data.collate_crops`.
        weights: Of the terms `fape` and `distogram`.
        scale_by_length: Multiply each sample's loss by the root of its length.
    """
    positions, mask = batch["atom_positions"], batch["atom_mask"]
    with torch.autocast(positions.device.type, enabled=False):
        target, has_frame = backbone_frames(positions, mask)
        frames = output.frames.float()
        predicted = Rigid.from_quaternion(frames[..., :4], frames[..., 4:])
        clamp = torch.where(batch["clamped"], CLAMP, math.inf)
        representative, has_representative = representative_atoms(positions, mask)
        terms = {
            "fape": backbone_fape(predicted, target, has_frame, clamp=clamp),
            "distogram": distogram_loss(output.distogram_logits.float(), representative, has_representative),
        }
        lengths = batch["attention_mask"].sum(dim=-1) if scale_by_length else None
        return total_loss(terms, weights, lengths)


def representative_atoms(positions: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The atom that stands for a residue in the distogram: CB, or where there is none its ideal place.

    Glycine thus gets a virtual CB, as in the distogram that ESMFold recycles.

    Args:
        positions: `(b, n, 37, 3)` in angstrom.
        mask: `(b, n, 37)` bool.

    Returns:
        `(b, n, 3)`, and a bool mask `(b, n)`: false where neither CB nor all of N, CA and C are known.
    """
    ideal = virtual_cb(positions[..., N, :], positions[..., CA, :], positions[..., C, :])
    has_cb = mask[..., CB]
    has_ideal = mask[..., N] & mask[..., CA] & mask[..., C]
    return torch.where(has_cb[..., None], positions[..., CB, :], ideal), has_cb | has_ideal

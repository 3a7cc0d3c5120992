"""What is impossible about a model's own geometry: counted, and taken out of its lDDT.

The model is judged whole, with the residues that the reference lacks, since an atom may clash with one of those, and
chain by chain as it is numbered, since two residues that follow one another in the reference need not be bonded.

Axis letters: `n` residues of the reference, `m` residues of the model, with an empty row behind every chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from protfold_peft.evaluation.matching import Matched
from protfold_peft.metrics.clashes import clashes
from protfold_peft.metrics.stereochemistry import backbone_geometry, sound_atoms
from protfold_peft.structure import restypes_of
from protfold_peft.structure.types import Chain


@dataclass(frozen=True, eq=False)
class Geometry:
    """The geometry of a model.

    Attributes:
        sound: `(n, 37)` bool: the model's atoms that count in an lDDT with stereochemistry checks.
        counts: What is odd, by the columns of the tables.
    """

    sound: np.ndarray
    counts: dict[str, int]


def geometry_of(pair: Matched, device: torch.device) -> Geometry:
    """Judge the chains of the model that are scored, in float64 (float32 on MPS)."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    positions = torch.from_numpy(_laid([chain.atom_positions for chain in pair.model_chains])).to(device, dtype)[None]
    mask = torch.from_numpy(_laid([chain.atom_mask for chain in pair.model_chains])).to(device)[None]
    restypes = torch.cat([restypes_of(chain.sequence + "X") for chain in pair.model_chains]).to(device)[None]
    index = torch.from_numpy(_laid([_neighbours(chain) for chain in pair.model_chains])).to(device)[None]
    sound = sound_atoms(positions, mask, restypes)[0].cpu().numpy()
    backbone = backbone_geometry(positions, mask, restypes, index)
    counts = {name: int(getattr(backbone, name)) for name in _COUNTED}
    return Geometry(_as_matched(pair, sound), {"clashes": int(clashes(positions, mask).count), **counts})


_COUNTED = ("bond_outliers", "angle_outliers", "cis_not_proline", "twisted", "breaks", "mirrored")


def _laid(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """`(m, ...)` the rows of all chains, zeros behind every one."""
    rows = []
    for array in arrays:
        rows += [array, np.zeros_like(array[:1])]
    return np.concatenate(rows)


def _neighbours(chain: Chain) -> np.ndarray:
    """Numbers that rise by one from a residue to its neighbour in sequence, and by two where some are missing.

    Residues with insertion codes share a number, or skip none.
    """
    steps = np.diff(chain.residue_numbers)
    return np.cumsum([1, *np.where((steps == 0) | (steps == 1), 1, 2)])


def _as_matched(pair: Matched, sound: np.ndarray) -> np.ndarray:
    """`(m, 37)` of the model's rows as `(n, 37)` of the reference's; false where the model has none."""
    start, starts = 0, {}
    for chain in pair.model_chains:
        starts[id(chain)] = start
        start += len(chain) + 1
    parts = []
    for link in pair.links:
        if link.model is None or link.residues is None:
            parts.append(np.zeros((len(link.reference), 37), dtype=bool))
            continue
        rows = link.residues.model_index
        parts.append(sound[starts[id(link.model)] + rows] & (rows >= 0)[:, None])
    return np.concatenate(parts)

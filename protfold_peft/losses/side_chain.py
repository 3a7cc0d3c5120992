"""Side-chain FAPE: all heavy atoms as seen from the frames of all rigid groups.

Source: Jumper et al., Nature 596 (2021) 583, supplement 1.9.2 and Algorithm 20, with the experiment's symmetric
atoms renamed first (`renaming`).

Axis letters: `b` batch, `n` residues, 14 atoms of the compact layout, 8 rigid groups.
"""

from __future__ import annotations

import numpy as np
import torch

from protfold_peft.losses.fape import CLAMP, fape
from protfold_peft.losses.renaming import AllAtomTarget
from protfold_peft.structure import residues
from protfold_peft.structure.rigid import Rigid

# Omega and phi place no heavy atom: their groups are never compared, so nothing is computed for them.
_GROUPS = np.flatnonzero(residues.GROUP_MASK.any(axis=0)).tolist()


def side_chain_fape(
    predicted_frames: Rigid,
    predicted_positions: torch.Tensor,
    target: AllAtomTarget,
    *,
    clamp: float | torch.Tensor | None = CLAMP,
) -> torch.Tensor:
    """FAPE of all rigid groups (backbone, psi, chi1..chi4) against all heavy atoms; AlphaFold takes the last step.

    Args:
        predicted_frames: `(b, n, 8)` of the last step of the structure module, in angstrom.
        predicted_positions: `(b, n, 14, 3)` of the same step, in angstrom; finite everywhere.
        target: Of `all_atom_target`, `(b, n, ...)`; its masks are false for padding.
        clamp: As in `fape`; a tensor is `(b,)`.

    Returns:
        `(b,)`, without unit; 0 for a sample without a known frame.
    """
    compared = (slice(None), slice(None), _GROUPS)
    return fape(
        _flat(predicted_frames[compared]),
        _flat(target.frames[compared]),
        target.frames_mask[compared].flatten(1),
        predicted_positions.flatten(1, 2),
        target.positions.flatten(1, 2),
        target.mask.flatten(1),
        clamp=clamp,
    )


def _flat(frames: Rigid) -> Rigid:
    """Frames `(b, n, g)` as `(b, n * g)`."""
    return Rigid(frames.rotation.flatten(1, 2), frames.translation.flatten(1, 2))

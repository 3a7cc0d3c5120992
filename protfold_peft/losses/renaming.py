"""Atoms whose names mean nothing, named as they fit the prediction best.

The two oxygens of a carboxylate and the two sides of a ring are told apart by convention alone. The truth is renamed,
so that every later loss pulls each atom to the place that is nearest to where it is.

Source: Jumper et al., Nature 596 (2021) 583, supplement 1.8.5, Algorithm 26.

Axis letters: `...` batch, `n` residues, 14 atoms of the compact layout, 8 rigid groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from protfold_peft.structure import residues
from protfold_peft.structure.geometry import atom37_to_atom14, groups_from_atoms, swap_ambiguous
from protfold_peft.structure.rigid import Rigid

EPSILON = 1e-10
# The places of the 14 that hold a symmetric atom in some residue type: four, so most of the table is never computed.
_PLACES = np.flatnonzero(residues.ATOM14_AMBIGUOUS.any(axis=0)).tolist()


@dataclass(frozen=True, eq=False)
class AllAtomTarget:
    """The experiment as the side-chain losses want it.

    Attributes:
        frames: `(..., n, 8)` of all rigid groups.
        frames_mask: `(..., n, 8)` bool, true where the group's three atoms are known.
        positions: `(..., n, 14, 3)` in angstrom, finite; 0 where not known.
        mask: `(..., n, 14)` bool, true where the atom is known.
        renamed: `(..., n)` bool, the residues whose symmetric atoms changed names.
    """

    frames: Rigid
    frames_mask: Tensor
    positions: Tensor
    mask: Tensor
    renamed: Tensor


def all_atom_target(predicted: Tensor, positions: Tensor, mask: Tensor, restypes: Tensor) -> AllAtomTarget:
    """Atoms and frames of the experiment, its symmetric atoms named as they fit the prediction. No gradient.

    The frame of a renamed group is turned half about its axis, as AlphaFold does, instead of measured on the other
    atom, which lies half a turn away only in an ideal residue.

    Args:
        predicted: `(..., n, 14, 3)` atoms of the model in angstrom, finite.
        positions: `(..., n, 37, 3)` atoms of the experiment in angstrom, finite everywhere.
        mask: `(..., n, 37)` true where the experiment has the atom; false for padding.
        restypes: `(..., n)` residue types 0..20.
    """
    with torch.no_grad():
        frames, frames_mask = groups_from_atoms(positions, mask, restypes)
        known = atom37_to_atom14(mask.bool(), restypes)
        atoms = torch.where(known[..., None], atom37_to_atom14(positions, restypes), 0.0)
        renamed = other_naming_is_better(predicted, atoms, known, restypes)
        swapped, swapped_known = swap_ambiguous(atoms, restypes), swap_ambiguous(known, restypes)
        turned = renamed[..., None] & _half_turn_groups(restypes)
        # Half a turn about x changes the sign of the other two axes.
        half_turn = frames.rotation.new_tensor([1.0, -1.0, -1.0])
        rotation = torch.where(turned[..., None, None], frames.rotation * half_turn, frames.rotation)
        return AllAtomTarget(
            frames=Rigid(rotation, frames.translation),
            frames_mask=frames_mask,
            positions=torch.where(renamed[..., None, None], swapped, atoms),
            mask=torch.where(renamed[..., None], swapped_known, known),
            renamed=renamed,
        )


@torch.no_grad()
def other_naming_is_better(predicted: Tensor, positions: Tensor, mask: Tensor, restypes: Tensor) -> Tensor:
    """`(..., n)` bool: exchanging the names of this residue's symmetric atoms brings the experiment nearer.

    Judged by the distances from the residue's symmetric atoms to all atoms that have no twin, summed. Where
    only one of two twins is known, that one is tried under both names.

    Args:
        predicted: `(..., n, 14, 3)` in angstrom.
        positions: `(..., n, 14, 3)` of the experiment in angstrom, finite everywhere.
        mask: `(..., n, 14)` true where the atom is known.
        restypes: `(..., n)`.
    """
    ambiguous = torch.tensor(residues.ATOM14_AMBIGUOUS, device=restypes.device)[restypes]
    known = mask.bool()
    # Every atom that has a name of its own, in one row: (..., 1, 1, n * 14).
    anchors = (known & ~ambiguous).flatten(-2)[..., None, None, :]
    of_prediction = _distances(predicted[..., _PLACES, :], predicted)
    swapped, swapped_known = swap_ambiguous(positions, restypes), swap_ambiguous(known, restypes)

    def misfit(twins: Tensor, twins_known: Tensor) -> Tensor:
        of_experiment = _distances(twins[..., _PLACES, :], positions)
        error = ((of_prediction - of_experiment).square() + EPSILON).sqrt()
        counted = (twins_known & ambiguous)[..., _PLACES][..., None] & anchors
        return (error * counted).sum(dim=(-2, -1))

    return misfit(swapped, swapped_known) < misfit(positions, known)


def _distances(some: Tensor, positions: Tensor) -> Tensor:
    """`(..., n, m, n * 14)` from `(..., n, m, 3)` atoms to all `(..., n, 14, 3)`."""
    offsets = some[..., None, :] - positions.flatten(-3, -2)[..., None, None, :, :]
    return (offsets.square().sum(dim=-1) + EPSILON).sqrt()


def _half_turn_groups(restypes: Tensor) -> Tensor:
    """`(..., n, 8)` bool: groups that turn into themselves by half a turn; chi1 places group 4."""
    periodic = torch.tensor(residues.CHI_PI_PERIODIC, device=restypes.device)[restypes]
    return torch.cat([torch.zeros_like(periodic), periodic], dim=-1)

"""The training loss of a batch: what the model gives, set against what the experiment saw.

Only terms with a weight are computed.

Axis letters: `s` structure-module steps, `b` batch, `n` residues, `k` bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch

from protfold_peft import losses
from protfold_peft.losses import AllAtomTarget, TotalLoss, all_atom_target, total_loss
from protfold_peft.losses.fape import CLAMP
from protfold_peft.structure.geometry import atom14_to_atom37, backbone_frames, torsions, virtual_cb
from protfold_peft.structure.residues import ATOM_INDEX
from protfold_peft.structure.rigid import Rigid
from protfold_peft.training.terms import BASE_TERMS, STRUCTURE_TERMS

N, CA, C, CB = (ATOM_INDEX[name] for name in ("N", "CA", "C", "CB"))


@dataclass(frozen=True, eq=False)
class _Compared:
    """A prediction and its experiment, in the forms the terms want; what no term asks for is never computed."""

    output: Any
    batch: Mapping[str, torch.Tensor]
    base: Any
    library: ModuleType

    @cached_property
    def residues(self) -> torch.Tensor:
        """`(b, n)` bool, false at padding."""
        return self.batch["attention_mask"].bool()

    @cached_property
    def clamp(self) -> torch.Tensor:
        """`(b,)` distance in angstrom at which FAPE is clamped; infinite in samples that are not clamped."""
        return torch.where(self.batch["clamped"], CLAMP, math.inf)

    @cached_property
    def target_frames(self) -> tuple[Rigid, torch.Tensor]:
        """`(b, n)` backbone frames of the experiment, and which of them are known."""
        return backbone_frames(self.batch["atom_positions"], self.batch["atom_mask"])

    @cached_property
    def frames(self) -> Rigid:
        """`(s, b, n)` backbone frames of the prediction."""
        frames = self.output.frames.float()
        return Rigid.from_quaternion(frames[..., :4], frames[..., 4:])

    @cached_property
    def atoms(self) -> torch.Tensor:
        """`(b, n, 14, 3)` of the last step."""
        return self.output.positions[-1].float()

    @cached_property
    def all_atoms(self) -> AllAtomTarget:
        """The experiment's atoms under the names that fit the prediction better."""
        batch = self.batch
        return all_atom_target(self.atoms, batch["atom_positions"], batch["atom_mask"], batch["input_ids"])

    def fape(self) -> torch.Tensor:
        """`(b,)` backbone FAPE."""
        target, known = self.target_frames
        return self.library.backbone_fape(self.frames, target, known, clamp=self.clamp)

    def side_chain_fape(self) -> torch.Tensor:
        """`(b,)` FAPE of all atoms in the frames of all groups, of the last step."""
        groups = self.output.sidechain_frames[-1].float()
        frames = Rigid(groups[..., :3, :3], groups[..., :3, 3])
        return self.library.side_chain_fape(frames, self.atoms, self.all_atoms, clamp=self.clamp)

    def torsion(self) -> torch.Tensor:
        """`(b,)` loss of the torsion angles."""
        batch = self.batch
        target = torsions(batch["atom_positions"], batch["atom_mask"], batch["input_ids"])
        return self.library.torsion_loss(self.output.unnormalized_angles.float(), target, self.residues)

    def distogram(self) -> torch.Tensor:
        """`(b,)` cross-entropy of the binned distances."""
        points, known = representative_atoms(self.batch["atom_positions"], self.batch["atom_mask"])
        return losses.distogram_loss(self.output.distogram_logits.float(), points, known)

    def plddt(self) -> torch.Tensor:
        """`(b,)` cross-entropy of the pLDDT head with the lDDT that the prediction reached."""
        restypes = self.batch["input_ids"]
        target = self.all_atoms
        predicted, positions, mask = (
            atom14_to_atom37(values, restypes) for values in (self.atoms.detach(), target.positions, target.mask)
        )
        return losses.plddt_loss(self.output.lddt_head[-1].float(), predicted, positions, mask)

    def aligned_error(self) -> torch.Tensor:
        """`(b,)` cross-entropy of the predicted aligned error."""
        target, known = self.target_frames
        last = Rigid(self.frames.rotation[-1], self.frames.translation[-1])
        return losses.aligned_error_loss(self.output.ptm_logits.float(), last, target, known)

    def violation(self) -> torch.Tensor:
        """`(b,)` loss of bonds, angles and clashes, without the experiment."""
        exists = self.output.atom14_atom_exists.bool()
        return self.library.violation_loss(self.atoms, exists, self.batch["input_ids"], self.batch["position_ids"])

    def smooth_lddt(self) -> torch.Tensor:
        """`(b,)` one less the smooth lDDT of the CA atoms."""
        positions, mask = self.batch["atom_positions"], self.batch["atom_mask"]
        return losses.smooth_lddt_loss(self.atoms[:, :, CA], positions[:, :, CA], mask[:, :, CA])

    def base_divergence(self) -> torch.Tensor:
        """`(b,)` divergence of the binned distances from the base model's."""
        pairs = self.residues[:, :, None] & self.residues[:, None, :]
        mine, theirs = self.output.distogram_logits.float(), self.base.distogram_logits.float()
        return losses.divergence_from_base(mine, theirs, pairs)

    def base_distance(self) -> torch.Tensor:
        """`(b,)` how far the distances of CA atoms are from the base model's."""
        return losses.distance_from_base(self.atoms[:, :, CA], self.base.positions[-1][:, :, CA].float(), self.residues)


def structure_loss(
    output: Any,
    batch: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    *,
    scale_by_length: bool = True,
    base: Any = None,
    library: ModuleType = losses,
    further: Mapping[str, torch.Tensor] | None = None,
) -> TotalLoss:
    """The weighted sum of the terms that have a weight above 0, in fp32 whatever the model ran in.

    Args:
        output: Of `EsmFold`.
        batch: From `data.collate_crops`.
        weights: By name: of `STRUCTURE_TERMS`, `BASE_TERMS` and `further`.
        scale_by_length: Multiply each sample's loss by the root of its length.
        base: The base model's output for the same batch, where a term of `BASE_TERMS` has a weight.
        library: Where `backbone_fape`, `side_chain_fape`, `torsion_loss` and `violation_loss` come from.
        further: Terms made elsewhere, `(b,)` each.

    Raises:
        ValueError: A weight for a term that there is not, or no weight at all.
    """
    positions = batch["atom_positions"]
    with torch.autocast(positions.device.type, enabled=False):
        compared = _Compared(output, batch, base, library)
        terms = {name: getattr(compared, name)() for name in (*STRUCTURE_TERMS, *BASE_TERMS) if weights.get(name, 0.0)}
        terms |= further or {}
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

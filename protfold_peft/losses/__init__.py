"""Structure losses on plain tensors. Knows nothing of models."""

from protfold_peft.losses.aligned_error import aligned_error_loss
from protfold_peft.losses.base_model import distance_from_base, divergence_from_base
from protfold_peft.losses.distogram import distogram_loss
from protfold_peft.losses.fape import backbone_fape, fape
from protfold_peft.losses.masked_lm import MaskedTokens, mask_tokens, masked_lm_loss
from protfold_peft.losses.plddt import plddt_loss
from protfold_peft.losses.renaming import AllAtomTarget, all_atom_target
from protfold_peft.losses.side_chain import side_chain_fape
from protfold_peft.losses.smooth_lddt import smooth_lddt_loss
from protfold_peft.losses.torsion_angles import angle_norm_loss, chi_loss, torsion_loss
from protfold_peft.losses.total import TotalLoss, total_loss
from protfold_peft.losses.violation import Violations, violation_loss, violations

__all__ = [
    "AllAtomTarget",
    "MaskedTokens",
    "TotalLoss",
    "Violations",
    "aligned_error_loss",
    "all_atom_target",
    "angle_norm_loss",
    "backbone_fape",
    "chi_loss",
    "distance_from_base",
    "distogram_loss",
    "divergence_from_base",
    "fape",
    "mask_tokens",
    "masked_lm_loss",
    "plddt_loss",
    "side_chain_fape",
    "smooth_lddt_loss",
    "torsion_loss",
    "total_loss",
    "violation_loss",
    "violations",
]

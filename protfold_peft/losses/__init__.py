"""Structure losses on plain tensors. Knows nothing of models."""

from protfold_peft.losses.distogram import distogram_loss
from protfold_peft.losses.fape import backbone_fape, fape
from protfold_peft.losses.total import TotalLoss, total_loss

__all__ = ["TotalLoss", "backbone_fape", "distogram_loss", "fape", "total_loss"]

"""Data sets of structures: reading, cropping, collation."""

from protfold_peft.data.chains import TrainingChain, training_chain
from protfold_peft.data.collate import MODEL_INPUTS, collate_chains, collate_crops
from protfold_peft.data.crops import Crop, CropDataset, random_crop
from protfold_peft.data.folder import ChainFolder, Skipped, read_chains

__all__ = [
    "MODEL_INPUTS",
    "ChainFolder",
    "Crop",
    "CropDataset",
    "Skipped",
    "TrainingChain",
    "collate_chains",
    "collate_crops",
    "random_crop",
    "read_chains",
    "training_chain",
]

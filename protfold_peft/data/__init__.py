"""Data sets of structures: reading, cropping, collation."""

from protfold_peft.data.chains import TrainingChain, sequence_chain, training_chain
from protfold_peft.data.collate import MODEL_INPUTS, collate_chains, collate_crops, collate_parts
from protfold_peft.data.crops import Crop, CropDataset, Part, PartDataset, random_crop
from protfold_peft.data.folder import ChainFolder, Skipped, joined, read_chains, read_sequences

__all__ = [
    "MODEL_INPUTS",
    "ChainFolder",
    "Crop",
    "CropDataset",
    "Part",
    "PartDataset",
    "Skipped",
    "TrainingChain",
    "collate_chains",
    "collate_crops",
    "collate_parts",
    "joined",
    "random_crop",
    "read_chains",
    "read_sequences",
    "sequence_chain",
    "training_chain",
]

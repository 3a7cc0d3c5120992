"""Scores: tensors in, tensors out, batched, on any device. Knows nothing of models."""

from protfold_peft.metrics.calibration import Calibration, plddt_calibration
from protfold_peft.metrics.checks import NonFiniteCoordinatesError
from protfold_peft.metrics.clashes import Clashes, clashes
from protfold_peft.metrics.gdt import Gdt, gdt, gdt_ha, gdt_ts, tm_and_gdt
from protfold_peft.metrics.lddt import Lddt, lddt
from protfold_peft.metrics.rmsd import Rmsd, rmsd
from protfold_peft.metrics.stereochemistry import BackboneGeometry, backbone_geometry, sound_atoms
from protfold_peft.metrics.superpose import Superposition, superpose
from protfold_peft.metrics.tm_score import TmScore, tm_score

__all__ = [
    "BackboneGeometry",
    "Calibration",
    "Clashes",
    "Gdt",
    "Lddt",
    "NonFiniteCoordinatesError",
    "Rmsd",
    "Superposition",
    "TmScore",
    "backbone_geometry",
    "clashes",
    "gdt",
    "gdt_ha",
    "gdt_ts",
    "lddt",
    "plddt_calibration",
    "rmsd",
    "sound_atoms",
    "superpose",
    "tm_and_gdt",
    "tm_score",
]

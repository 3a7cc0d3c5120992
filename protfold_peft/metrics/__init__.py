"""Scores: tensors in, tensors out, batched, on any device; which residue is which. Knows nothing of models."""

from protfold_peft.metrics.calibration import Calibration, plddt_calibration
from protfold_peft.metrics.chain_mapping import ChainMapping, ChainMatch, map_chains
from protfold_peft.metrics.checks import NonFiniteCoordinatesError
from protfold_peft.metrics.clashes import Clashes, clashes
from protfold_peft.metrics.correspondence import Correspondence, correspond
from protfold_peft.metrics.gdt import Gdt, gdt, gdt_ha, gdt_ts, tm_and_gdt
from protfold_peft.metrics.interface import ChainPositions, Interface, QsScore, dockq, qs_score, score_interface
from protfold_peft.metrics.lddt import Lddt, lddt
from protfold_peft.metrics.rmsd import Rmsd, rmsd
from protfold_peft.metrics.stereochemistry import BackboneGeometry, backbone_geometry, sound_atoms
from protfold_peft.metrics.superpose import Superposition, superpose
from protfold_peft.metrics.tm_score import TmScore, tm_score

__all__ = [
    "BackboneGeometry",
    "Calibration",
    "ChainMapping",
    "ChainMatch",
    "ChainPositions",
    "Clashes",
    "Correspondence",
    "Gdt",
    "Interface",
    "Lddt",
    "NonFiniteCoordinatesError",
    "QsScore",
    "Rmsd",
    "Superposition",
    "TmScore",
    "backbone_geometry",
    "clashes",
    "correspond",
    "dockq",
    "gdt",
    "gdt_ha",
    "gdt_ts",
    "lddt",
    "map_chains",
    "plddt_calibration",
    "qs_score",
    "rmsd",
    "score_interface",
    "sound_atoms",
    "superpose",
    "tm_and_gdt",
    "tm_score",
]

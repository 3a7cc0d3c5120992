"""What a protein structure is: residue constants, PDB / mmCIF in and out, atom37 / atom14, rigid frames."""

from protfold_peft.structure.biopython import from_biopython, to_biopython
from protfold_peft.structure.geometry import (
    Torsions,
    atom14_from_groups,
    atom14_from_torsions,
    atom14_to_atom37,
    atom37_to_atom14,
    backbone_frames,
    backbone_from_frames,
    dihedral,
    groups_from_atoms,
    peptide_bonds,
    restypes_of,
    rigid_groups,
    swap_ambiguous,
    torsions,
    virtual_cb,
)
from protfold_peft.structure.mmcif_writer import write_mmcif
from protfold_peft.structure.pdb_writer import write_pdb
from protfold_peft.structure.reader import find_structure_files, read_structure
from protfold_peft.structure.rigid import Rigid
from protfold_peft.structure.types import Chain, Structure

__all__ = [
    "Chain",
    "Rigid",
    "Structure",
    "Torsions",
    "atom14_from_groups",
    "atom14_from_torsions",
    "atom14_to_atom37",
    "atom37_to_atom14",
    "backbone_frames",
    "backbone_from_frames",
    "dihedral",
    "find_structure_files",
    "from_biopython",
    "groups_from_atoms",
    "peptide_bonds",
    "read_structure",
    "restypes_of",
    "rigid_groups",
    "swap_ambiguous",
    "to_biopython",
    "torsions",
    "virtual_cb",
    "write_mmcif",
    "write_pdb",
]

"""What a protein structure is: residue constants, PDB / mmCIF in and out, atom37 / atom14, rigid frames."""

from protfold_peft.structure.reader import find_structure_files, read_structure
from protfold_peft.structure.types import Chain, Structure

__all__ = ["Chain", "Structure", "find_structure_files", "read_structure"]

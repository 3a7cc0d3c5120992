"""What a protein structure is: residue constants, PDB and mmCIF in and out, atom37 / atom14, rigid frames."""

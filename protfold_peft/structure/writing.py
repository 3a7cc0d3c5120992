"""What the two writers share: checks before a byte is written, and the file itself."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from protfold_peft.errors import StructureError
from protfold_peft.files import write_bytes
from protfold_peft.structure.polymer import chain_label
from protfold_peft.structure.residues import ATOM_TYPES
from protfold_peft.structure.types import Chain, Structure


def check_structure(structure: Structure, path: Path) -> None:
    """Refuse what no file format can hold.

    Raises:
        StructureError: A coordinate or B-factor is not finite, a chain has no atoms, or two chains share an id.
    """
    seen: set[str] = set()
    for chain in structure.chains:
        label = chain_label(chain.id)
        if chain.id in seen:
            raise StructureError(f"{path}: {label} occurs twice in {structure.name}; give every chain its own id")
        seen.add(chain.id)
        for values, what in ((chain.atom_positions, "coordinate"), (chain.b_factors[..., None], "B-factor")):
            bad = chain.atom_mask & ~np.isfinite(values).all(-1)
            if bad.any():
                row, column = (int(place[0]) for place in np.nonzero(bad))
                raise StructureError(
                    f"{path}: {label} residue {residue_label(chain, row)} atom {ATOM_TYPES[column]} has a {what} that "
                    "is not finite; the model is broken, nothing is written"
                )
        if not chain.atom_mask.any():
            raise StructureError(f"{path}: {label} has no atoms; leave it out")
    if not structure.chains:
        raise StructureError(f"{path}: {structure.name} has no chains; there is nothing to write")


def residue_label(chain: Chain, row: int) -> str:
    """`ALA 12A` for errors."""
    return f"{chain.residue_names[row]} {chain.residue_numbers[row]}{chain.insertion_codes[row]}"


def write_structure_text(path: Path, text: str) -> None:
    """Write whole or not at all; gzipped, with no time stamp, where the name ends in `.gz`."""
    data = text.encode("utf-8")
    write_bytes(path, gzip.compress(data, mtime=0) if path.name.lower().endswith(".gz") else data)

"""What an evaluation writes beside the tables: models coloured by lDDT, under names that do not collide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from protfold_peft.errors import ProtfoldError, StructureError
from protfold_peft.evaluation.matching import Matched
from protfold_peft.structure import Structure, write_mmcif, write_pdb
from protfold_peft.structure.source import short_name


def coloured(pair: Matched, lddt: np.ndarray) -> Structure:
    """The model with CA lDDT, 0..100, in the B-factor of all atoms of a residue.

    Residues that were not scored (without a partner, or of other chains) and those whose lDDT is undefined have 0.

    Args:
        pair: The model and what its residues stand for.
        lddt: `(n,)` lDDT of the reference's residues, 0..1, NaN where undefined.
    """
    values = {id(chain): np.zeros(len(chain)) for chain in pair.model.chains}
    start = 0
    for link in pair.links:
        end = start + len(link.reference)
        if link.model is not None and link.residues is not None:
            rows = link.residues.model_index
            known = rows >= 0
            values[id(link.model)][rows[known]] = 100 * np.nan_to_num(lddt[start:end][known])
        start = end
    chains = tuple(
        replace(chain, b_factors=np.where(chain.atom_mask, values[id(chain)][:, None], 0.0))
        for chain in pair.model.chains
    )
    return replace(pair.model, chains=chains)


def write_coloured(pair: Matched, lddt: np.ndarray, folder: Path, name: str) -> Path:
    """Write `coloured` as NAME.pdb, as NAME.cif where PDB cannot hold it.

    Raises:
        ProtfoldError: The file would replace the model or the reference.
        StructureError: Neither format holds the structure.
    """
    structure = coloured(pair, lddt)
    remark = f"B-FACTOR: CA LDDT (0..100) AGAINST {pair.reference.name}"
    try:
        path = _harmless(folder / f"{name}.pdb", pair)
        write_pdb(structure, path, remarks=[remark])
    except StructureError:
        path = _harmless(folder / f"{name}.cif", pair)
        write_mmcif(structure, path)
    return path


def _harmless(path: Path, pair: Matched) -> Path:
    sources = [structure.source for structure in (pair.model, pair.reference) if structure.source is not None]
    if any(path.exists() and path.samefile(source) for source in sources):
        raise ProtfoldError(f"{path} is an input: name another folder for --lddt-pdb")
    return path


class Names:
    """Names for the files of pairs: the model's, with the reference's or a number added where that is taken."""

    def __init__(self, models: Sequence[str]) -> None:
        # A model scored against several references has the reference in every name, whichever comes first.
        self._several = {name for name in models if models.count(name) > 1}
        self._taken: set[str] = set()

    def of(self, model: Path, reference: Path, model_number: int | None) -> str:
        """A new name, the same in every run with the same pairs."""
        name = short_name(model)
        if name in self._several:
            name = f"{name}_{short_name(reference)}"
        if model_number is not None:
            name = f"{name}_model{model_number}"
        candidate, count = name, 1
        # Case does not tell files apart everywhere.
        while candidate.lower() in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate.lower())
        return candidate

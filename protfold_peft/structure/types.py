"""What a protein structure is: frozen records of chains, in the order and numbering of their source.

Axis letters: `n` residues of a chain, 37 atoms of `residues.ATOM_TYPES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Chain:
    """One protein chain: the residues that have coordinates.

    Attributes:
        id: Author chain identifier; empty where the file has none.
        sequence: `n` one-letter codes of the parent amino acids (`MSE` reads as `M`), `X` where unknown.
        residue_names: `n` three-letter names as in the source (`MSE` stays `MSE`).
        residue_numbers: `(n,)` author residue numbers, as written.
        insertion_codes: `n` insertion codes, empty strings where there is none.
        atom_positions: `(n, 37, 3)` float64 coordinates in angstrom; 0 where `atom_mask` is false.
        atom_mask: `(n, 37)` bool, true where the atom is present.
        b_factors: `(n, 37)` float64 B-factors (0..100 pLDDT for predictions); 0 where absent.
        seqres: The full sequence of the entity (SEQRES, `_entity_poly_seq`), None where the file has none.
        seqres_index: `(n,)` 0-based place of every residue in `seqres`, None where `seqres` is None.
    """

    id: str
    sequence: str
    residue_names: tuple[str, ...]
    residue_numbers: np.ndarray
    insertion_codes: tuple[str, ...]
    atom_positions: np.ndarray
    atom_mask: np.ndarray
    b_factors: np.ndarray
    seqres: str | None = None
    seqres_index: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sequence)


@dataclass(frozen=True, eq=False)
class Structure:
    """The protein chains of one model of one file.

    Attributes:
        name: Short name, by default the file's name without suffixes.
        chains: Chains in file order; at least one.
        model: Number of the model taken, as written in the file (1 where the file numbers none).
        n_models: How many models the file holds.
        resolution: In angstrom, None where unknown.
        release_date: ISO date (`YYYY-MM-DD`), None where unknown.
        notes: One sentence for every policy that changed or dropped something ("chain A residue 22: ...").
        source: The file read, None for structures made in memory.
    """

    name: str
    chains: tuple[Chain, ...]
    model: int = 1
    n_models: int = 1
    resolution: float | None = None
    release_date: str | None = None
    notes: tuple[str, ...] = field(default=())
    source: Path | None = None

    def chain(self, id: str) -> Chain:
        """The chain called `id`.

        Raises:
            KeyError: No chain has this id; the message lists those there are.
        """
        for chain in self.chains:
            if chain.id == id:
                return chain
        raise KeyError(f"{self.name} has no chain '{id}'; it has {', '.join(repr(c.id) for c in self.chains)}")

    @property
    def n_residues(self) -> int:
        """Residues with coordinates, over all chains."""
        return sum(len(chain) for chain in self.chains)

"""What goes into the folding model and what comes out of it, as frozen records.

Axis letters: `n` residues of all chains together, linkers excluded; `c` chains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from protfold_peft.structure.types import Structure


@dataclass(frozen=True)
class Record:
    """One sequence to fold.

    Attributes:
        name: A name that is unique in a run and fit to be a file name.
        sequence: Upper-case one-letter codes; `:` stands between the chains of a complex.
        header: The FASTA header as it was.
    """

    name: str
    sequence: str
    header: str = ""

    @property
    def chains(self) -> tuple[str, ...]:
        """The sequences of the chains."""
        return tuple(self.sequence.split(":"))

    def __len__(self) -> int:
        return len(self.sequence) - self.sequence.count(":")


@dataclass(frozen=True, eq=False)
class Prediction:
    """One folded record, on the CPU, in the units users know.

    Attributes:
        record: What was folded.
        structure: Chains A, B, ... numbered from 1 each, pLDDT (0..100) of every atom as B-factors.
        plddt: `(n,)` pLDDT 0..100 of the CA atoms.
        ptm: Predicted TM-score, 0..1.
        iptm: Predicted interface TM-score, 0..1; None for a single chain.
        chain_pair_iptm: `(c, c)` interface pTM of every pair of chains, on the diagonal the pTM of each; None for one.
        pae: `(n, n)` predicted aligned error in angstrom, row = the residue aligned on.
        max_pae: The largest value the head can give, in angstrom.
        provenance: Model id, adapter hash, recycles, precision, version: written into every output.
    """

    record: Record
    structure: Structure
    plddt: np.ndarray
    ptm: float
    iptm: float | None
    chain_pair_iptm: np.ndarray | None
    pae: np.ndarray
    max_pae: float
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def mean_plddt(self) -> float:
        """Mean of `plddt`, 0..100."""
        return float(self.plddt.mean())

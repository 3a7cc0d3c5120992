"""A chain as training sees it: the whole sequence goes in, and the coordinates say which residues can be judged.

Axis letters: `n` residues of the sequence, resolved or not; 37 atoms of `residues.ATOM_TYPES`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protfold_peft.structure.geometry import PEPTIDE_BOND_CUTOFF
from protfold_peft.structure.residues import ATOM_INDEX, sequence_to_restypes
from protfold_peft.structure.types import Chain

# Two bonded CA are 3.8 A apart (2.9 A when cis); beyond the second number there is a gap between them.
CA_STEP = 3.8
LONGEST_CA_STEP = 4.5

N, CA, C = (ATOM_INDEX[name] for name in ("N", "CA", "C"))


@dataclass(frozen=True, eq=False)
class TrainingChain:
    """One chain, or a stretch of one.

    Attributes:
        name: File name without suffixes, with `_CHAIN` where the file holds several chains.
        sequence: `n` one-letter codes; `X` where unknown.
        aatype: `(n,)` int64 residue types in AlphaFold's order, 20 for unknown.
        residue_index: `(n,)` int64 places along the chain, increasing; see `place_along_chain`.
        atom_positions: `(n, 37, 3)` float32 in angstrom, centred on the resolved CA; 0 where `atom_mask` is false.
        atom_mask: `(n, 37)` bool, true where the atom was seen; all false for an unresolved residue.
    """

    name: str
    sequence: str
    aatype: np.ndarray
    residue_index: np.ndarray
    atom_positions: np.ndarray
    atom_mask: np.ndarray

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def has_frame(self) -> np.ndarray:
        """`(n,)` bool: N, CA and C are all there."""
        return np.logical_and.reduce(self.atom_mask[:, [N, CA, C]], axis=1)

    def crop(self, start: int, stop: int) -> TrainingChain:
        """Residues `start` to `stop` (exclusive), which keep their `residue_index`."""
        return TrainingChain(
            self.name,
            self.sequence[start:stop],
            self.aatype[start:stop],
            self.residue_index[start:stop],
            self.atom_positions[start:stop],
            self.atom_mask[start:stop],
        )


def sequence_chain(name: str, sequence: str) -> TrainingChain:
    """A sequence of which no structure is known."""
    n = len(sequence)
    return TrainingChain(
        name=name,
        sequence=sequence,
        aatype=sequence_to_restypes(sequence),
        residue_index=np.arange(n),
        atom_positions=np.zeros((n, len(ATOM_INDEX), 3), dtype=np.float32),
        atom_mask=np.zeros((n, len(ATOM_INDEX)), dtype=bool),
    )


def training_chain(chain: Chain, name: str) -> TrainingChain:
    """Lay the coordinates of `chain` along its full sequence.

    With SEQRES (or `_entity_poly_seq`) the unresolved residues stand in the sequence, without coordinates. Without it
    the sequence is the residues seen, and a gap in the chain shows only in `residue_index`.
    """
    positions = np.where(chain.atom_mask[..., None], chain.atom_positions, 0.0)
    if chain.seqres is not None and chain.seqres_index is not None:
        sequence = chain.seqres
        places = chain.seqres_index
        residue_index = np.arange(len(sequence))
    else:
        sequence = chain.sequence
        places = np.arange(len(chain))
        residue_index = place_along_chain(positions, chain.atom_mask)

    # Centred before the step to float32, which has 1e-4 A to spare only near the origin.
    seen = chain.atom_mask[:, CA]
    centre = positions[seen, CA].mean(axis=0) if seen.any() else np.zeros(3)
    atom_positions = np.zeros((len(sequence), *positions.shape[1:]), dtype=np.float32)
    atom_positions[places] = np.where(chain.atom_mask[..., None], positions - centre, 0.0)
    atom_mask = np.zeros((len(sequence), positions.shape[1]), dtype=bool)
    atom_mask[places] = chain.atom_mask
    return TrainingChain(
        name=name,
        sequence=sequence,
        aatype=sequence_to_restypes(sequence),
        residue_index=residue_index.astype(np.int64),
        atom_positions=atom_positions,
        atom_mask=atom_mask,
    )


def place_along_chain(positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`(n,)` places of residues whose full sequence is unknown: 0, 1, 2, ... with a jump at every gap.

    A gap is where C and the next N are too far apart to be bonded (CA and CA, where C or N is absent). It jumps by
    the fewest residues that can bridge its two CA. Author residue numbers are not used: in real files they jump over
    intact bonds, repeat with insertion codes and run backwards.

    Args:
        positions: `(n, 37, 3)` in angstrom.
        mask: `(n, 37)` true where the atom is known.
    """
    bond = np.linalg.norm(positions[1:, N] - positions[:-1, C], axis=-1)
    has_bond = mask[1:, N] & mask[:-1, C]
    step = np.linalg.norm(positions[1:, CA] - positions[:-1, CA], axis=-1)
    has_step = mask[1:, CA] & mask[:-1, CA]
    gap = np.where(has_bond, bond > PEPTIDE_BOND_CUTOFF, has_step & (step > LONGEST_CA_STEP))
    fewest = np.where(has_step, np.ceil(step / CA_STEP), 2).astype(np.int64)
    jumps = np.where(gap, np.maximum(fewest, 2), 1)
    return np.concatenate([[0], np.cumsum(jumps)])

"""Chains changed in known ways: the expected match or score is then known without the code under test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from protfold_peft.structure.types import Chain, Structure


def taken(chain: Chain, rows: Sequence[int] | np.ndarray, **changes: object) -> Chain:
    """The chain with these residues only, in this order."""
    rows = np.asarray(rows)
    picked = replace(
        chain,
        sequence="".join(chain.sequence[row] for row in rows),
        residue_names=tuple(chain.residue_names[row] for row in rows),
        residue_numbers=chain.residue_numbers[rows],
        insertion_codes=tuple(chain.insertion_codes[row] for row in rows),
        atom_positions=chain.atom_positions[rows],
        atom_mask=chain.atom_mask[rows],
        b_factors=chain.b_factors[rows],
        seqres=None,
        seqres_index=None,
    )
    return replace(picked, **changes)


def renumbered(chain: Chain, shift: int) -> Chain:
    """The chain with all residue numbers changed by the same."""
    return replace(chain, residue_numbers=chain.residue_numbers + shift, seqres=None, seqres_index=None)


def rotation(seed: int) -> np.ndarray:
    """A proper rotation, by the QR decomposition of a random matrix."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def moved(chain: Chain, turn: np.ndarray, shift: Sequence[float] = (0, 0, 0), **changes: object) -> Chain:
    """The chain after x -> turn x + shift."""
    positions = np.where(chain.atom_mask[..., None], chain.atom_positions @ turn.T + np.asarray(shift), 0.0)
    return replace(chain, atom_positions=positions, seqres=None, seqres_index=None, **changes)


def ring(chain: Chain, n: int, radius: float, ids: str = "ABCDEFGHIJKLMNOP") -> list[Chain]:
    """`n` copies of a chain around an axis: a complex with exact n-fold symmetry."""
    centre = chain.atom_positions[chain.atom_mask].mean(axis=0)
    out = []
    for place in range(n):
        angle = 2 * np.pi * place / n
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        shift = turn @ (np.array([radius, 0, 0]) - centre)
        out.append(moved(chain, turn, shift, id=ids[place]))
    return out


def structure(*chains: Chain, name: str = "made") -> Structure:
    """A structure of these chains."""
    return Structure(name=name, chains=tuple(chains))

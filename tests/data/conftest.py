"""Chains made in memory, whose right answers are known by construction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from protfold_peft.structure.types import Chain

THREE = {"A": "ALA", "G": "GLY", "W": "TRP", "X": "UNK"}


@pytest.fixture
def make_chain() -> Callable[..., Chain]:
    """`make_chain(sequence, ca_x=..., seqres=..., seqres_index=..., numbers=...)`.

    N, CA, C of every residue lie on the x axis: CA at `ca_x` (by default 3.8 A apart), N 1.45 A before and C 1.5 A
    after it, so that consecutive residues are 0.85 A apart from C to N: bonded.
    """

    def make(
        sequence: str,
        *,
        ca_x: list[float] | None = None,
        seqres: str | None = None,
        seqres_index: list[int] | None = None,
        numbers: list[int] | None = None,
    ) -> Chain:
        n = len(sequence)
        x = np.array(ca_x) if ca_x is not None else 3.8 * np.arange(n)
        positions = np.zeros((n, 37, 3))
        mask = np.zeros((n, 37), dtype=bool)
        for atom, offset in ((0, -1.45), (1, 0.0), (2, 1.5)):
            positions[:, atom, 0] = x + offset
            mask[:, atom] = True
        return Chain(
            id="A",
            sequence=sequence,
            residue_names=tuple(THREE[letter] for letter in sequence),
            residue_numbers=np.array(numbers if numbers is not None else range(1, n + 1)),
            insertion_codes=("",) * n,
            atom_positions=positions,
            atom_mask=mask,
            b_factors=np.zeros((n, 37)),
            seqres=seqres,
            seqres_index=None if seqres_index is None else np.array(seqres_index),
        )

    return make

"""How far a model's own confidence can be believed: pLDDT beside the lDDT that came true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from protfold_peft.evaluation.combine import Outcome
from protfold_peft.evaluation.plots import plot_calibration
from protfold_peft.evaluation.rows import Row, finite


class Calibrator:
    """Collects pLDDT and lDDT of all pairs of a run."""

    def __init__(self) -> None:
        self._plddt: list[np.ndarray] = []
        self._lddt: list[np.ndarray] = []

    def judge(self, row: Row, outcome: Outcome) -> Row:
        """The row with its calibration, or with a note on why there is none."""
        known = np.isfinite(outcome.plddt) & np.isfinite(outcome.lddt_per_residue)
        plddt, scale = as_plddt(outcome.plddt[known])
        if plddt is None:
            return replace(row, notes=(*row.notes, "no calibration: the B-factors of the model are not pLDDT"))
        lddt = 100 * outcome.lddt_per_residue[known]
        self._plddt.append(plddt)
        self._lddt.append(lddt)
        notes = row.notes if scale == 1 else (*row.notes, "B-factors between 0 and 1 taken as pLDDT / 100")
        return _with_agreement(replace(row, notes=notes), plddt, lddt)

    def plot(self, folder: Path) -> None:
        """Draw all residues of the run in `calibration.png`; nothing without any."""
        if self._plddt:
            plddt, lddt = np.concatenate(self._plddt), np.concatenate(self._lddt)
            plot_calibration(folder / "calibration.png", plddt, lddt, title=f"{len(plddt)} residues")


def as_plddt(b_factors: np.ndarray) -> tuple[np.ndarray | None, float]:
    """B-factors as pLDDT 0..100 and what they were multiplied by; None where they cannot be that.

    They cannot where one lies outside 0..100 or all are equal (nothing was predicted). Values that all lie within
    0..1 are taken for fractions, as some programs write them.
    """
    if not len(b_factors) or b_factors.min() < 0 or b_factors.max() > 100 or np.ptp(b_factors) == 0:
        return None, 1.0
    scale = 100.0 if b_factors.max() <= 1 else 1.0
    return scale * b_factors, scale


def _with_agreement(row: Row, plddt: np.ndarray, lddt: np.ndarray) -> Row:
    """The row with its columns, from two `(n,)` arrays of 0..100."""
    correlation = rank_correlation = float("nan")
    if len(plddt) > 1 and np.ptp(plddt) and np.ptp(lddt):
        correlation = float(np.corrcoef(plddt, lddt)[0, 1])
        rank_correlation = float(np.corrcoef(_ranks(plddt), _ranks(lddt))[0, 1])
    return replace(
        row,
        plddt=finite(float(plddt.mean())),
        plddt_pearson=finite(correlation),
        plddt_spearman=finite(rank_correlation),
        plddt_error=finite(float(np.abs(plddt - lddt).mean())),
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]

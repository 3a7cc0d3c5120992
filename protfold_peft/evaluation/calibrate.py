"""How far a model's own confidence can be believed: pLDDT beside the lDDT that came true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from protfold_peft.evaluation.combine import Outcome
from protfold_peft.evaluation.plots import plot_calibration
from protfold_peft.evaluation.rows import Row, finite
from protfold_peft.metrics.calibration import plddt_calibration


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
        lddt = outcome.lddt_per_residue[known]
        self._plddt.append(plddt)
        self._lddt.append(lddt)
        notes = row.notes if scale == 1 else (*row.notes, "B-factors between 0 and 1 taken as pLDDT / 100")
        found = _agreement(plddt, lddt)
        return replace(
            row,
            plddt=float(plddt.mean()),
            plddt_pearson=finite(found["pearson"]),
            plddt_spearman=finite(found["spearman"]),
            plddt_error=finite(found["error"]),
            plddt_bias=finite(found["bias"]),
            notes=notes,
        )

    @property
    def summary(self) -> str:
        """One line over all residues of the run; empty without any."""
        if not self._plddt:
            return ""
        plddt, lddt = np.concatenate(self._plddt), np.concatenate(self._lddt)
        found = _agreement(plddt, lddt)
        return (
            f"pLDDT of {len(plddt)} residues: r {found['pearson']:.3f}, mean error {found['error']:.1f}, "
            f"bias {found['bias']:+.1f}"
        )

    def plot(self, folder: Path) -> None:
        """Draw all residues of the run in `calibration.png`; nothing without any."""
        if self._plddt:
            plddt, lddt = np.concatenate(self._plddt), np.concatenate(self._lddt)
            plot_calibration(folder / "calibration.png", plddt, 100 * lddt, title=self.summary)


def as_plddt(b_factors: np.ndarray) -> tuple[np.ndarray | None, float]:
    """B-factors as pLDDT 0..100 and what they were multiplied by; None where they cannot be that.

    They cannot where one lies outside 0..100 or all are equal (nothing was predicted). Values that all lie within
    0..1 are taken for fractions, as some programs write them.
    """
    if not len(b_factors) or b_factors.min() < 0 or b_factors.max() > 100 or np.ptp(b_factors) == 0:
        return None, 1.0
    scale = 100.0 if b_factors.max() <= 1 else 1.0
    return scale * b_factors, scale


def _agreement(plddt: np.ndarray, lddt: np.ndarray) -> dict[str, float]:
    """The library's calibration of pLDDT 0..100 and lDDT 0..1, both `(n,)`."""
    told, true = (torch.from_numpy(np.ascontiguousarray(values))[None] for values in (plddt, lddt))
    found = plddt_calibration(told, true, torch.ones_like(told, dtype=torch.bool))
    return {name: float(getattr(found, name)) for name in ("pearson", "spearman", "error", "bias")}

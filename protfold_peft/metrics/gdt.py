"""GDT: the fraction of the reference that superposes within a few distances, each maximised on its own.

    TS = mean of the fractions within 1, 2, 4 and 8 A        HA = mean of those within 0.5, 1, 2 and 4 A

Source: Zemla, "LGA: a method for finding 3D similarities in protein structures", Nucleic Acids Res. 31 (2003) 3370.
The maxima are taken over all superpositions of TMscore's search (`search.py`), as the TMscore program takes its GDT;
LGA's own search differs. A heavier search finds 0.007 (TS) and 0.012 (HA) more in the median.

The fraction is of all residues of the reference: those that the model lacks count as too far.

Axis letters: `b` batch, `n` residues of the reference, `c` cutoffs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.metrics import search as tmscore
from protfold_peft.metrics.checks import ca_of, masked
from protfold_peft.metrics.side_by_side import one_core
from protfold_peft.metrics.tm_score import TmScore, score_at, tm_d0

TS_CUTOFFS = (1.0, 2.0, 4.0, 8.0)
HA_CUTOFFS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, eq=False)
class Gdt:
    """GDT of a batch.

    Attributes:
        score: `(b,)` 0..1, the mean of the fractions; NaN without a reference.
        fractions: `(b, c)` of the reference's residues within each cutoff.
        cutoffs: The `c` distances in angstrom.
    """

    score: Tensor
    fractions: Tensor
    cutoffs: tuple[float, ...]


def gdt_ts(predicted: Tensor, reference: Tensor, mask: Tensor, predicted_mask: Tensor | None = None) -> Gdt:
    """GDT-TS; arguments and errors as in `tm_score`."""
    return gdt(predicted, reference, mask, predicted_mask, TS_CUTOFFS)


def gdt_ha(predicted: Tensor, reference: Tensor, mask: Tensor, predicted_mask: Tensor | None = None) -> Gdt:
    """GDT-HA; arguments and errors as in `tm_score`."""
    return gdt(predicted, reference, mask, predicted_mask, HA_CUTOFFS)


def gdt(
    predicted: Tensor,
    reference: Tensor,
    mask: Tensor,
    predicted_mask: Tensor | None = None,
    cutoffs: tuple[float, ...] = TS_CUTOFFS,
) -> Gdt:
    """GDT with any cutoffs in angstrom; arguments and errors as in `tm_score`."""
    return tm_and_gdt(predicted, reference, mask, predicted_mask, (cutoffs,))[1][0]


@torch.no_grad()
def tm_and_gdt(
    predicted: Tensor,
    reference: Tensor,
    mask: Tensor,
    predicted_mask: Tensor | None = None,
    gdts: tuple[tuple[float, ...], ...] = (TS_CUTOFFS, HA_CUTOFFS),
) -> tuple[TmScore, tuple[Gdt, ...]]:
    """TM-score (TMscore's rule, normalised by the reference) and a GDT for each group of cutoffs, from one search.

    Arguments and errors as in `tm_score`.
    """
    predicted, reference, in_reference, in_model = ca_of(predicted, reference, mask, predicted_mask, "gdt")
    with one_core(predicted.device):
        matched = in_reference & in_model
        mobile = masked(predicted, matched, "predicted").double()
        target = masked(reference, matched, "reference").double()
        length = in_reference.sum(dim=1)
        cutoffs = tuple(sorted({cutoff for group in gdts for cutoff in group}))
        found = tmscore.search(mobile, target, matched, tm_d0(length), cutoffs)
        tm = score_at(found.rotation, found.translation, mobile, target, matched, length, predicted.dtype)
        fractions = (found.within / length[:, None]).to(predicted.dtype)
        results = []
        for group in gdts:
            own = fractions[:, [cutoffs.index(cutoff) for cutoff in group]]
            results.append(Gdt(own.mean(dim=1), own, group))
        return tm, tuple(results)

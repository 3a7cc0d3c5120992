"""RMSD after the best superposition, over the atoms that both structures have.

A residue that the model lacks does not make the RMSD worse: read it beside the number of atoms compared.

Axis letters: `b` batch, `n` residues, `a` atoms per residue.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from protfold_peft.metrics.checks import check_masks, check_pair, masked
from protfold_peft.metrics.superpose import Superposition, superpose


@dataclass(frozen=True, eq=False)
class Rmsd:
    """RMSD of a batch.

    Attributes:
        score: `(b,)` in angstrom; NaN where no atom is compared, 0 for one.
        n_atoms: `(b,)` atoms compared.
        superposition: Of `predicted` onto `reference`.
    """

    score: Tensor
    n_atoms: Tensor
    superposition: Superposition


def rmsd(predicted: Tensor, reference: Tensor, mask: Tensor, predicted_mask: Tensor | None = None) -> Rmsd:
    """RMSD of the atoms present in both, superposed on themselves. Differentiable once, as `superpose` is.

    Args:
        predicted: `(b, n, 3)` (CA) or `(b, n, a, 3)` (all atoms given) coordinates in angstrom, float32 or float64.
        reference: Of the same shape, type and device.
        mask: `(b, n)` or `(b, n, a)` true where the reference has the atom.
        predicted_mask: The same of the model; all by default.

    Raises:
        ValueError: The shapes do not agree, or a coordinate that takes part is NaN or infinite
            (`NonFiniteCoordinatesError`).
    """
    check_pair(predicted, reference, "rmsd")
    in_reference, in_model = check_masks(predicted, mask, predicted_mask)
    both = in_reference & in_model
    fit = superpose(masked(predicted, both, "predicted"), masked(reference, both, "reference"), both)
    return Rmsd(fit.rmsd, both.flatten(1).sum(dim=1), fit)

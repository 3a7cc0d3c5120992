"""How well a model folds given chains: from the sequence alone, as `protfold predict` does, in eval mode.

One chain at a time, because padding changes the last digits of a prediction; with recycles of the weights' own number
or the run's; on coordinates as a PDB file has them, to 0.001 A. So the scores are those that anybody gets who predicts
the sequence and scores the file.

Axis letters: `n` residues.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from protfold_peft.data import TrainingChain, collate_chains
from protfold_peft.errors import NonFiniteError
from protfold_peft.metrics import lddt, plddt_calibration, tm_and_gdt
from protfold_peft.metrics.gdt import TS_CUTOFFS
from protfold_peft.structure.residues import ATOM_INDEX

CA, OXT = ATOM_INDEX["CA"], ATOM_INDEX["OXT"]
SCORES = ("lddt_ca", "tm_score", "gdt_ts", "lddt", "plddt")
CALIBRATION = ("pearson", "spearman", "error", "bias")
# Residues of a chain that is scored on the CPU wherever it was folded.
_SHORT = 256

Values = Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class Folded:
    """A chain's prediction and its scores.

    Attributes:
        name: Of the chain.
        residues: Of its sequence.
        scores: `lddt_ca`, `lddt` (all heavy atoms), `tm_score`, `gdt_ts`, 0..1, and `plddt`, the mean of CA, 0..100;
            None where undefined.
        atoms: `(n, 37, 3)` float32 predicted coordinates in angstrom, on the CPU; 0 where the model places no atom.
        plddt: `(n,)` of the CA atoms, 0..100.
        true_lddt: `(n,)` CA lDDT of every residue, 0..1; NaN where there is none.
    """

    name: str
    residues: int
    scores: Values
    atoms: Tensor
    plddt: Tensor
    true_lddt: Tensor


def fold_chains(network: nn.Module, chains: Sequence[TrainingChain], recycles: int) -> Iterator[Folded]:
    """Fold and score each chain in turn.

    Args:
        network: `EsmFold`, or the PEFT model around it.
        chains: With experimental coordinates.
        recycles: Passes after the first.

    Raises:
        NonFiniteError: The model gave NaN or infinity; the message names the chain.
    """
    device = next(network.parameters()).device
    for chain in chains:
        batch = {key: value.to(device) for key, value in collate_chains([chain]).items()}
        with evaluating(network), torch.no_grad():
            output: Any = network(batch["input_ids"], batch["attention_mask"], recycles=recycles)
        exists = output.atom37_atom_exists.bool()
        places = output.residx_atom37_to_atom14[..., None].expand(-1, -1, -1, 3)
        atoms = output.positions[-1].double().gather(2, places).mul(1000).round().div(1000)
        atoms = torch.where(exists[..., None], atoms, 0.0)
        if not bool(atoms.isfinite().all()):
            raise NonFiniteError(f"{chain.name}: the model's coordinates hold NaN or infinity")
        plddt = output.plddt[0, :, CA].double()
        # Scores are thousands of small operations, each of which a GPU starts more slowly than a CPU does a short one.
        judge = torch.device("cpu") if len(chain) <= _SHORT else device
        atoms, exists = atoms.to(judge), exists.to(judge)
        batch = {key: value.to(judge) for key, value in batch.items()}
        true, mask = batch["atom_positions"].double(), batch["atom_mask"].clone()
        # The model places no terminal oxygen.
        mask[..., OXT] = False
        local = lddt(atoms[:, :, CA], true[:, :, CA], mask[:, :, CA])
        tm, (ts,) = tm_and_gdt(atoms[:, :, CA], true[:, :, CA], mask[:, :, CA], None, (TS_CUTOFFS,))
        # Of unknown residues the model places a backbone: their other atoms are not asked for.
        full = lddt(atoms, true, mask & exists, restypes=batch["input_ids"])
        values = {
            "lddt_ca": local.score,
            "tm_score": tm.score,
            "gdt_ts": ts.score,
            "lddt": full.score,
            "plddt": plddt.mean(),
        }
        yield Folded(
            name=chain.name,
            residues=len(chain),
            scores={name: _defined(value.item()) for name, value in values.items()},
            atoms=atoms[0].float().cpu(),
            plddt=plddt.cpu(),
            true_lddt=local.per_residue[0].double().cpu(),
        )


def mean_scores(scores: Sequence[Values]) -> dict[str, float | None]:
    """The mean of every score over the chains that have it; None if none has."""
    means: dict[str, float | None] = {}
    for name in SCORES:
        defined = [value for one in scores if (value := one[name]) is not None]
        means[name] = sum(defined) / len(defined) if defined else None
    return means


def calibration(folded: Sequence[Folded]) -> dict[str, float | None]:
    """How well pLDDT tells the true CA lDDT over all residues together: `CALIBRATION`, see `plddt_calibration`."""
    plddt = torch.cat([one.plddt for one in folded])[None]
    true = torch.cat([one.true_lddt for one in folded])[None]
    result = plddt_calibration(plddt, true, ~true.isnan())
    return {name: _defined(getattr(result, name).item()) for name in CALIBRATION}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode within, the mode it was in afterwards."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value

"""How well a model folds given chains: from the sequence alone, as `protfold predict` does, in eval mode.

Folded one at a time, because padding changes the last digits of a prediction; with recycles of the weights' own number
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
from torch.nn.utils.rnn import pad_sequence

from protfold_peft.data import TrainingChain, collate_chains
from protfold_peft.errors import NonFiniteError
from protfold_peft.metrics import lddt, plddt_calibration, tm_and_gdt
from protfold_peft.metrics.gdt import TS_CUTOFFS
from protfold_peft.structure.residues import ATOM_INDEX

CA, OXT = ATOM_INDEX["CA"], ATOM_INDEX["OXT"]
SCORES = ("lddt_ca", "tm_score", "gdt_ts", "lddt", "plddt")
CALIBRATION = ("pearson", "spearman", "error", "bias")
# On a GPU: chains that are scored together, at most so many residues of them, padding included, in a batch; a batch
# of so few is scored on the CPU.
_TOGETHER = 32
_MOST = 8192
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


def fold_chains(
    network: nn.Module, chains: Sequence[TrainingChain], recycles: int, *, together: int | None = None
) -> Iterator[Folded]:
    """Fold each chain by itself, and score several at once.

    Args:
        network: `EsmFold`, or the PEFT model around it.
        chains: With experimental coordinates.
        recycles: Passes after the first.
        together: Chains that are scored in one batch, which changes no score; by default 32 on a GPU, which starts the
            thousands of small operations of a score more slowly than it does them, and 1 on a CPU.

    Raises:
        NonFiniteError: The model gave NaN or infinity; the message names the chain.
    """
    if together is None:
        together = 1 if next(network.parameters()).device.type == "cpu" else _TOGETHER
    for first in range(0, len(chains), together):
        yield from _scored([_fold(network, chain, recycles) for chain in chains[first : first + together]])


@dataclass(frozen=True, eq=False)
class _Prediction:
    """A prediction beside the experiment: `(n, ...)` tensors where it was folded."""

    chain: TrainingChain
    atoms: Tensor
    exists: Tensor
    plddt: Tensor


def _fold(network: nn.Module, chain: TrainingChain, recycles: int) -> _Prediction:
    device = next(network.parameters()).device
    batch = {key: value.to(device) for key, value in collate_chains([chain]).items()}
    with evaluating(network), torch.no_grad():
        output: Any = network(batch["input_ids"], batch["attention_mask"], recycles=recycles)
    exists = output.atom37_atom_exists.bool()
    places = output.residx_atom37_to_atom14[..., None].expand(-1, -1, -1, 3)
    atoms = output.positions[-1].double().gather(2, places).mul(1000).round().div(1000)
    atoms = torch.where(exists[..., None], atoms, 0.0)
    if not bool(atoms.isfinite().all()):
        raise NonFiniteError(f"{chain.name}: the model's coordinates hold NaN or infinity")
    return _Prediction(chain, atoms[0], exists[0], output.plddt[0, :, CA].double())


def _scored(predictions: Sequence[_Prediction]) -> list[Folded]:
    """The scores of some predictions, in their order, from batches of similar length."""
    by_length = sorted(range(len(predictions)), key=lambda place: len(predictions[place].chain))
    found: dict[int, Folded] = {}
    for places in _batches(by_length, [len(one.chain) for one in predictions]):
        found |= zip(places, _scored_at_once([predictions[place] for place in places]))
    return [found[place] for place in range(len(predictions))]


def _batches(by_length: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places from the shortest to the longest, so that padding is at most a third and a batch has a bounded size."""
    batch: list[int] = []
    for place in by_length:
        longest = lengths[place]
        if batch and (longest > 1.5 * lengths[batch[0]] or longest * (len(batch) + 1) > _MOST):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _scored_at_once(predictions: Sequence[_Prediction]) -> list[Folded]:
    batch = collate_chains([one.chain for one in predictions])
    device = predictions[0].atoms.device
    judge = device if batch["input_ids"].numel() > _SHORT else torch.device("cpu")
    batch = {key: value.to(judge) for key, value in batch.items()}
    atoms = pad_sequence([one.atoms for one in predictions], batch_first=True).to(judge)
    exists = pad_sequence([one.exists for one in predictions], batch_first=True).to(judge)
    true, mask = batch["atom_positions"].double(), batch["atom_mask"].clone()
    # The model places no terminal oxygen.
    mask[..., OXT] = False
    local = lddt(atoms[:, :, CA], true[:, :, CA], mask[:, :, CA])
    tm, (ts,) = tm_and_gdt(atoms[:, :, CA], true[:, :, CA], mask[:, :, CA], None, (TS_CUTOFFS,))
    # Of unknown residues the model places a backbone: their other atoms are not asked for.
    full = lddt(atoms, true, mask & exists, restypes=batch["input_ids"])
    columns = {"lddt_ca": local.score, "tm_score": tm.score, "gdt_ts": ts.score, "lddt": full.score}
    values = {name: column.tolist() for name, column in columns.items()}
    values["plddt"] = [one.plddt.mean().item() for one in predictions]
    residues = local.per_residue.double().cpu()
    return [
        Folded(
            name=one.chain.name,
            residues=len(one.chain),
            scores={name: _defined(column[place]) for name, column in values.items()},
            atoms=one.atoms.float().cpu(),
            plddt=one.plddt.cpu(),
            true_lddt=residues[place, : len(one.chain)],
        )
        for place, one in enumerate(predictions)
    ]


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

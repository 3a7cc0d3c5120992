"""How well the model folds the training chains: whole chains, one at a time, in eval mode."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from protfold_peft.data import MODEL_INPUTS, TrainingChain, collate_chains
from protfold_peft.errors import NonFiniteError
from protfold_peft.metrics import lddt
from protfold_peft.structure.residues import ATOM_INDEX

CA = ATOM_INDEX["CA"]


def ca_lddt(network: nn.Module, chains: Sequence[TrainingChain], recycles: int) -> Iterator[float]:
    """CA lDDT, 0..1, of each chain in turn; NaN for a chain that has no two resolved CA within 15 A.

    One chain at a time, because padding changes the last digits of a prediction, and the score is to be the one that
    anybody gets who folds the chain alone.

    Raises:
        NonFiniteError: The model gave NaN or infinity; the message names the chain.
    """
    device = next(network.parameters()).device
    for chain in chains:
        batch = {key: value.to(device) for key, value in collate_chains([chain]).items()}
        with evaluating(network), torch.no_grad():
            output: Any = network(**{key: batch[key] for key in MODEL_INPUTS}, recycles=recycles)
        # CA is the second atom of every residue in the model's compact layout too.
        predicted = output.positions[-1][:, :, CA].float()
        try:
            result = lddt(predicted, batch["atom_positions"][:, :, CA], batch["atom_mask"][:, :, CA])
        except NonFiniteError as error:
            raise NonFiniteError(f"{chain.name}: {error}") from error
        yield result.score.item()


def mean_score(scores: Sequence[float]) -> float | None:
    """The mean of those that are defined; None if none is."""
    defined = [score for score in scores if not math.isnan(score)]
    return sum(defined) / len(defined) if defined else None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode within, the mode it was in afterwards."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)

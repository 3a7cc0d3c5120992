"""A stand-in for the model: instant, and with results that depend on the batch as those of a padded batch do."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from protfold_peft.folding import run
from protfold_peft.folding.types import Prediction, Record
from protfold_peft.structure.types import Chain, Structure

THREE = {"M": "MET", "K": "LYS", "T": "THR", "A": "ALA", "Y": "TYR", "I": "ILE", "Q": "GLN", "R": "ARG"}
THREE |= {"S": "SER", "F": "PHE", "V": "VAL", "H": "HIS"}


class StandIn:
    """A `LoadedModel` with numbers drawn from the names of a batch's records."""

    id = "stand-in"
    adapter_hash = None
    precision = "fp32/fp32"
    device = "cpu"
    untrained = True
    default_recycles = 3

    def __init__(self) -> None:
        self.base = SimpleNamespace(trunk=SimpleNamespace(chunk_size=None, autocast_dtype=None))
        self.batches: list[list[str]] = []

    def set_chunk_size(self, size: int | None) -> None:
        self.base.trunk.chunk_size = size

    def predict(self, batch: Sequence[Record], recycles: int | None) -> list[Prediction]:
        self.batches.append([record.name for record in batch])
        # The last digits depend on what a record is folded with.
        padding = 0.011 * sum(map(len, batch))
        return [
            self._predict(record, padding, self.default_recycles if recycles is None else recycles) for record in batch
        ]

    def _predict(self, record: Record, padding: float, recycles: int) -> Prediction:
        random = np.random.default_rng([len(record), recycles, *record.name.encode()])
        n, c = len(record), len(record.chains)
        plddt = random.uniform(20, 95, n) + padding
        chains, start = [], 0
        for number, sequence in enumerate(record.chains):
            end = start + len(sequence)
            mask = np.zeros((len(sequence), 37), bool)
            mask[:, [0, 1, 2, 4]] = True
            positions = np.where(mask[..., None], random.normal(0, 20, (len(sequence), 37, 3)), 0.0)
            chains.append(
                Chain(
                    id="ABCDEF"[number],
                    sequence=sequence,
                    residue_names=tuple(THREE[letter] for letter in sequence),
                    residue_numbers=np.arange(1, len(sequence) + 1),
                    insertion_codes=("",) * len(sequence),
                    atom_positions=positions,
                    atom_mask=mask,
                    b_factors=np.where(mask, plddt[start:end, None], 0.0),
                )
            )
            start = end
        return Prediction(
            record=record,
            structure=Structure(record.name, tuple(chains)),
            plddt=plddt,
            ptm=float(random.uniform(0, 1)),
            iptm=float(random.uniform(0, 1)) if c > 1 else None,
            chain_pair_iptm=random.uniform(0, 1, (c, c)) if c > 1 else None,
            pae=random.uniform(0, 31, (n, n)) + padding / 100,
            max_pae=31.75,
            provenance={
                "program": "protfold test",
                "model": self.id,
                "adapter": self.adapter_hash or "none",
                "recycles": str(recycles),
                "precision": self.precision,
                "warning": "stand-in has UNTRAINED weights: noise",
            },
        )


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    """Put the stand-in where runs get their model from."""
    model = StandIn()
    monkeypatch.setattr(run, "load_model", lambda *args, **options: model)
    monkeypatch.setattr(run, "predict_batch", lambda model, batch, recycles: model.predict(batch, recycles))
    return model

"""The memory of a run does not grow with the number of sequences."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import numpy as np
import pytest

from protfold_peft.folding import run
from protfold_peft.folding.run import run_prediction
from protfold_peft.folding.settings import RunSettings
from protfold_peft.runtime import resident_memory

RECORDS = 10_000


@pytest.mark.slow
@pytest.mark.skipif(resident_memory() is None, reason="this system does not tell a process its memory")
@pytest.mark.parametrize("writers", [0, 1])
def test_ten_thousand_sequences_take_the_memory_of_a_few(tmp_path: Path, monkeypatch, writers) -> None:
    """Sampled at every batch: between a tenth of the way and the end nothing is added but a few bytes per record."""
    draw = random.Random(0)
    lines = [
        f">p{i}\n{''.join(draw.choices('ACDEFGHIKLMNPQRSTVWY', k=draw.randint(10, 24)))}\n" for i in range(RECORDS)
    ]
    fasta = tmp_path / "many.fasta"
    fasta.write_text("".join(lines))
    sampled: list[int] = []
    fold = run.predict_batch

    def watched(*args, **options):
        gc.collect()
        sampled.append(resident_memory() or 0)
        return fold(*args, **options)

    monkeypatch.setattr(run, "predict_batch", watched)
    settings = RunSettings(
        (str(fasta),),
        tmp_path / "out",
        model="protfold-mini-untrained",
        device="cpu",
        plots=False,
        report=False,
        recycles=0,
        max_tokens_per_batch=4096,
        writers=writers,
    )
    assert run_prediction(settings).folded == RECORDS
    assert len(sampled) > 40
    # Batches come shortest first, and longer ones need more: their share is that of a batch, not of the run.
    start = max(sampled[: len(sampled) // 5])
    growth = np.median(sampled[-5:]) - start
    assert growth < 60 * 2**20, [size // 2**20 for size in sampled]

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
    """Sampled at every batch, all of one shape: after the first tenth nothing is added but a few bytes per record."""
    draw = random.Random(0)
    lines = [f">p{i}\n{''.join(draw.choices('ACDEFGHIKLMNPQRSTVWY', k=20))}\n" for i in range(RECORDS)]
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
    tenth = len(sampled) // 10
    # A tenth is passed over: what libraries set aside once. Kept, the predictions would be 200 MiB and more.
    growth = np.median(sampled[-tenth:]) - np.median(sampled[tenth : 2 * tenth])
    print("MiB at every tenth:", [size // 2**20 for size in sampled[:: max(1, tenth)]])
    assert growth < 50 * 2**20

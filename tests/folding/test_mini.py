"""The built-in model as it ships: whole, small, and better than random weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from protfold_peft import load_model
from protfold_peft.data import Crop, CropDataset, collate_crops, read_chains
from protfold_peft.folding.masked_lm import attach_head
from protfold_peft.folding.mini import MINI_FOLDER
from protfold_peft.losses import masked_lm_loss
from protfold_peft.training.evaluate import fold_chains, mean_scores

LARGEST = 16 * 2**20


@pytest.fixture(scope="module")
def chains(structures: Path) -> list:
    return list(read_chains(structures, max_length=100).chains)


def test_it_is_small_and_complete() -> None:
    files = {path.name for path in MINI_FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "masked_lm_head.safetensors", "README.md"} <= files
    assert sum(path.stat().st_size for path in MINI_FOLDER.iterdir()) < LARGEST
    loaded = load_model(device="cpu")
    assert not loaded.untrained
    assert loaded.id == "protfold-mini"
    assert all(parameter.isfinite().all() for parameter in loaded.network.parameters())
    # The rotary frequencies were not rounded with the weights: 1 / 10000^(2i / 32), exactly.
    expected = 1 / 10_000 ** (torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    torch.testing.assert_close(loaded.network.esm.rotary_embeddings.inv_freq.double(), expected, rtol=1e-6, atol=0)


def test_it_folds_better_than_random_weights(chains) -> None:
    scores = {
        name: mean_scores([one.scores for one in fold_chains(load_model(name, device="cpu").network, chains, 0)])
        for name in (None, "protfold-mini-untrained")
    }
    assert scores[None]["lddt_ca"] > scores["protfold-mini-untrained"]["lddt_ca"] + 0.1


def test_its_language_model_knows_more_than_chance(chains) -> None:
    """Cross-entropy of hidden residues below that of twenty equally likely ones."""
    network = load_model(device="cpu").network
    attach_head(network, None, MINI_FOLDER)
    samples = CropDataset(chains, crop_size=100, batch_size=1, steps=40, seed=0, masked=True)
    crops: list[Crop] = [samples[k] for k in range(40)]
    losses = []
    with torch.no_grad():
        for crop in crops:
            batch = collate_crops([crop])
            output = network(batch["input_ids"], batch["attention_mask"], masked_ids=batch["masked_ids"], fold=False)
            losses.append(masked_lm_loss(output.masked_lm_logits, output.masked_lm_tokens, batch["masked_chosen"]))
    assert torch.cat(losses).mean() < math.log(20) - 0.05

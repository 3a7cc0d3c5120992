"""The configurations that come along: every arm of them can be trained, and says what it costs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from protfold_peft.comparison import ComparisonConfig
from protfold_peft.comparison.cells import arms_of, cells_of, training_config
from protfold_peft.configuration import read_config
from protfold_peft.training.setup import load_base, make_trainable

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", ["compare_casp14", "compare_family"])
def test_every_arm_can_be_trained(name: str) -> None:
    config = read_config(ComparisonConfig, CONFIGS / f"{name}.yaml", ["finetune.model.name=protfold-mini-untrained"])
    loaded = load_base(config.finetune, torch.device("cpu"))
    network = loaded.network
    counts = {}
    for arm in arms_of(config):
        object.__setattr__(loaded, "network", copy.deepcopy(network))
        model = make_trainable(loaded, training_config(config, arm, 1e-3, 0))
        counts[arm.label] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert all(counts.values())
    # Equal sites, by hand: 24 square maps of width 256, 8 heads of 32, 6 layers, 4 kinds.
    for rank in (1, 4):
        assert counts[f"lora_r{rank}"] == 24 * rank * 512
        assert counts[f"lorta_r{rank}"] == rank * (256 + 32 + 8 + 6 + 4)
    assert counts["lora_r1"] / counts["lorta_r1"] == pytest.approx(40.2, abs=0.05)
    # Each arm is trained from three seeds, and chosen for from one.
    cells = cells_of(config, arms_of(config))
    assert sum(cell.kind == "train" for cell in cells) == 3 * len(counts)
    assert len({cell.name for cell in cells}) == len(cells)

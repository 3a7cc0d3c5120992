"""Small folding models with random weights through which everything flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import randomise, tiny_config
from torch import Tensor
from transformers.models.esm.modeling_esmfold import EsmForProteinFolding

from protfold_peft.folding.model import EsmFold


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., tuple[EsmForProteinFolding, EsmFold]]:
    """A function that makes the stock model and ours with the same random weights."""

    def make(**changes: Any) -> tuple[EsmForProteinFolding, EsmFold]:
        stock = EsmForProteinFolding(tiny_config(**changes)).eval()
        randomise(stock)
        ours = EsmFold(tiny_config(**changes)).eval()
        ours.load_state_dict(stock.state_dict())
        return stock, ours

    return make


@pytest.fixture
def tiny(make_pair: Callable[..., tuple[EsmForProteinFolding, EsmFold]]) -> EsmFold:
    """Our model with random weights."""
    return make_pair()[1]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three sequences of 21, 13 and 6 residues, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([21, 13, 6])
    mask = (torch.arange(21) < lengths[:, None]).long()
    return {"input_ids": torch.randint(0, 20, (3, 21), generator=generator) * mask, "attention_mask": mask}


@pytest.fixture
def double_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the two places where stock code rounds to fp32 whatever the weights: rotary products and rigid frames."""
    from transformers.models.esm import modeling_esm
    from transformers.models.esm.openfold_utils import rigid_utils

    class DoubleTorch:
        float32 = torch.float64

        def __getattr__(self, name: str) -> object:
            return getattr(torch, name)

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        turned = (x * cos + modeling_esm.rotate_half(x) * sin for x in (q, k))
        return tuple(turned)

    monkeypatch.setattr(rigid_utils, "torch", DoubleTorch())
    monkeypatch.setattr(modeling_esm, "apply_rotary_pos_emb", rotate)

"""DeepMind's own loss values, stored with their inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch


@dataclass(frozen=True)
class StoredLosses:
    """Inputs (arrays, single precision) and results (double precision) of AlphaFold's code for one structure pair."""

    name: str
    arrays: Mapping[str, np.ndarray]
    values: Mapping[str, float]

    def __call__(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        """One array as a batch of one."""
        return torch.tensor(np.asarray(self.arrays[key], dtype=np.float64)).to(dtype)[None]


@pytest.fixture(scope="session")
def stored_losses(test_data: Path) -> Callable[[str], list[StoredLosses]]:
    """`stored_losses("distogram_loss")`: the pairs for which this value is stored."""
    folder = test_data / "metrics" / "losses"
    scalars = json.loads((folder / "scalars_x64.json").read_text())

    def select(key: str) -> list[StoredLosses]:
        found = [StoredLosses(n, dict(np.load(folder / f"{n}.npz")), v) for n, v in scalars.items() if key in v]
        assert found, f"no stored value of {key}"
        return found

    return select

"""Two short stretches of example structures, and settings that learn them in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protfold_peft.training import FinetuneConfig

STRETCH = 16
OTHER_TERMS = ("side_chain_fape", "torsion", "distogram", "plddt", "aligned_error")


def first_residues(text: str, n: int) -> str:
    """The ATOM records of the first `n` residues of a PDB file: no SEQRES, so that nothing is unresolved."""
    places: dict[str, None] = {}
    lines = []
    for line in text.splitlines():
        if line.startswith("ATOM"):
            places.setdefault(line[22:27])
            if len(places) <= n:
                lines.append(line)
    assert len(places) > n
    return "\n".join([*lines, "TER", "END", ""])


@pytest.fixture(scope="session")
def two_stretches(structures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first 16 residues of two example chains."""
    folder = tmp_path_factory.mktemp("two_stretches")
    for name in ("1LCD_A.pdb", "1A7G_E.pdb"):
        (folder / name).write_text(first_residues((structures / name).read_text(), STRETCH))
    return folder


@pytest.fixture(scope="session")
def settings(two_stretches: Path) -> Callable[..., FinetuneConfig]:
    """`settings(out, training={"steps": 3})`: a configuration on the two stretches, with changes by group."""

    def make(out: Path, **changes: Any) -> FinetuneConfig:
        groups: dict[str, dict[str, Any]] = {
            "model": {"name": "protfold-mini-untrained", "device": "cpu"},
            "adapter": {"rank": 64, "init": "orthogonal"},
            "data": {"folder": str(two_stretches), "crop_size": STRETCH},
            "loss": {"fape": 1.0, **dict.fromkeys(OTHER_TERMS, 0.0), "clamped_fraction": 0.0},
            "training": {
                "steps": 2,
                "batch_size": 2,
                "learning_rate": 3e-2,
                "warmup_steps": 5,
                "schedule": "linear",
            },
        }
        mode = changes.pop("mode", "adapter")
        for group, values in changes.items():
            groups[group] = {**groups[group], **values}
        return FinetuneConfig.model_validate({"out": str(out), "mode": mode, **groups})

    return make

"""Where a comparison works: the files of a cell, and whether what they hold is still of these settings and targets.

`OUT/trainings` has the folders of `protfold finetune`, `OUT/cells` a file of scores for every cell that is done and a
file of what went wrong for every one that failed, `OUT/models` the models of the targets, `OUT/logs` what was said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protfold_peft.comparison.cells import TUNE, Arm, Cell, training_config, training_name
from protfold_peft.comparison.config import ComparisonConfig
from protfold_peft.comparison.leakage import fingerprint
from protfold_peft.comparison.targets import Target
from protfold_peft.training.chains import RunChains

CELLS, TRAININGS, MODELS, LOGS = "cells", "trainings", "models", "logs"
# Settings of a finished training that say nothing about its result.
FREE = {("out",), ("model", "device"), ("data", "workers")}


@dataclass(frozen=True)
class Workplace:
    """Where a comparison works, and on what.

    Attributes:
        out: Its folder.
        config: Its settings.
        targets: Of all sets.
        chains: What every training learns, and is judged by in validation.
    """

    out: Path
    config: ComparisonConfig
    targets: Sequence[Target]
    chains: RunChains

    def scores_file(self, cell: Cell) -> Path:
        """Where the content of a cell is once it is done."""
        return self.out / CELLS / f"{cell.name}.json"

    def failure_file(self, cell: Cell) -> Path:
        """Where it says why a cell failed."""
        return self.out / CELLS / f"{cell.name}.failed.txt"

    def training_folder(self, arm: Arm, learning_rate: float, seed: int) -> Path:
        """Where the result of a training is."""
        return self.out / TRAININGS / training_name(arm, learning_rate, seed)

    @property
    def fingerprint(self) -> str:
        """Of what the targets are."""
        return fingerprint([[t.group, t.name, t.kind, t.sequence, t.span, t.length] for t in self.targets])


def done(place: Workplace, cell: Cell) -> dict[str, Any] | None:
    """What a finished cell holds; None for one that is not, or was of other settings or targets."""
    try:
        content = json.loads(place.scores_file(cell).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if content["of"] == cell_fingerprint(place, cell, content["cell"]["learning_rate"]) else None


def cell_fingerprint(place: Workplace, cell: Cell, rate: float | None) -> str:
    """Of all that a cell's content depends on."""
    if cell.arm is None or rate is None:
        settings: dict[str, Any] = {"model": place.config.finetune.model.model_dump()}
    else:
        settings = training_config(place.config, cell.arm, rate, cell.seed).model_dump()
    for *groups, name in FREE:
        within = settings
        for group in groups:
            within = within.get(group, {})
        within.pop(name, None)
    return fingerprint([settings, None if cell.kind == TUNE else place.fingerprint])


def log_file(place: Workplace, cell: Cell) -> Path:
    """What a cell said when it last ran in a process of its own or a worker's."""
    return place.out / LOGS / f"{cell.name}.log"

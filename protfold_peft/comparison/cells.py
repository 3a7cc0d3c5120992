"""The runs of a comparison in a fixed order: the base model, the choice of learning rates, and the runs that count.

A number stands for the same run on every machine, so that a job array can share them out. A training is named by what
it is (`lorta_r4_lr0.01_s0`), and two cells that need the same one share it.
"""

from __future__ import annotations

from dataclasses import dataclass

from protfold_peft.comparison.config import FULL, ComparisonConfig, MethodConfig
from protfold_peft.training.config import FinetuneConfig

BASE, TUNE, TRAIN = "base", "tune", "train"


@dataclass(frozen=True)
class Arm:
    """A method at a rank: what is compared.

    Attributes:
        method: Its name in the comparison.
        rank: None where it has none.
    """

    method: str
    rank: int | None

    @property
    def label(self) -> str:
        """Method and rank in one word, such as `lorta_r4`."""
        return self.method if self.rank is None else f"{self.method}_r{self.rank}"


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        index: Its number, from 0.
        kind: `base`: the model as it is; `tune`: a training that helps to choose the learning rate; `train`: one that
            is judged on the targets.
        arm: What is trained; None for the base.
        seed: Of the training.
        learning_rate: None where it is still to be chosen.
    """

    index: int
    kind: str
    arm: Arm | None = None
    seed: int = 0
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """Unique in its comparison; part of file names."""
        if self.arm is None:
            return BASE
        if self.kind == TUNE:
            return f"tune_{training_name(self.arm, self.learning_rate or 0.0, self.seed)}"
        return f"{self.arm.label}_s{self.seed}"


def training_name(arm: Arm, learning_rate: float, seed: int) -> str:
    """The name of a training's folder."""
    return f"{arm.label}_lr{learning_rate:g}_s{seed}"


def arms_of(config: ComparisonConfig, ranks: dict[str, list[int]] | None = None) -> list[Arm]:
    """Every method at every rank; `ranks` are those that budgets come to, by method."""
    found = []
    for name, method in config.methods.items():
        own = method.ranks if method.budgets is None else (ranks or {})[name]
        found += [Arm(name, rank) for rank in own] if own else [Arm(name, None)]
    return list(dict.fromkeys(found))


def grid_of(config: ComparisonConfig, arm: Arm) -> list[float]:
    """The learning rates that are tried."""
    return config.methods[arm.method].learning_rates or config.learning_rates


def cells_of(config: ComparisonConfig, arms: list[Arm]) -> list[Cell]:
    """All runs in their order: the base, then those that choose, then those that count."""
    found: list[tuple[str, Arm | None, int, float | None]] = [(BASE, None, 0, None)]
    for arm in arms:
        grid = grid_of(config, arm)
        if len(grid) > 1:
            found += [(TUNE, arm, seed, rate) for rate in grid for seed in config.seeds[: config.tuning_seeds]]
    for arm in arms:
        grid = grid_of(config, arm)
        found += [(TRAIN, arm, seed, grid[0] if len(grid) == 1 else None) for seed in config.seeds]
    return [Cell(index, kind, arm, seed, rate) for index, (kind, arm, seed, rate) in enumerate(found)]


def training_config(
    config: ComparisonConfig, arm: Arm, learning_rate: float, seed: int, out: str | None = None
) -> FinetuneConfig:
    """The fine-tuning run of an arm. All arms share data, their order under a seed, and steps."""
    method: MethodConfig = config.methods[arm.method]
    shared = config.finetune
    training = {"learning_rate": learning_rate, "seed": seed}
    if method.method == FULL:
        return shared.model_copy(
            update={
                "out": out,
                "mode": "full",
                "training": shared.training.model_copy(update={**training, "full_parts": method.parts}),
            }
        )
    adapter = {
        "method": method.method,
        "rank": arm.rank,
        "alpha": method.alpha,
        "options": method.options,
        "dropout": method.dropout,
        **({} if method.init is None else {"init": method.init}),
    }
    return shared.model_copy(
        update={
            "out": out,
            "adapter": shared.adapter.model_copy(update=adapter),
            "training": shared.training.model_copy(update=training),
        }
    )

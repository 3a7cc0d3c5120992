"""From a number of parameters to the rank that comes nearest from below, by counting what PEFT would train."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from protfold_peft.comparison.cells import Arm, training_config
from protfold_peft.comparison.config import ComparisonConfig
from protfold_peft.errors import ConfigError
from protfold_peft.training.setup import load_base, make_trainable

_LARGEST = 4096


def ranks_of_budgets(config: ComparisonConfig) -> dict[str, list[int]]:
    """The ranks of every method that has budgets, by its name.

    Raises:
        ConfigError: A budget is smaller than the method's rank 1.
    """
    wanted = {name: method.budgets for name, method in config.methods.items() if method.budgets is not None}
    if not wanted:
        return {}
    loaded = load_base(config.finetune, torch.device("cpu"))

    def counter(name: str) -> Callable[[int], int]:
        def count(rank: int) -> int:
            own = copy.copy(loaded)
            object.__setattr__(own, "network", copy.deepcopy(loaded.network))
            model = make_trainable(own, training_config(config, Arm(name, rank), 1.0, 0))
            return sum(p.numel() for p in model.parameters() if p.requires_grad)

        return count

    return {
        name: [largest_rank(counter(name), budget, f"methods.{name}.budgets") for budget in budgets]
        for name, budgets in wanted.items()
    }


def largest_rank(count: Callable[[int], int], budget: int, key: str) -> int:
    """The largest rank whose parameters are no more than the budget; `count` rises with the rank.

    Raises:
        ConfigError: Rank 1 has more.
    """
    smallest = count(1)
    if smallest > budget:
        raise ConfigError(f"{key}: {budget:,} parameters are fewer than rank 1 has: {smallest:,}; raise it")
    low, high = 1, 2
    while high <= _LARGEST and count(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    return low

"""The learning rate of an arm, by the scores of the runs that try each."""

from __future__ import annotations

import statistics

from protfold_peft.comparison.cells import TUNE, Arm, Cell, grid_of
from protfold_peft.comparison.workplace import Workplace, done
from protfold_peft.errors import ConfigError, ProtfoldError


def rates_of(place: Workplace, arm: Arm) -> dict[float, float | None]:
    """Mean validation lDDT-CA of every learning rate of an arm that was tried; None where none of its runs gave one.

    Raises:
        ConfigError: A run that is to choose is neither done nor failed.
    """
    found: dict[float, float | None] = {}
    for rate in grid_of(place.config, arm):
        scores = []
        for seed in place.config.seeds[: place.config.tuning_seeds]:
            cell = Cell(-1, TUNE, arm, seed, rate)
            content = done(place, cell)
            if content is None and not place.failure_file(cell).is_file():
                raise ConfigError(f"the learning rate of {arm.label} is not chosen yet: run cell {cell.name} first")
            value = None if content is None else content["facts"]["validation"]["lddt_ca"]
            scores.append(value)
        known = [score for score in scores if score is not None]
        # A rate that fails from some seeds is no better than one that fails from all.
        found[rate] = statistics.fmean(known) if len(known) == len(scores) else None
    return found


def chosen_rate(place: Workplace, arm: Arm) -> float:
    """The learning rate of an arm with the best mean lDDT-CA on the validation chains, the smaller one of equals.

    Raises:
        ConfigError: As `rates_of`.
        ProtfoldError: Every learning rate failed.
    """
    grid = grid_of(place.config, arm)
    if len(grid) == 1:
        return grid[0]
    scores = {rate: score for rate, score in rates_of(place, arm).items() if score is not None}
    if not scores:
        raise ProtfoldError(f"{arm.label}: training failed at every learning rate; add smaller ones to its grid")
    return max(sorted(scores), key=lambda rate: scores[rate])

"""A comparison from its configuration to its results: what is checked first, which cells run when, what is gathered."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from protfold_peft.comparison import leakage as leaks
from protfold_peft.comparison.budgets import ranks_of_budgets
from protfold_peft.comparison.cells import BASE, TUNE, Arm, Cell, arms_of, cells_of, grid_of
from protfold_peft.comparison.config import ComparisonConfig
from protfold_peft.comparison.leakage import Leakage
from protfold_peft.comparison.processes import Workers, start_logged
from protfold_peft.comparison.rates import chosen_rate, rates_of
from protfold_peft.comparison.runs import base_file, run_cell
from protfold_peft.comparison.targets import read_targets
from protfold_peft.comparison.workplace import Workplace, done, log_file
from protfold_peft.configuration import read_yaml
from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.files import write_text
from protfold_peft.runtime import LOGGER, progress_bar
from protfold_peft.training.chains import TRAINING_CHAINS, read_run_chains
from protfold_peft.training.config import FinetuneConfig

# Told to a worker beside the number of a cell.
TRAIN_ONLY = "train"
CONFIG, RANKS, LEAKAGE = "comparison.yaml", "ranks.yaml", "leakage.json"
WAITING, FAILED, DONE = "waiting", "failed", "done"


@dataclass(frozen=True)
class Sweep:
    """A comparison that may run.

    Attributes:
        place: Where it works, and on what.
        arms: What is compared.
        cells: Its runs, in order.
        leakage: What the check found.
    """

    place: Workplace
    arms: list[Arm]
    cells: list[Cell]
    leakage: Leakage

    def state(self, cell: Cell) -> str:
        """`done`, `failed` or `waiting`."""
        if done(self.place, cell) is not None:
            return DONE
        return FAILED if self.place.failure_file(cell).is_file() else WAITING


def prepare(config: ComparisonConfig, *, allow_leakage: bool = False) -> Sweep:
    """Read targets and chains, refuse what leaks, and fix the order of the runs; nothing is trained.

    Raises:
        ConfigError: Settings that cannot be, or leakage.
        ProtfoldError: Something cannot be read.
    """
    if config.out is None:
        raise ConfigError("no output folder: give --out, or the key 'out' in the configuration")
    out = Path(config.out)
    targets = [target for name, source in config.targets.items() for target in read_targets(name, source)]
    chains = read_run_chains(config.finetune)
    if chains.judged_on == TRAINING_CHAINS and any(len(grid_of(config, arm)) > 1 for arm in arms_without_ranks(config)):
        raise ConfigError(
            "learning rates are chosen on validation chains, never on the targets: set finetune.data.validation, "
            "or give every method one learning rate"
        )
    dates = release_dates(config.finetune)
    found = leaks.check_leakage(
        chains, targets, config.leakage, dates=dates, saved=leaks.load(out / LEAKAGE), processes=config.processes
    )
    found = replace(found, allowed=allow_leakage)
    leaks.save(out / LEAKAGE, found)
    if not allow_leakage:
        leaks.refuse(found, out / LEAKAGE)
    if found.stamp:
        LOGGER.warning("%s", found.stamp)
    write_text(out / CONFIG, yaml.safe_dump(config.model_dump(), sort_keys=False))
    arms = arms_of(config, _ranks(config, out))
    return Sweep(Workplace(out, config, targets, chains), arms, cells_of(config, arms), found)


def arms_without_ranks(config: ComparisonConfig) -> list[Arm]:
    """One arm of every method, to ask what does not depend on ranks."""
    return [Arm(name, None) for name in config.methods]


def release_dates(config: FinetuneConfig) -> dict[str, str]:
    """Release dates of the chains that are learnt or chosen by, as far as their tables have a column `release_date`."""
    found: dict[str, str] = {}
    tables = {config.data.table, config.data.validation.table if config.data.validation else None}
    for table in sorted(table for table in tables if table is not None):
        with Path(table).open(encoding="utf-8-sig", newline="") as handle:
            for row in csv.DictReader(handle, delimiter="\t" if table.lower().endswith(".tsv") else ","):
                if row.get("name") and row.get("release_date"):
                    found[row["name"]] = row["release_date"]
    return found


def _ranks(config: ComparisonConfig, out: Path) -> dict[str, list[int]]:
    """The ranks that budgets come to; counted once, since every process of a job array needs them."""
    budgets = {name: method.model_dump() for name, method in config.methods.items() if method.budgets is not None}
    if not budgets:
        return {}
    key = leaks.fingerprint([budgets, config.finetune.model_dump()])
    if (out / RANKS).is_file():
        saved, _ = read_yaml(out / RANKS)
        if saved.get("of") == key:
            return dict(saved["ranks"])
    ranks = ranks_of_budgets(config)
    write_text(out / RANKS, yaml.safe_dump({"of": key, "ranks": ranks}))
    return ranks


def run_all(sweep: Sweep, *, retry: bool = False, judge: bool = True) -> None:
    """Run every cell that is not done, in `processes` worker processes; one that dies takes no other cell with it.

    Failed cells are left alone unless `retry` is set. What is running when this is interrupted goes on from its last
    checkpoint the next time. Without `judge` nothing is folded and scored but validation chains: the runs that count
    are trained, and judged the next time.
    """
    waiting = [cell for cell in sweep.cells if _wanted(sweep, cell, retry)]
    at_a_time = min(sweep.place.config.processes, max(1, len(waiting)))
    with progress_bar("cells") as progress:
        bar = progress.add_task("cells", total=len(sweep.cells), completed=len(sweep.cells) - len(waiting))

        def ended(cell: Cell, status: int) -> None:
            if status and sweep.state(cell) == WAITING:
                write_text(sweep.place.failure_file(cell), f"{_last_words(sweep.place, cell, status)}\n")
            if sweep.state(cell) == FAILED:
                LOGGER.warning("cell %d (%s) failed: %s", cell.index, cell.name, failure(sweep.place, cell))
            progress.advance(bar)

        Workers(
            at_a_time,
            lambda cell, slot: _start(sweep, cell, slot, at_a_time),
            lambda cell: _told(sweep, cell, judge),
            ended,
            lambda cell, others: _ready(sweep, cell, others),
        ).run(waiting)


def _told(sweep: Sweep, cell: Cell, judge: bool) -> str:
    """The line that tells a worker of a cell, of which no failure is known from now on."""
    sweep.place.failure_file(cell).unlink(missing_ok=True)
    return str(cell.index) if judge else f"{cell.index} {TRAIN_ONLY}"


def _ready(sweep: Sweep, cell: Cell, others: Sequence[Cell]) -> bool:
    """Whether nothing that waits or runs has to come first: the learning rates, and the base's validation chains."""
    if cell.kind == BASE:
        return True
    if any(other.kind == BASE for other in others):
        return base_file(sweep.place.out, sweep.place.config.finetune).is_file()
    return cell.kind == TUNE or not any(other.kind == TUNE and other.arm == cell.arm for other in others)


def _wanted(sweep: Sweep, cell: Cell, retry: bool) -> bool:
    state = sweep.state(cell)
    return state == WAITING or (retry and state == FAILED)


def _last_words(place: Workplace, cell: Cell, status: int) -> str:
    if status < 0:
        return f"its process was killed (signal {-status}), perhaps for want of memory"
    try:
        lines = log_file(place, cell).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].removeprefix("error: ") if lines else f"its process ended with status {status} and said nothing"


def _start(sweep: Sweep, cell: Cell, slot: int, at_a_time: int) -> subprocess.Popen[str]:
    out = sweep.place.out
    command = [sys.executable, "-m", "protfold_peft", "compare", str(out / CONFIG)]
    command += ["--out", str(out), "--worker", "--verbose"]
    command += ["--allow-leakage"] if sweep.leakage.allowed else []
    return start_logged(command, log_file(sweep.place, cell), slot, at_a_time)


def run_one(sweep: Sweep, index: int, *, retry: bool = True, judge: bool = True) -> str:
    """Run the cell of this number in this process, unless it is done; its state afterwards.

    Without `judge` a cell that is judged on the targets is only trained, and stays `waiting`.

    Raises:
        ConfigError: There is no such cell, or one that it needs has not run.
        ProtfoldError: It failed.
    """
    if not 0 <= index < len(sweep.cells):
        raise ConfigError(f"--cell {index}: this comparison has cells 0 to {len(sweep.cells) - 1}")
    cell = sweep.cells[index]
    if _wanted(sweep, cell, retry):
        run_cell(sweep.place, cell, judge=judge)
    return sweep.state(cell)


def failure(place: Workplace, cell: Cell) -> str:
    """What went wrong in a cell, in a line."""
    try:
        return place.failure_file(cell).read_text(encoding="utf-8").split("\n", 1)[0]
    except OSError:
        return ""


def learning_rates(sweep: Sweep) -> list[dict[str, Any]]:
    """A row of every arm and learning rate: its mean validation lDDT-CA, and whether it was chosen."""
    rows = []
    for arm in sweep.arms:
        grid = grid_of(sweep.place.config, arm)
        scores: dict[float, float | None] = dict.fromkeys(grid)
        best: float | None = grid[0] if len(grid) == 1 else None
        if len(grid) > 1:
            try:
                scores = rates_of(sweep.place, arm)
                best = chosen_rate(sweep.place, arm)
            except ProtfoldError:
                best = None
        rows += [
            {
                "method": arm.method,
                "rank": arm.rank,
                "learning_rate": rate,
                "validation_lddt_ca": scores[rate],
                "chosen": rate == best,
                # At the end of a grid the best may lie beyond it.
                "at_end": rate == best and len(grid) > 1 and rate in (min(grid), max(grid)),
            }
            for rate in grid
        ]
    return rows


def listing(sweep: Sweep) -> list[str]:
    """A line of every cell: its number, name and state."""
    lines = []
    for cell in sweep.cells:
        state = sweep.state(cell)
        why = f": {failure(sweep.place, cell)}" if state == FAILED else ""
        lines.append(f"{cell.index:4} {cell.name:40} {state}{why}")
    return lines

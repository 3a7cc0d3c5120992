"""Sweeps of adapter methods and ranks on held-out targets: runs, scores, statistics, tables, plots, the report.

`sweep` takes a configuration (`config`) to results: `targets` and `leakage` before anything runs, `cells` the runs in
their order, `workplace` their files, `runs` one of them, `rates` the choice of a learning rate, `worker` and
`processes` several at a time. `results` is the table of all scores; `analysis` and `statistics` say what it shows, and
`outputs` writes it down in `summary`, `tables`, `plots` and `report`.
"""

from protfold_peft.comparison.config import ComparisonConfig
from protfold_peft.comparison.outputs import write_outputs
from protfold_peft.comparison.results import TABLE, Results, collect, load, save
from protfold_peft.comparison.sweep import Sweep, listing, prepare, run_all, run_one
from protfold_peft.comparison.worker import work

__all__ = [
    "TABLE",
    "ComparisonConfig",
    "Results",
    "Sweep",
    "collect",
    "listing",
    "load",
    "prepare",
    "run_all",
    "run_one",
    "save",
    "work",
    "write_outputs",
]

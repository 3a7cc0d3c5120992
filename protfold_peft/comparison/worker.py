"""A process that does cells, one after another, as it is told to.

It reads targets and chains once. Nothing else is kept from cell to cell: the model is loaded anew, random numbers start
from the cell's seed, and a cell that fails ends the process, whose GPU may not be usable any more.
"""

from __future__ import annotations

import gc
import os
import sys

import torch

from protfold_peft.comparison.sweep import TRAIN_ONLY, Sweep, run_one
from protfold_peft.comparison.workplace import log_file


def work(sweep: Sweep) -> None:
    """Do the cells that standard input tells of; a line on standard output for each that is done.

    What a cell says, on standard output or error, is in its own log.

    Raises:
        ProtfoldError: A cell failed.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        for line in sys.stdin:
            index, *words = line.split()
            log = log_file(sweep.place, sweep.cells[int(index)])
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as handle:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                    os.dup2(handle.fileno(), 1 if stream is sys.stdout else 2)
            run_one(sweep, int(index), judge=TRAIN_ONLY not in words)
            # Models and their trainers refer to each other in circles.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            answers.write(f"{index}\n")
            answers.flush()

"""The best learning rate of every method by rank and initialisation, on a small real language model.

    PROTFOLD_TEST_DATA=../shared/data python benchmarks/learning_rates.py --csv learning_rates.csv
    python benchmarks/learning_rates.py --methods lorta tera --ranks 8 --steps 300 --test-lines 0

The model of `tests/stories.py` is trained on `e2e_valid.txt` less the lines of a fifth of its tables. The rates are
those of a grid of two per decade. From a guess, the neighbours are tried until both are worse on the lines left out;
the adapter of the best rate is then evaluated on `e2e_test.txt`, which nothing was chosen by. A second run of the
program goes on where the table in the CSV file ends.

Columns: rates that diverge have perplexity inf. `test` is of the chosen rate alone.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
METHODS = ("lora", "lorta", "lotr", "tenslora", "tera", "tensor_train")
# Where the walk over the grid starts, as halves of a decade: -3 is 10 ** -1.5.
GUESSES = {"lora": -4, "lorta": -3, "lotr": -4, "tenslora": -3, "tera": -2, "tensor_train": -3}
# The core of TensLoRA with one rank for all modes has rank ** 5 parameters, soon more than the model; no mode of TeRA
# is longer than 8 here.
LARGEST = {"tenslora": 8, "tera": 8}
COLUMNS = ("method", "init", "rank", "rate", "parameters", "before", "after", "seconds", "test_before", "test")


def make_config(method: str, rank: int, init: str) -> Any:
    """The config of a method on all attention projections; PEFT's own LoRA has one init, its own."""
    from adapter_methods import METHODS as ADAPTERS
    from peft import LoraConfig

    if method == "lora":
        return LoraConfig(r=rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    config, own = ADAPTERS[method]
    return config(r=rank, init=init, **own)


def rate_of(place: int) -> float:
    """The learning rate at a place of the grid."""
    return float(f"{10 ** (place / 2):.0e}")


def search(job: tuple[str, int, str, argparse.Namespace]) -> list[dict[str, Any]]:
    """All rates that were tried for one method, rank and init, and the test of the best."""
    method, rank, init, options = job
    import torch
    from stories import adapt, load_stories, perplexity, split_by_table, spread, tokenize_lines, train

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    data = options.data / "language"
    lines, held_out = split_by_table(data, options.held_out)
    before = perplexity(load_stories(data), held_out)
    tried: dict[int, dict[str, Any]] = {}
    best: Any = None

    def after(place: int) -> float:
        nonlocal best
        if place not in tried:
            start = time.perf_counter()
            model = adapt(data, make_config(method, rank, init), options.seed)
            rate = rate_of(place)
            losses = train(model, lines, learning_rate=rate, steps=options.steps, batch=options.batch)
            value = perplexity(model, held_out) if math.isfinite(losses[-1]) else math.inf
            value = value if math.isfinite(value) else math.inf
            if value <= min((row["after"] for row in tried.values()), default=math.inf):
                best = model
            tried[place] = {
                "method": method,
                "init": init,
                "rank": rank,
                "rate": rate,
                "parameters": model.get_nb_trainable_parameters()[0],
                "before": before,
                "after": value,
                "seconds": time.perf_counter() - start,
            }
        return tried[place]["after"]

    place = GUESSES[method]
    while True:
        better = min((place - 1, place, place + 1), key=after)
        if better == place:
            break
        place = better
    test = tokenize_lines(data, "test")
    test = spread(test, options.test_lines or len(test))
    tried[place]["test"] = perplexity(best, test)
    with best.disable_adapter():
        tried[place]["test_before"] = perplexity(best, test)
    return [tried[place] for place in sorted(tried)]


def main() -> None:
    """Fill in the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PROTFOLD_TEST_DATA", "../shared/data"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--ranks", nargs="+", type=int, default=(1, 4, 8, 32))
    parser.add_argument("--inits", nargs="+", default=("authors", "rank_stable"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=2, help="lines per step")
    parser.add_argument("--held-out", type=int, default=48, help="lines that choose the rate")
    parser.add_argument("--test-lines", type=int, default=100, help="evenly spaced; 0: all 4,693")
    parser.add_argument("--seed", type=int, default=0, help="of the adapters")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--csv", type=Path, help="file to go on with")
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    if options.csv and options.csv.exists():
        with options.csv.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {(row["method"], int(row["rank"]), row["init"]) for row in rows}
    jobs = [
        (method, rank, init, options)
        for rank in options.ranks
        for method in options.methods
        for init in (options.inits if method != "lora" else ("peft",))
        if rank <= LARGEST.get(method, rank) and (method, rank, init) not in done
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for found in pool.imap_unordered(search, jobs, chunksize=1):
            rows += found
            print(*(line_of(row) for row in found), sep="\n", flush=True)
            if options.csv:
                write(options.csv, rows)


def line_of(row: dict[str, Any]) -> str:
    """One row of the printed table."""
    line = f"{row['method']:>12} {row['init']:>11} r{row['rank']:<3} {row['rate']:>7.0e} {row['parameters']:>7,}"
    line += f" {row['before']:>7.1f} -> {row['after']:<8.2f}"
    return line + (f" test {row['test_before']:.1f} -> {row['test']:.2f}" if "test" in row else "")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Save the table, whole or not at all."""
    from protfold_peft.files import replacing

    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)


sys.path.insert(0, str(REPOSITORY / "tests"))
if __name__ == "__main__":
    main()

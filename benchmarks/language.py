"""The language-model tasks on small real models, by every adapter method: what docs/language.md reports.

    PROTFOLD_TEST_DATA=../shared/data python benchmarks/language.py --out runs/language --processes 8
    python benchmarks/language.py sft --out runs/language --table

`sft`   a 260,032-parameter story teller learns to describe restaurants; every method at three numbers of parameters.
`dpo`   the same model learns to prefer the one of two of its own stories that has more sentences.
`sst2`, `cola`   a small text encoder is pre-trained by our `mlm` on the text of both, then adapted to each.
`esm`   a small protein encoder is pre-trained by our `mlm` on chains, then adapted to families of proteins.

Everything runs through `protfold_peft.language.run` and `evaluate`, as the command line does. For every method and
budget three learning rates, half a decade apart, are tried with the first seed, and further ones while the best is the
lowest or the highest of those tried. The best on lines that are neither learnt from nor tested is then run with the
other seeds. Every run leaves a JSON file in `--out`, and one that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import language_cells as cells
import torch
from language_cells import GUESSES, METHODS, PARTS, RANKS, SCORES, Cell, Setting

from protfold_peft.files import write_text
from protfold_peft.runtime import quieten

# No more rates than these are tried for one setting.
MOST_RATES = 6


def rows_of(setting: Setting, out: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """What has been run of a setting, by place of the rate and seed."""
    found = {}
    own = Cell(setting, 0, 0).file(out)
    for file in own.parent.glob(f"{setting.part}-{setting.method}-{setting.budget}-*.json"):
        row = json.loads(file.read_text(encoding="utf-8"))
        found[round(2 * math.log10(row["rate"])), row["seed"]] = row
    return found


def quality(row: dict[str, Any]) -> float:
    """Of the lines to choose by, higher is better; of a run that diverged the lowest."""
    if row["tune"] is None:
        return -math.inf
    return row["tune"] if SCORES[row["part"]][1] else -row["tune"]


def search(setting: Setting, options: argparse.Namespace) -> tuple[int | None, list[int]]:
    """The best place for the learning rate, None while it is not known, and the places that are still to be tried."""
    guess = GUESSES[setting.method]
    if options.untuned:
        return guess, []
    tried = {place: row for (place, own), row in rows_of(setting, options.out).items() if own == options.seeds[0]}
    if missing := [place for place in (guess, guess + 1, guess - 1) if place not in tried]:
        return None, missing
    # Of equally good ones the lowest.
    best = max(sorted(tried), key=lambda place: quality(tried[place]))
    if best in (min(tried), max(tried)) and len(tried) < MOST_RATES:
        return None, [best + 1 if best == max(tried) else best - 1]
    return best, []


def due(options: argparse.Namespace) -> Iterator[Cell | str]:
    """What can be run now, the most wanted first: encoders by their names, and the cells that wait for nothing."""
    lacking = {cells.encoder_of(part) for part in options.parts} - {None}
    lacking = {kind for kind in lacking if not cells.has_encoder(kind, options.out)}
    yield from sorted(lacking)
    first = options.seeds[0]
    for setting in cells.settings(options.parts, options.methods):
        if cells.encoder_of(setting.part) in lacking:
            continue
        best, places = search(setting, options)
        if best is None:
            yield from (Cell(setting, place, first) for place in places)
        else:
            done = rows_of(setting, options.out)
            yield from (Cell(setting, best, seed) for seed in options.seeds if (best, seed) not in done)


def run_all(options: argparse.Namespace, deadline: float) -> None:
    """All that is due, in processes of one thread each, until it is done or time is up."""
    # The libraries are loaded once, by the server that the processes are forked from; not our package, as the server
    # looks for it in the current folder first.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trl.trainer.sft_trainer", "trl.trainer.dpo_trainer"])
    running: dict[Cell | str, Any] = {}
    failed: set[Cell | str] = set()
    try:
        while time.monotonic() < deadline:
            for job in [job for job, process in running.items() if not process.is_alive()]:
                if running.pop(job).exitcode:
                    failed.add(job)
            waiting = [job for job in due(options) if job not in running and job not in failed]
            for job in waiting[: options.processes - len(running)]:
                running[job] = context.Process(target=work, args=(job, options.out, options.data))
                running[job].start()
            if not running:
                break
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
    for job in failed:
        print(f"{job}: failed", file=sys.stderr)


def work(job: Cell | str, out: Path, data: Path) -> None:
    """One encoder or cell, in a process of its own."""
    quieten()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    if isinstance(job, str):
        cells.pretrain(job, out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        row = cells.run_cell(job, out, data, Path(scratch))
    write_text(job.file(out), json.dumps(row) + "\n")
    print(f"{job.file(out).stem}: {row.get('before')} -> {row.get('after')}, {row['seconds']:.0f} s", flush=True)


def table(part: str, options: argparse.Namespace) -> Iterator[str]:
    """A Markdown table of a part: mean and standard deviation over the seeds at the rate that was chosen."""
    score, more = SCORES[part]
    yield f"| {part} | parameters | rate | {score}, before | after | each seed | beside LoRA |"
    yield "|---|---|---|---|---|---|---|"
    spent = [row["seconds"] for each in cells.settings((part,), METHODS) for row in rows_of(each, options.out).values()]
    lora: list[float] = []
    for setting in cells.settings((part,), options.methods):
        best, _ = search(setting, options)
        done = rows_of(setting, options.out)
        own = [done[best, seed] for seed in options.seeds if best is not None and (best, seed) in done]
        rank = RANKS.get(setting.budget, {}).get(setting.method)
        name = f"| {setting.method}" + (f", rank {rank}" if rank else "")
        if len(own) < len(options.seeds):
            yield f"{name} | | | | not measured | | |"
            continue
        after = [row["after"] for row in own]
        if setting.method == "peft_lora":
            lora = after
        spread = f" ± {statistics.stdev(after):.2g}" if len(after) > 1 else ""
        before = "" if own[0]["before"] is None else f"{own[0]['before']:.3f}"
        verdict = "" if setting.method in ("full", "peft_lora") else beside(after, lora, more=more)
        yield (
            f"{name} | {own[0]['parameters']:,} | {own[0]['rate']:g} | {before} | {statistics.mean(after):.3f}{spread} "
            f"| {', '.join(f'{value:.3f}' for value in after)} | {verdict} |"
        )
    yield f"\n{len(spent)} runs, {sum(spent) / 3600:.2f} h of CPU time"


def beside(after: Sequence[float], lora: Sequence[float], *, more: bool) -> str:
    """Better or worse only where every seed is."""
    if not lora:
        return ""
    sign = 1 if more else -1
    own, other = [sign * value for value in after], [sign * value for value in lora]
    if min(own) > max(other):
        return "better"
    return "worse" if max(own) < min(other) else "no difference shown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data, the encoders and the cells")
    parser.add_argument("--data", type=Path, default=os.environ.get("PROTFOLD_TEST_DATA", "../shared/data"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="the first one serves to tune")
    parser.add_argument("--untuned", action="store_true", help="only the rate that the search starts from")
    parser.add_argument("--processes", type=int, default=1, help="cells at a time, each on one thread")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then stop; what is done is kept")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is done")
    options = parser.parse_args()
    options.parts = options.parts or PARTS
    if unknown := sorted({*options.parts} - {*PARTS}):
        parser.error(f"no part is called {unknown[0]}")
    if not options.table:
        deadline = time.monotonic() + 60 * options.minutes
        os.environ["OMP_NUM_THREADS"] = "1"
        quieten()
        (options.out / "cells").mkdir(parents=True, exist_ok=True)
        for part in options.parts:
            cells.prepare(part, options.out, options.data)
        run_all(options, deadline)
    for part in options.parts:
        print("", *table(part, options), sep="\n")


if __name__ == "__main__":
    main()

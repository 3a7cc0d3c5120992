"""Adapters of protfold-mini for protein families: what each method gains on structures of the family it has not seen.

    python benchmarks/families.py DATA --out runs/families --families sh3 --seeds 3

DATA holds `structures/manifest.tsv` with `structures/train/*.pdb`. For every family, method and seed one run of
configs/finetune_mini.yaml learns the family's `part` train and is judged on its `part` test; finished runs are not run
again. The table has the base model, every method, and the nearest training chain of the family as a predictor (its CA
atoms along the alignment), all and by identity to the training part.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mini import Neighbours, interval, score

from protfold_peft.data import read_chains
from protfold_peft.runtime import quieten
from protfold_peft.training import finetune, read_config

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "finetune_mini.yaml"
# Rank, learning rate and options of each method; the rest is in the configuration.
METHODS: Mapping[str, tuple[str, ...]] = {
    "lorta": ("adapter.rank=16", "training.learning_rate=1e-2"),
    "lora": ("adapter.rank=8", "training.learning_rate=1e-2", "adapter.init=authors"),
    "lotr": ("adapter.rank=8", "training.learning_rate=1e-2"),
    "tenslora": ("adapter.rank=4", "training.learning_rate=3e-2"),
    "tera": ("adapter.rank=8", "training.learning_rate=1e-1"),
}
# Percent identity to the training part.
BINS = ((0, 40), (40, 90), (90, 101))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--families", nargs="+", default=["mhc_class_2_beta", "mhc_class_2_alpha", "sh3"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of every run")
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    table, folder = options.data / "structures" / "manifest.tsv", options.data / "structures" / "train"
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    identity = {row["name"]: 100 * float(row["identity_to_family_train"] or 0) for row in rows}
    for family in options.families:
        data = [f"data.folder={folder}", f"data.table={table}", f"data.where.family={family}"]
        data += [f"data.validation.folder={folder}", f"data.validation.table={table}"]
        data += [f"data.validation.where.family={family}"]
        results: dict[str, list[dict]] = {}
        for method in options.methods:
            for seed in range(options.seeds):
                out = options.out / f"{family}-{method}-{seed}"
                if not (out / "results.json").exists():
                    words = [f"adapter.method={method}", f"training.seed={seed}", f"out={out}", *METHODS[method]]
                    finetune(read_config(CONFIG, [*data, *words, *options.set]), overwrite=True)
                results.setdefault(method, []).append(json.loads((out / "results.json").read_text()))
        report(family, results, nearest(folder, table, family), identity)


def nearest(folder: Path, table: Path, family: str) -> dict[str, tuple[float, float]]:
    """lDDT-CA and TM-score of every test chain, predicted by the nearest training chain."""
    train, test = (
        read_chains(folder, table=table, where={"family": family, "part": part}).chains for part in ("train", "test")
    )
    neighbours = Neighbours(train)
    scores = {}
    for chain in test:
        atoms, covered = neighbours.predict(chain.sequence)
        scores[chain.name] = score(atoms, chain, covered)
    return scores


def report(
    family: str,
    results: Mapping[str, Sequence[dict]],
    nearest: Mapping[str, tuple[float, float]],
    identity: Mapping[str, float],
) -> None:
    """Print one family's table as Markdown."""
    spans = [(0, 101), *BINS]
    names = [[name for name in nearest if low <= identity[name] < high] for low, high in spans]
    heads = ["all", *(f"{low}..{min(high, 100)} %" for low, high in BINS)]
    print(f"\n**{family}**: {len(nearest)} test chains\n")
    columns = [f"{head} ({len(own)})" for head, own in zip(heads, names) if own]
    print(f"| | parameters | lDDT-CA, {' | '.join(columns)} | gain (95 % interval) | TM-score | seconds |")
    print("|---" * (len(columns) + 5) + "|")

    def row(label: str, parameters: str, values: Mapping[str, tuple[float, float]], gain: str, seconds: str) -> None:
        cells = [f"{np.mean([values[name][0] for name in own]):.3f}" for own in names if own]
        tm = np.mean([value[1] for value in values.values()])
        print(f"| {label} | {parameters} | {' | '.join(cells)} | {gain} | {tm:.3f} | {seconds} |")

    def scores(runs: Sequence[dict], which: str) -> dict[str, tuple[float, float]]:
        return {
            name: tuple(
                float(np.mean([run["per_target"][name][which][key] for run in runs])) for key in ("lddt_ca", "tm_score")
            )
            for name in nearest
        }

    first = next(iter(results.values()))
    base = scores(first, "base")
    row("base", "0", base, "", "")
    for method, runs in results.items():
        adapted = scores(runs, "adapted")
        difference = np.array([adapted[name][0] - base[name][0] for name in nearest])
        low, high = interval(difference)
        seeds = [run["adapted"]["lddt_ca"] - run["base"]["lddt_ca"] for run in runs]
        gain = f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f}); seeds {min(seeds):+.3f} to {max(seeds):+.3f}"
        seconds = f"{np.mean([run['seconds'] for run in runs]):.0f}"
        row(method, f"{runs[0]['trainable_parameters']:,}", adapted, gain, seconds)
    row("nearest training chain", "", nearest, "", "")


if __name__ == "__main__":
    main()

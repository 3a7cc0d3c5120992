"""The longest sequence that folds within a given memory, at ESMFold's true size in bf16.

    python benchmarks/longest.py --device cuda --caps 24 48 80 140   # measured, under a cap on what torch may take
    python benchmarks/longest.py                                      # estimated, from two short sequences on a CPU

On a GPU every fold either fits under the cap or does not, and halving an interval about the estimate finds the longest
that does, to `--step` residues. The trunk has two of its 48 blocks, as blocks run one after another in the same memory;
the weights of the others are held beside. A cap above the card's memory is estimated, from the peaks of folds of
256, 512 and 1024 residues: the memory is quadratic in the length. Times are of this shortened model and say nothing.

Gigabytes are the cards' own, 2^30 bytes; `--reserve` of them are left to the CUDA context.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protfold_peft.benchmarks.machine import machine
from protfold_peft.benchmarks.models import build, configuration, halve
from protfold_peft.folding import kernels
from protfold_peft.folding.model import EsmFold
from protfold_peft.runtime import quieten
from protfold_peft.training.memory import peak_bytes

GIB = 2**30
BLOCKS = 2
# Of a trunk block, in bf16 as all the weights here.
BLOCK_PARAMETERS = 14_293_888
LANGUAGE_MODEL_PARAMETERS = 2_832_444_321


def shortened(device: torch.device, blocks: int = BLOCKS) -> Any:
    """The full architecture with fewer blocks."""
    config = configuration("full")
    config.esmfold_config.trunk.num_blocks = blocks
    model = build(EsmFold, config, device)
    halve(model)
    return model


def fold(model: Any, length: int) -> int:
    """Fold a random sequence; the peak above the weights, in bytes."""
    device = model.device
    ids = torch.randint(0, 20, (1, length), device=device)

    def run() -> None:
        with torch.no_grad():
            model(ids, recycles=0)

    return peak_bytes(run, device)


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every cap, those above the card's memory first."""
    device = torch.device(options.device)
    model = shortened(device)
    n_blocks = configuration("full").esmfold_config.trunk.num_blocks
    one = sum(p.numel() * p.element_size() for p in model.trunk.blocks[0].parameters())
    if kernels.triton_runs(device):
        # The kernels work on copies of the trunk's weights, in their own layout.
        one += one
    beside = torch.empty((n_blocks - BLOCKS) * one, dtype=torch.uint8, device=device)
    weights = torch.cuda.memory_allocated(device)
    print(f"# weights {weights / GIB:.2f} GiB, of which {len(beside) / GIB:.2f} stand for the absent blocks")
    total = torch.cuda.get_device_properties(device).total_memory
    step = options.step
    peaks: dict[int, int] = {}
    fold(model, 64)
    for length in (256, 512, 1024):
        fits(model, length, peaks)
    above = [cap for cap in options.caps if cap * GIB > total]
    for cap in sorted(above):
        allowed = (cap - options.reserve) * GIB
        yield {"cap": cap, "longest": estimate(peaks, weights, allowed, step), "measured": False}
    for cap in sorted(set(options.caps) - set(above)):
        allowed = (cap - options.reserve) * GIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), torch.cuda.current_device())
        start = time.perf_counter()
        trial = estimate(peaks, weights, allowed, step)
        gap = step
        if fits(model, trial, peaks):
            low = trial
            while fits(model, low + gap, peaks):
                low, gap = low + gap, 2 * gap
            high = low + gap
        else:
            high = trial
            while high > gap and not fits(model, high - gap, peaks):
                high, gap = high - gap, 2 * gap
            low = max(0, high - gap)
        while high - low > step:
            middle = (low + high) // 2 // step * step
            if fits(model, middle, peaks):
                low = middle
            else:
                high = middle
        found_in = round(time.perf_counter() - start, 1)
        yield {"cap": cap, "longest": low, "measured": True, "peak": weights + peaks.get(low, 0), "seconds": found_in}


def fits(model: Any, length: int, peaks: dict[int, int]) -> bool:
    """Whether a sequence folds under the cap in force; its peak is noted."""
    gc.collect()
    torch.cuda.empty_cache()
    try:
        peaks[length] = fold(model, length)
    except torch.OutOfMemoryError as error:
        error.with_traceback(None)
        return False
    return True


def estimate(peaks: dict[int, int], weights: int, allowed: float, step: int) -> int:
    """The longest by the parabola through the peaks of the three longest folds."""
    lengths = sorted(peaks)[-3:]
    quadratic, linear, constant = np.polyfit(lengths, [peaks[length] for length in lengths], 2)
    roots = np.roots([quadratic, linear, constant + weights - allowed])
    longest = max((root.real for root in roots if abs(root.imag) < 1e-6), default=0.0)
    return max(0, int(longest) // step * step)


def estimated(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """As `measured` without a GPU: peaks of short sequences on the CPU, of a model with a small language model."""
    config = configuration("medium")
    config.esmfold_config.trunk.num_blocks = BLOCKS
    model = build(EsmFold, config, torch.device("cpu"))
    peaks = {length: fold(model, length) for length in (64, 128, 192)}
    full = configuration("full").esmfold_config.trunk.num_blocks
    weights = 2 * LANGUAGE_MODEL_PARAMETERS + 2 * full * BLOCK_PARAMETERS
    for cap in sorted(options.caps):
        longest = estimate(peaks, weights, (cap - options.reserve) * GIB, options.step)
        yield {"cap": cap, "longest": longest, "measured": False}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--caps", type=float, nargs="+", default=[24, 48, 80, 140], metavar="GIB")
    parser.add_argument("--reserve", type=float, default=1.0, metavar="GIB")
    parser.add_argument("--step", type=int, default=32)
    parser.add_argument("--out", type=Path, help="JSON file: machine, versions, commit and rows")
    options = parser.parse_args()
    quieten()
    print(f"{'GiB':>6} {'residues':>9}")
    rows = []
    for row in measured(options) if options.device.startswith("cuda") else estimated(options):
        rows.append(row)
        how = f"measured in {row['seconds']} s" if row["measured"] else "estimated"
        print(f"{row['cap']:>6.0f} {row['longest']:>9} {how}", flush=True)
        if options.out:
            options.out.write_text(json.dumps({"machine": machine(options.device), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How much of a prediction on a CPU is matrix products: whoever makes all else free gains so much, and no more.

    python benchmarks/cpu_products.py

PyTorch's own profiler adds up the time of its operations, on one thread, for stock code and ours, at the size that
`benchmarks/predict.py` has on a CPU. On a busy machine times differ from run to run; shares hardly do.
"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

from protfold_peft.benchmarks.models import StockEsmFold, build, configuration
from protfold_peft.folding.model import EsmFold

FUSED_ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", FUSED_ATTENTION)


def spent(kind: type, recycles: str, size: str, residues: int) -> tuple[float, float]:
    """Seconds of one pass in all operations, and in matrix products (fused attention counts as such)."""
    model = build(kind, configuration(size), torch.device("cpu")).eval()
    ids = torch.randint(0, 20, (1, residues))
    with torch.no_grad():
        model(ids, **{recycles: 0})
        with profile(activities=[ProfilerActivity.CPU]) as measured:
            model(ids, **{recycles: 0})
    events = measured.key_averages()
    own = {event.key: event.self_cpu_time_total / 1e6 for event in events}
    return sum(own.values()), sum(own.get(name, 0.0) for name in PRODUCTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("mini", "medium"), default="medium")
    parser.add_argument("--lengths", type=int, nargs="+", default=(64, 128, 256))
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    print("| residues | | seconds | matrix products | share | the most to gain |\n|---|---|---|---|---|---|")
    for residues in options.lengths:
        for name, kind, recycles in (("stock", StockEsmFold, "num_recycles"), ("ours", EsmFold, "recycles")):
            total, products = spent(kind, recycles, options.size, residues)
            share = products / total
            row = f"| {residues} | {name} | {total:.2f} | {products:.2f} | {share:.0%} | {1 / share:.2f}x |"
            print(row, flush=True)


if __name__ == "__main__":
    main()

"""Folding one sequence: ours beside stock transformers, the same random weights, batch 1, no recycles.

Stock runs at its best: scaled-dot-product attention in ESM-2, on a GPU the language model in bf16 and the trunk under
bf16 autocast; its fastest and its leanest chunk size are both measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from protfold_peft.benchmarks.measuring import measure, release
from protfold_peft.benchmarks.models import StockEsmFold, build, configuration, halve
from protfold_peft.folding.model import EsmFold

ROUTES = ("stock, whole", "stock, chunks of 64", "ours")
_CHUNKS = {"stock, whole": None, "stock, chunks of 64": 64, "ours": None}


def prediction_rows(
    routes: Sequence[str], size: str, device: torch.device, lengths: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """A row for every route and length; `seconds` limits each."""
    half = device.type == "cuda"
    for kinds in ([route for route in routes if route != "ours"], [route for route in routes if route == "ours"]):
        if not kinds:
            continue
        model = build(EsmFold if kinds == ["ours"] else StockEsmFold, configuration(size), device)
        if half:
            halve(model)
        for route in kinds:
            model.trunk.chunk_size = _CHUNKS[route]
            for length in lengths:
                yield {"route": route, "length": length} | _folding(model, device, length, seconds)
        del model
        release(device)


def _folding(model: Any, device: torch.device, length: int, seconds: float) -> dict[str, Any]:
    ours = isinstance(model, EsmFold)
    ids = torch.randint(0, 20, (1, length), device=device, generator=torch.Generator(device).manual_seed(length))
    recycles = {"recycles": 0} if ours else {"num_recycles": 0}
    half = device.type == "cuda" and not ours

    def fold() -> None:
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            model(ids, **recycles)

    row = measure(fold, device, seconds=seconds)
    if "seconds" in row:
        row["residues_per_second"] = length / row["seconds"]
    return row

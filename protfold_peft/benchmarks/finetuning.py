"""A fine-tuning step: ours beside the plain route, the same random weights, one sample, no recycles, rank 8.

The plain route is what one would write without this package: stock transformers with the line that cuts the language
model off taken out, PEFT's LoRA on its attention, and the checkpointing that stock code has, the language model's. A
second plain route checkpoints the trunk's blocks too, by hand. Ours has the memory of the whole device, or a budget, or
computes everything twice. All compute the same loss: backbone FAPE and distogram.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
import torch
from torch.utils.checkpoint import checkpoint

from protfold_peft.adapters import LoRTAConfig
from protfold_peft.benchmarks.measuring import OUT_OF_MEMORY, measure, release
from protfold_peft.benchmarks.models import build, configuration, connected, halve
from protfold_peft.errors import ConfigError
from protfold_peft.folding.checkpointing import set_checkpointing
from protfold_peft.folding.model import EsmFold
from protfold_peft.folding.quantize import quantize_language_model
from protfold_peft.training.made import made_batch
from protfold_peft.training.memory import cap, choose, held_bytes, measure_footprint, usable
from protfold_peft.training.objective import structure_loss

RANK = 8
_TARGETS = ["query", "key", "value", "attention.output.dense"]
_LOSS = {"fape": 1.0, "distogram": 0.3}


@dataclass(frozen=True)
class Route:
    """How a step is computed.

    Attributes:
        ours: `EsmFold`; else stock code.
        lorta: LoRTA in place of LoRA.
        twice: Everything is computed twice (stock code: the trunk's blocks, by hand); else what the memory asks for.
        budget: Bytes; None: the device's memory.
        bits: `4bit` or `8bit` for the language model.
        offload: The inputs of the trunk's blocks wait in main memory.
    """

    ours: bool = True
    lorta: bool = False
    twice: bool = False
    budget: int | None = None
    bits: str | None = None
    offload: bool = False


ROUTES = {
    "plain": Route(ours=False),
    "plain, trunk checkpointed": Route(ours=False, twice=True),
    "ours, LoRA": Route(),
    "ours, LoRTA": Route(lorta=True),
    "ours, LoRTA, 24 GB": Route(lorta=True, budget=24 * 10**9),
    "ours, LoRTA, all twice": Route(lorta=True, twice=True),
    "ours, LoRTA, all twice, offload": Route(lorta=True, twice=True, offload=True),
    "ours, LoRTA, all twice, 4 bits": Route(lorta=True, twice=True, bits="4bit"),
}
# What a CPU is asked for: half precision, small budgets and offloading are a GPU's.
CPU_ROUTES = ("plain", "ours, LoRA", "ours, LoRTA", "ours, LoRTA, all twice")


def finetuning_rows(
    routes: Sequence[str], size: str, device: torch.device, crops: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """A row for every route and crop; `seconds` limits each."""
    for name in routes:
        route = ROUTES[name]
        cap(device, route.budget)
        try:
            model = _model(route, size, device)
        except (ConfigError, torch.OutOfMemoryError) as error:
            text = OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else str(error)
            yield from ({"route": name, "length": crop, "error": text} for crop in crops)
            continue
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        for crop in crops:
            yield {"route": name, "length": crop} | _training(model, optimizer, route, device, crop, seconds)
            optimizer.zero_grad()
        # PEFT's wrapper and its layers refer to each other.
        del model, optimizer
        gc.collect()
        release(device)


def _model(route: Route, size: str, device: torch.device) -> Any:
    """The model of a route on its device, its base frozen, with its adapter."""
    model = build(EsmFold if route.ours else connected(), configuration(size), device)
    if device.type == "cuda":
        halve(model)
    if route.bits is not None:
        quantize_language_model(model, route.bits, torch.bfloat16)
        model.to(device)
    model.train().requires_grad_(False)
    if not route.ours:
        # Frozen, the language model's inputs ask for no gradients, so stock code's own switch would be the re-entrant
        # one, which then trains nothing.
        enable = getattr(model.esm, "activation_checkpointing_enable", None) or model.esm.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if route.twice:
            for block in model.trunk.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    adapter: Any
    if route.lorta:
        adapter = LoRTAConfig(r=RANK, target_modules=_TARGETS, init="orthogonal")
    else:
        # Neither route may adapt modules of the trunk that end alike.
        adapter = peft.LoraConfig(
            r=RANK, target_modules=r".*esm\.encoder\..*(query|key|value|attention\.output\.dense)"
        )
    return peft.get_peft_model(model, adapter)


def _training(
    model: Any, optimizer: torch.optim.Optimizer, route: Route, device: torch.device, crop: int, seconds: float
) -> dict[str, Any]:
    """Time and memory of training steps."""
    half = device.type == "cuda" and not route.ours

    def backward(length: int) -> None:
        batch = made_batch(length, 1, device)
        arguments = {"recycles": 0} if route.ours else {"num_recycles": 0}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            output = model(batch["input_ids"], batch["attention_mask"], **arguments)
        structure_loss(output, batch, _LOSS).total.backward()

    def step() -> None:
        backward(crop)
        optimizer.step()
        optimizer.zero_grad()

    told: dict[str, Any] = {}
    if route.ours:
        base = model.get_base_model()
        if route.twice:
            set_checkpointing(base, offload=route.offload)
        elif device.type == "cuda" or route.budget is not None:
            limit = usable(device, route.budget)
            assert limit is not None
            held = held_bytes(model, device)
            try:
                footprint = measure_footprint(base, backward, length=crop, batch=1, held=held, offload=route.offload)
                plan = choose(footprint, limit, crop, gpu=device.type == "cuda")
            except ConfigError as error:
                return {"error": str(error)}
            except torch.OutOfMemoryError:
                release(device)
                return {"error": OUT_OF_MEMORY}
            finally:
                optimizer.zero_grad()
            set_checkpointing(base, kept_layers=plan.kept_layers, kept_blocks=plan.kept_blocks, offload=route.offload)
            told = {"plan": plan.described, "expected_peak": plan.peak}
    row = measure(step, device, seconds=seconds)
    if "seconds" in row:
        row["residues_per_second"] = crop / row["seconds"]
    return row | told

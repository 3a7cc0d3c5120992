"""Fitting a training step to a memory budget: what may be used, and what is computed twice so that the step fits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from protfold_peft.errors import ConfigError
from protfold_peft.folding.checkpointing import set_checkpointing
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.memory.footprint import Footprint, held_bytes, measure_footprint

if TYPE_CHECKING:
    from protfold_peft.training.trainer import StructureTrainer

_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(MB|GB|MiB|GiB)\s*")

# Of a card, or of what is free on it: the CUDA context and its libraries, and holes between arrays.
_CONTEXT = 600 * 2**20
_USABLE = 0.93
_SMALLER = (
    "a smaller data.crop_size, fewer samples at once (training.accumulate), model.offload=true, or model.quantize=4bit"
)


@dataclass(frozen=True)
class Plan:
    """What is kept, and what that takes.

    Attributes:
        budget: Bytes that may be used.
        peak: Bytes that will be, by the estimate.
        length: Residues of the longest sample.
        kept_layers: Layers of the language model, the last ones, that hold their activations.
        kept_blocks: Blocks of the trunk that do.
        layers: Layers of the language model that take part in the backward pass.
        blocks: Blocks of the trunk that do.
    """

    budget: int
    peak: int
    length: int
    kept_layers: int
    kept_blocks: int
    layers: int
    blocks: int

    @property
    def described(self) -> str:
        """The plan in one line."""
        twice = (self.layers - self.kept_layers, self.blocks - self.kept_blocks)
        what = (
            f"{twice[0]} of {self.layers} language-model layers and {twice[1]} of {self.blocks} trunk blocks are "
            "computed twice"
            if any(twice)
            else "nothing is computed twice"
        )
        return (
            f"memory: {shown(self.peak)} expected at {self.length} residues, {shown(self.budget)} may be used; {what}"
        )


def parse_budget(text: str) -> int:
    """Bytes of `24GB`, `512MB`, `22.5GiB`.

    Raises:
        ConfigError: It is not a number with one of these units, or 0.
    """
    match = _BUDGET.fullmatch(text)
    size = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not size:
        raise ConfigError(f"memory budget '{text}': give a size such as 24GB, 22.5GiB or 512MB")
    return size


def usable(device: torch.device, budget: int | None) -> int | None:
    """Bytes that a run may take: of its budget, or of what is free on the card; None: no limit (a CPU without one)."""
    if device.type != "cuda":
        return budget
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if budget is None:
        return round(_USABLE * free)
    return min(round(_USABLE * (budget - _CONTEXT)), round(_USABLE * free))


def shown(size: int) -> str:
    """Bytes in the unit that cards are sold in."""
    return f"{size / 2**30:.2f} GiB" if size < 100 * 2**30 else f"{size / 2**30:.0f} GiB"


def choose(footprint: Footprint, budget: int, length: int, batch: int = 1, *, gpu: bool = False) -> Plan:
    """The plan that computes least twice within `budget` bytes.

    Layers of the language model come first: they do the more work for every byte they hold.

    Args:
        footprint: Measured at `batch` samples.
        budget: Bytes.
        length: Residues of the longest sample.
        batch: Samples of a part, for the message.
        gpu: Whether the bytes are those of a card, for the message.

    Raises:
        ConfigError: Not even everything computed twice fits.
    """
    least = footprint.peak(length)
    if least > budget:
        needed = math.ceil((enough(least) if gpu else least) / 10**8) / 10
        raise ConfigError(
            f"memory budget: {shown(budget)} may be used, but a step on {batch} x {length} residues takes "
            f"{shown(least)} with everything computed twice; what would do: --memory-budget "
            f"{needed:.1f}GB or more, {_SMALLER}"
        )
    kept_layers = footprint.layers
    while kept_layers and footprint.peak(length, kept_layers) > budget:
        kept_layers -= 1
    kept_blocks = footprint.blocks if kept_layers == footprint.layers else 0
    while kept_blocks and footprint.peak(length, kept_layers, kept_blocks) > budget:
        kept_blocks -= 1
    return Plan(
        budget=budget,
        peak=footprint.peak(length, kept_layers, kept_blocks),
        length=length,
        kept_layers=kept_layers,
        kept_blocks=kept_blocks,
        layers=footprint.layers,
        blocks=footprint.blocks,
    )


def enough(peak: int) -> int:
    """The budget of a card on which `peak` bytes are usable."""
    return round(peak / _USABLE) + _CONTEXT


def take_budget(config: FinetuneConfig, device: torch.device) -> int | None:
    """The run's budget in bytes, None without one; on a GPU what is more is refused from here on.

    Raises:
        ConfigError: It cannot be read, or contradicts other settings.
    """
    settings = config.model
    given = None if settings.memory_budget is None else parse_budget(settings.memory_budget)
    if given is not None and settings.gradient_checkpointing is not None:
        raise ConfigError("model.memory_budget decides what is computed twice: leave out gradient_checkpointing")
    cap(device, given)
    return given


def cap(device: torch.device, budget: int | None) -> None:
    """Have a GPU refuse more than a budget from here on; its allocator then gives back what it has spare first."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if budget is None else min(1.0, max(0, budget - _CONTEXT) / total)
        # Unlike other functions, this one refuses a device without a number.
        number = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_per_process_memory_fraction(share, number)


def fit_memory(trainer: StructureTrainer, config: FinetuneConfig, longest: int) -> Plan | None:
    """Make a run's step fit its memory: decide what is computed twice, and set the model so.

    Args:
        trainer: With the model on its device.
        config: The run.
        longest: Residues of the longest training chain.

    Returns:
        The plan; None where the configuration decides, or where there is no limit: a CPU without a budget.

    Raises:
        ConfigError: As `take_budget`, or nothing fits.
    """
    settings, training = config.model, config.training
    device = trainer.args.device
    model: Any = trainer.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    given = take_budget(config, device)
    if settings.gradient_checkpointing is not None:
        if settings.gradient_checkpointing:
            set_checkpointing(base, offload=settings.offload)
        return None
    # FSDP deals out the weights only when training begins.
    limit = None if trainer.is_fsdp_enabled and given is None else usable(device, given)
    if limit is None:
        if settings.offload:
            set_checkpointing(base, offload=True)
        return None
    length = min(config.data.crop_size, longest)
    parts = trainer.args.world_size * training.accumulate
    batch = -(-training.batch_size // parts)
    if training.batch_tokens is not None:
        batch = max(1, training.batch_tokens // length // parts)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            footprint = measure_footprint(
                base,
                lambda n: trainer.trial(n, batch),
                length=length,
                batch=batch,
                held=held_bytes(model, device),
                offload=settings.offload,
            )
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"memory budget: {shown(limit)} may be used, which a step on {batch} x {length} residues passes by far; "
            f"{_SMALLER}"
        ) from None
    plan = choose(footprint, limit, length, batch, gpu=device.type == "cuda")
    set_checkpointing(base, kept_layers=plan.kept_layers, kept_blocks=plan.kept_blocks, offload=settings.offload)
    return plan

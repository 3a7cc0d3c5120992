"""Fitting a training step to a memory budget: what it would take, and what is to be computed twice so that it fits.

Nothing here knows the sizes of a model's arrays. The step is run at three short lengths with everything computed
twice, and its peak measured; the arrays that one block and one language-model layer hold are measured beside it. All
are quadratic in the length, which three points fix, so the kernels, number formats, adapters and losses that happen to
be in use are counted as they are.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from protfold_peft.errors import ConfigError
from protfold_peft.folding.checkpointing import set_checkpointing
from protfold_peft.folding.model import EsmFold
from protfold_peft.runtime import resident_memory
from protfold_peft.training.config import FinetuneConfig

if TYPE_CHECKING:
    from protfold_peft.training.trainer import StructureTrainer

_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(MB|GB|MiB|GiB)\s*")

# Of a card, or of what is free on it: the CUDA context and its libraries, and holes between arrays.
_CONTEXT = 600 * 2**20
_USABLE = 0.93
# AdamW: a gradient and two moments for every trained number, in its own format.
_COPIES_OF_TRAINED = 3
_SMALLER = (
    "a smaller data.crop_size, fewer samples at once (training.accumulate), model.offload=true, or model.quantize=4bit"
)
# Shorter than this nothing is to be learnt about longer ones: fixed costs hide everything.
_SHORTEST = 16


@dataclass(frozen=True)
class Curve:
    """Bytes as a function of the length: `constant + linear n + quadratic n^2`."""

    constant: float
    linear: float
    quadratic: float

    @classmethod
    def through(cls, lengths: Sequence[int], sizes: Sequence[int]) -> Curve:
        """The parabola through three points."""
        quadratic, linear, constant = np.polyfit(np.asarray(lengths, float), np.asarray(sizes, float), 2)
        return cls(float(constant), float(linear), float(quadratic))

    def at(self, length: int) -> int:
        """Bytes at a length."""
        return max(0, round(self.constant + self.linear * length + self.quadratic * length**2))


@dataclass(frozen=True)
class Footprint:
    """What a training step of one model takes, in bytes by length.

    Attributes:
        held: Weights, gradients and the optimizer's moments, and on a CPU the program itself.
        step: The peak of a step above `held`, everything computed twice.
        layer: What a layer of the language model holds if it is not.
        block: What a block of the trunk holds if it is not.
        layers: Layers of the language model that take part in the backward pass.
        blocks: Blocks of the trunk that do.
    """

    held: int
    step: Curve
    layer: Curve
    block: Curve
    layers: int
    blocks: int

    def peak(self, length: int, kept_layers: int = 0, kept_blocks: int = 0) -> int:
        """Bytes at the worst moment of a step: all that is kept is there when the backward pass begins."""
        kept = kept_layers * self.layer.at(length) + kept_blocks * self.block.at(length)
        return self.held + self.step.at(length) + kept


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


def measure_footprint(
    base: EsmFold, step: Callable[[int], object], *, length: int, batch: int, held: int, offload: bool = False
) -> Footprint:
    """Run `step` at three lengths below `length` and measure.

    Args:
        base: The model, in training mode, on its device.
        step: Forward and backward pass of the whole model with its loss on samples of so many residues.
        length: Of the longest sample.
        batch: Samples of a part.
        held: Bytes of `Footprint.held`.
        offload: As in `set_checkpointing`.
    """
    device = base.device
    set_checkpointing(base, offload=offload)
    lengths = [max(_SHORTEST * place, round(length * place / 4)) for place in (1, 2, 3)]
    peaks, layers, blocks = [], [], []
    # Libraries set something aside on their first call.
    recorded = recorded_layers(base, lambda: step(lengths[0]))
    for n in lengths:
        peaks.append(peak_bytes(lambda n=n: step(n), device))  # type: ignore[misc]
        layers.append(_layer_bytes(base, batch, n))
        blocks.append(_block_bytes(base, batch, n))
    return Footprint(
        held=held,
        step=Curve.through(lengths, peaks),
        layer=Curve.through(lengths, layers),
        block=Curve.through(lengths, blocks),
        layers=recorded,
        blocks=len(base.trunk.blocks),
    )


def recorded_layers(base: EsmFold, run: Callable[[], object]) -> int:
    """How many layers of the language model take part in the backward pass of `run`: none below the lowest adapter."""
    recorded = 0

    def note(module: nn.Module, inputs: object, output: Any) -> None:
        nonlocal recorded
        state = output[0] if isinstance(output, tuple) else output
        recorded += bool(state.requires_grad)

    handles = [layer.register_forward_hook(note) for layer in base.esm.encoder.layer]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return recorded


def held_bytes(model: nn.Module, device: torch.device) -> int:
    """Bytes that are there before a step begins: what is in use now, and the optimizer's share of what is trained."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if device.type == "cuda":
        now = torch.cuda.memory_allocated(device)
    else:
        tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()}
        now = max(sum(tensors.values()), resident_memory() or 0)
    return now + _COPIES_OF_TRAINED * trained


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of arrays that `run` has made and not yet freed at any moment.

    On a GPU the allocator tells; elsewhere the arrays that operations return are counted, without what an operation
    uses inside.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveArrays() as live:
        run()
    return live.peak


class _LiveArrays(TorchDispatchMode):
    """Counts the bytes of arrays made inside it that are still referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self._known or key in given:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def saved_bytes(run: Callable[[], object], apart: Sequence[Tensor]) -> int:
    """Bytes of the arrays that `run` saves for its backward pass, each once, without those in `apart`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in apart}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
        del result
    return sum(sizes.values())


def _block_bytes(base: EsmFold, batch: int, length: int) -> int:
    trunk = base.trunk
    device, dtype = base.device, base.esm_s_combine.dtype
    c_s, c_z = trunk.config.sequence_state_dim, trunk.config.pairwise_state_dim
    s = torch.randn(batch, length, c_s, device=device, dtype=dtype, requires_grad=True)
    z = torch.randn(batch, length, length, c_z, device=device, dtype=dtype, requires_grad=True)
    mask = torch.ones(batch, length, device=device, dtype=dtype)
    block: Any = trunk.blocks[-1]

    def run() -> object:
        enabled = trunk.autocast_dtype is not None
        with (
            torch.enable_grad(),
            torch.autocast(device.type, dtype=trunk.autocast_dtype or torch.bfloat16, enabled=enabled),
        ):
            return block(s, z, mask=mask)

    return _kept(block, run, (s, z, mask))


def _layer_bytes(base: EsmFold, batch: int, length: int) -> int:
    esm = base.esm
    device = base.device
    dtype = esm.embeddings.word_embeddings.weight.dtype
    x = torch.randn(batch, length + 2, esm.config.hidden_size, device=device, dtype=dtype, requires_grad=True)
    positions = None
    if esm.rotary_embeddings is not None:
        positions = esm.rotary_embeddings(x, torch.arange(length + 2, device=device)[None])
    layer: Any = esm.encoder.layer[-1]
    return _kept(layer, lambda: layer(x, attention_mask=None, position_embeddings=positions), (x, *(positions or ())))


def _kept(block: Any, run: Callable[[], object], inputs: Sequence[Tensor]) -> int:
    """What a block saves when it is computed once."""
    twice, block.gradient_checkpointing = block.gradient_checkpointing, False
    try:
        return saved_bytes(run, [*inputs, *block.parameters(), *block.buffers()])
    finally:
        block.gradient_checkpointing = twice

"""What a training step of a model takes, by length, from three short trials.

Nothing here knows the sizes of a model's arrays. The step is run at three short lengths with everything computed
twice, and its peak measured; the arrays that one block and one language-model layer hold are measured beside it. All
are quadratic in the length, which three points fix, so the kernels, number formats, adapters and losses that happen to
be in use are counted as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protfold_peft.folding.checkpointing import set_checkpointing
from protfold_peft.folding.model import EsmFold
from protfold_peft.runtime import resident_memory
from protfold_peft.training.memory.arrays import peak_bytes, saved_bytes

# AdamW: a gradient and two moments for every trained number, in its own format.
_COPIES_OF_TRAINED = 3
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


def _block_bytes(base: EsmFold, batch: int, length: int) -> int:
    """What the last block of the trunk saves at a length."""
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
    """What the last layer of the language model saves at a length."""
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

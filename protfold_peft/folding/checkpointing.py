"""Which blocks keep what they computed until the backward pass, and which compute it a second time.

A block that is computed twice holds its inputs only. Those that hold everything are the last ones of their stack: the
backward pass frees them before it computes the first block again, so that the two never meet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from protfold_peft.folding.model import EsmFold
from protfold_peft.folding.trunk_block import TrunkBlock


def set_checkpointing(base: EsmFold, *, kept_layers: int = 0, kept_blocks: int = 0, offload: bool = False) -> None:
    """Compute everything twice but the last `kept_layers` of ESM-2 and the last `kept_blocks` of the trunk.

    Args:
        base: The model, without the PEFT wrapper.
        kept_layers: Layers of the language model that hold their activations.
        kept_blocks: Blocks of the trunk that hold theirs.
        offload: Hold the inputs of the trunk's other blocks in main memory meanwhile.
    """
    # Not transformers' own switch: it makes the embeddings ask for gradients, and the backward pass would go on below
    # the lowest adapter. Not re-entrant: the other kind needs inputs that ask for gradients.
    stacks: list[tuple[Any, int]] = [(base.esm.encoder.layer, kept_layers), (base.trunk.blocks, kept_blocks)]
    for stack, kept in stacks:
        for place, block in enumerate(stack):
            block.gradient_checkpointing = place < len(stack) - kept
            block._gradient_checkpointing_func = _checkpoint
    if offload:
        for block in stacks[1][0]:
            block._gradient_checkpointing_func = partial(_in_main_memory, block)


def checkpointed(base: EsmFold) -> tuple[int, int]:
    """How many layers of the language model and blocks of the trunk are computed twice."""
    stacks: list[Any] = [base.esm.encoder.layer, base.trunk.blocks]
    layers, blocks = (sum(block.gradient_checkpointing for block in stack) for stack in stacks)
    return layers, blocks


_checkpoint: Callable[..., Any] = partial(checkpoint, use_reentrant=False)


def _in_main_memory(block: TrunkBlock, function: Callable[..., Any], *inputs: Any) -> Any:
    """Checkpoint a call of a block whose inputs wait in main memory."""
    # What the call itself would save is dropped by the checkpoint, whose hooks are the inner ones; a block on kernels
    # that save nothing but its inputs needs none.
    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        return function(*inputs) if block.keeps_inputs_only(inputs[0]) else _checkpoint(function, *inputs)

"""What shared factors ask of training on several processes.

Distributed data parallelism averages a parameter's gradient once, when autograd reports it ready. Under reentrant
checkpointing every checkpointed segment runs a backward pass of its own, and a factor that all layers share is reported
ready by each: the average is taken of a part, and nothing fails. (Non-reentrant checkpointing, FSDP, and
`static_graph=True` are right.)

No layer is told that it runs in such a segment, but torch's own functions for it are among its callers: the first
run, without gradients, is by `CheckpointFunction.forward`, and the second, in the backward pass, by
`CheckpointFunction.backward`, with the same `ctx`. The refusal waits for the second, as the first alone does no harm:
it is all that there is in an evaluation without gradients.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointFunction

from protfold_peft.errors import ConfigError

# What is left in the segment's `ctx` for its backward pass.
_MARK = "protfold_shared_factors_in_parallel"


def refuse_reentrant_checkpointing() -> None:
    """To be called in the forward pass of a layer that is trained.

    Raises:
        ConfigError: It runs again for the backward pass of a reentrant segment whose forward pass was inside
            DistributedDataParallel without a static graph.
    """
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled():
        if torch._C._current_graph_task_id() == -1:
            return  # no backward pass is running
        segment = _caller(CheckpointFunction.backward.__code__)
        if segment is not None and getattr(segment, _MARK, False):
            raise ConfigError(
                "reentrant gradient checkpointing under DistributedDataParallel gives wrong gradients to factors that "
                'layers share: use gradient_checkpointing_kwargs={"use_reentrant": False}, or static_graph=True'
            )
        return
    parallel = DistributedDataParallel._active_ddp_module
    if parallel is not None and not parallel.static_graph:
        segment = _caller(CheckpointFunction.forward.__code__)
        if segment is not None:
            setattr(segment, _MARK, True)


def _caller(code: CodeType) -> Any:
    """The `ctx` of the innermost call of this function that is under way; None: there is none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is code:
            return frame.f_locals["ctx"]
        frame = frame.f_back
    return None

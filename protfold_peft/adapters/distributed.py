"""What shared factors ask of training on several processes.

Distributed data parallelism averages a parameter's gradient once, when autograd reports it ready. Under reentrant
checkpointing every checkpointed segment runs a backward pass of its own, and a factor that all layers share is reported
ready by each: the average is taken of a part, and nothing fails. (Measured: an error of 14 % in the gradients of two
processes. Non-reentrant checkpointing, FSDP, and `static_graph=True` are right.)
"""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointFunction

from protfold_peft.errors import ConfigError


def refuse_reentrant_checkpointing() -> None:
    """To be called in the forward pass of a layer that is trained.

    Raises:
        ConfigError: It runs under reentrant checkpointing inside DistributedDataParallel without a static graph.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return  # a reentrant segment first runs without gradients
    parallel = DistributedDataParallel._active_ddp_module
    if parallel is None or parallel.static_graph:
        return
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            raise ConfigError(
                "reentrant gradient checkpointing under DistributedDataParallel gives wrong gradients to factors that "
                'layers share: use gradient_checkpointing_kwargs={"use_reentrant": False}, or static_graph=True'
            )
        frame = frame.f_back

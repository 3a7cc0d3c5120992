"""The trained parameters: saved and put back by name, and their running mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from protfold_peft.errors import CheckpointError
from protfold_peft.files import replacing


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that ask for gradients, by name; one that goes by several names has the first."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained parameters."""
    return {name: parameter.detach().clone() for name, parameter in trained(model).items()}


@torch.no_grad()
def put_back(model: nn.Module, values: Mapping[str, Tensor], source: str) -> None:
    """Set the trained parameters.

    Raises:
        CheckpointError: `values`, which come from `source`, are of other parameters.
    """
    own = trained(model)
    wrong = sorted(own.keys() ^ values.keys()) or [name for name in own if own[name].shape != values[name].shape]
    if wrong:
        raise CheckpointError(f"{source} does not fit this run: {wrong[0]} is missing, unknown or of another shape")
    for name, parameter in own.items():
        parameter.copy_(values[name])


def save(path: Path, values: Mapping[str, Tensor]) -> None:
    """Write values by name, whole or not at all."""
    with replacing(path) as temporary:
        save_file({name: value.detach().contiguous().cpu() for name, value in values.items()}, temporary)


def read(path: Path) -> dict[str, Tensor]:
    """Values by name.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


class RunningMean:
    """The exponential moving average of the trained parameters, in their own precision.

    The decay rises to its value over the first steps, as `(1 + step) / (10 + step)`, so that the start is forgotten.

    Args:
        model: Whose parameters are followed.
        decay: Share of the old mean kept at every step, 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.mean = snapshot(model)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the parameters after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in trained(model).items():
            self.mean[name].lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The model with the mean for its parameters, within."""
        own = snapshot(model)
        put_back(model, self.mean, "the running mean")
        try:
            yield
        finally:
            put_back(model, own, "the parameters")

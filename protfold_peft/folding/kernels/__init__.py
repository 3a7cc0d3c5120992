"""Which kernels the trunk runs on: one switch, and what this machine has.

`reference_kernels()` turns everything in this folder off, so that the trunk is written in PyTorch's own operations:
what every fast path is tested against.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch

from protfold_peft.runtime import LOGGER


@dataclass(frozen=True)
class KernelSettings:
    """What may be used; a part that the machine lacks is left out whatever is set.

    Attributes:
        reference: Use PyTorch's own operations only.
        attention: Triangle attention by `auto`, `cuequivariance`, `triton` or `torch`.
        graphs: Record the trunk's work on short sequences as CUDA graphs, at inference.
    """

    reference: bool = False
    attention: str = "auto"
    graphs: bool = True


_settings = KernelSettings()


def settings() -> KernelSettings:
    """The settings in force."""
    return _settings


def configure(**changes: object) -> None:
    """Change the settings of this process; see `KernelSettings`."""
    global _settings
    _settings = replace(_settings, **changes)  # type: ignore[arg-type]


@contextmanager
def using(**changes: object) -> Iterator[None]:
    """Settings for the length of a block."""
    before = _settings
    configure(**changes)
    try:
        yield
    finally:
        configure(**vars(before))


def reference_kernels() -> AbstractContextManager[None]:
    """A context in which PyTorch's own operations do everything."""
    return using(reference=True)


@functools.cache
def triton_works(device: torch.device) -> bool:
    """Whether a Triton kernel runs on a device: Triton may be absent, or lack the C compiler that it needs."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from protfold_peft.folding.kernels.triton_pair import norm

        x = torch.ones(1, 16, device=device)
        norm(x, x[0], x[0], 1e-5, torch.bfloat16)
    except Exception as error:  # whatever it is, PyTorch's own operations do not have it
        LOGGER.warning("the folding trunk runs without its own kernels, more slowly: Triton says: %s", error)
        return False
    return True


@functools.cache
def has_cuequivariance() -> bool:
    """Whether NVIDIA's kernels can be imported; a broken installation counts as none."""
    if importlib.util.find_spec("cuequivariance_torch") is None:
        return False
    try:
        import cuequivariance_ops_torch  # noqa: F401
        import cuequivariance_torch  # noqa: F401
    except Exception:  # compiled parts fail in many ways
        return False
    return True


def triton_runs(device: torch.device) -> bool:
    """Whether Triton kernels are to be used on this device: NVIDIA's from Ampere on, which have bf16 products."""
    return (
        not _settings.reference
        and device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and triton_works(device)
    )

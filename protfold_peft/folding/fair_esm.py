"""fair-esm `.pt` checkpoints, read without running anything in them.

These files are pickles: weights beside a configuration held in `argparse.Namespace` (ESM-2) or omegaconf (ESMFold)
objects. They are opened with `weights_only=True`, and the few classes such files are known to name are replaced by
inert stand-ins that only remember what they were given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protfold_peft.errors import CheckpointError

_KNOWN_GLOBALS = re.compile(
    r"argparse\.Namespace|omegaconf\.[\w.]+|typing\.\w+|collections\.defaultdict"
    r"|builtins\.(dict|list|tuple|int|float|str|bool|object)"
)
_ESM2_PREFIX = re.compile(r"^(encoder\.sentence_encoder\.|encoder\.)")


class _Inert:
    """Stands for an object of a class that is not imported: keeps its state, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.arguments = args

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__[str(key)] = value


@dataclass(frozen=True, eq=False)
class FairEsmCheckpoint:
    """The contents of a `.pt` file.

    Attributes:
        path: The file.
        config: Its `cfg["model"]`, as plain dictionaries.
        weights: Parameter and buffer tensors by name; ESM-2's without the `encoder.` prefix of training code.
    """

    path: Path
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    @property
    def is_folding(self) -> bool:
        """True for ESMFold, false for a plain ESM-2."""
        return any(name.startswith("trunk.") for name in self.weights)


def read_checkpoint(path: str | Path) -> FairEsmCheckpoint:
    """Read a fair-esm `.pt` file on the CPU.

    Raises:
        CheckpointError: The file is missing, cut short, no PyTorch checkpoint, names a class that such files do not
            (it is not imported), or holds no weights.
    """
    path = Path(path)
    data = _load(path)
    weights = data.get("model") if isinstance(data, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} is no fair-esm checkpoint: it has no 'model' dictionary of tensors")
    config = _plain(data.get("cfg", {}))
    config = config.get("model", {}) if isinstance(config, dict) else {}
    names = {_ESM2_PREFIX.sub("", name): tensor for name, tensor in weights.items()}
    regression = path.with_name(f"{path.stem}-contact-regression.pt")
    if regression.exists():
        extra = _load(regression)
        names.update(extra.get("model", {}) if isinstance(extra, dict) else {})
    return FairEsmCheckpoint(path, config, names)


def _load(path: Path) -> Any:
    """The content of a checkpoint; classes that it names become inert stand-ins."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        refused = [name for name in unknown if not _KNOWN_GLOBALS.fullmatch(name)]
        if refused:
            raise CheckpointError(f"{path} names the class {refused[0]}, which fair-esm files do not: it is not loaded")
        stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (type(name.rpartition(".")[2], (_Inert,), {}), name) for name in unknown
        ]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ValueError, ...
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} cannot be read as a PyTorch checkpoint (is it complete?): {reason}") from error


def _plain(value: Any) -> Any:
    """Turn stand-ins for omegaconf containers, omegaconf values and namespaces into plain Python."""
    if isinstance(value, _Inert):
        state = {key: item for key, item in vars(value).items() if key != "arguments"}
        if "_content" in state:
            return _plain(state["_content"])
        if "_val" in state:
            return _plain(state["_val"])
        return {key: _plain(item) for key, item in state.items()}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value

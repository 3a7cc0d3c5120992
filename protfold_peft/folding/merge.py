"""A base model and an adapter in, a model with the adapter's updates in its weights out.

Folding models are loaded as everywhere here, others by the class of transformers that the adapter fits.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from protfold_peft.adapters import load_adapter
from protfold_peft.adapters.folders.base_model import is_folding, read_base_config, skeleton
from protfold_peft.adapters.folders.info import adapted_paths
from protfold_peft.adapters.folders.saved import MODULES, check_output, copy_files, new_folder
from protfold_peft.errors import CheckpointError, ConfigError, ProtfoldError
from protfold_peft.files import write_text
from protfold_peft.folding.load import load_model
from protfold_peft.folding.mini import MINI_FOLDER, MINI_NAME, UNTRAINED_NAME

_TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.spm",
    "chat_template*",
)


@dataclass(frozen=True)
class MergeReport:
    """What was written.

    Attributes:
        model_class: Of transformers.
        modules: Number of changed modules.
        parameters: Of the model.
        tokenizer: Whether a tokenizer is beside it.
        warnings: What the user should know, one line each.
    """

    model_class: str
    modules: int
    parameters: int
    tokenizer: bool
    warnings: tuple[str, ...]


def merge_adapter(
    base: str, adapter: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False
) -> MergeReport:
    """Write the base model with the adapter's updates added to its weights.

    Args:
        base: Hub id or local folder.
        adapter: Folder of a tensor adapter, or of PEFT's LoRA.
        out: Where the model goes.
        overwrite: Replace the model in `out`.

    Raises:
        ConfigError: `out` is not free, or the untrained model is named.
        CheckpointError: Base model or adapter cannot be loaded, or do not fit each other.
        NonFiniteError: A merged weight would hold NaN or infinity.
    """
    adapter, out = Path(adapter), Path(out)
    inputs = (adapter, *([Path(base)] if Path(base).is_dir() else []))
    check_output(out, inputs=inputs, overwrite=overwrite)
    if base == UNTRAINED_NAME:
        raise ConfigError(f"{base} has random weights: there is nothing to merge into")
    if base == MINI_NAME:
        base = str(MINI_FOLDER)
    paths = adapted_paths(adapter)
    told: list[str] = []
    with _one_line(adapter, told):
        config = read_base_config(base)
        model = _load(base, config, adapter, paths, told)
        merged: Any = load_adapter(model, adapter).merge_and_unload(safe_merge=True)
    with new_folder(out, inputs=inputs, overwrite=overwrite) as temporary:
        merged.save_pretrained(str(temporary))
        kind = type(merged).__name__
        if is_folding(config):
            # Ours is loaded from, and saved for, the class that everyone has.
            kind = "EsmForProteinFolding"
            file = temporary / "config.json"
            content = json.loads(file.read_text(encoding="utf-8")) | {"architectures": [kind]}
            write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
        tokenizer = _save_tokenizer(base, adapter, temporary)
        write_text(temporary / "README.md", _card(base, adapter, kind))
    return MergeReport(kind, len(paths), sum(p.numel() for p in merged.parameters()), tokenizer, tuple(told))


@contextmanager
def _one_line(adapter: Path, told: list[str]) -> Iterator[None]:
    """Errors of PEFT and transformers as ours, and their warnings kept."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        except ProtfoldError:
            raise
        except Exception as error:  # of many kinds
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"adapter {adapter} cannot be merged: {reason}") from error
    told += dict.fromkeys(" ".join(str(w.message).split()) for w in caught if w.category is UserWarning)


def _load(base: str, config: Any, adapter: Path, paths: list[str], told: list[str]) -> nn.Module:
    if is_folding(config):
        return load_model(base, device="cpu", dtype="fp32").network
    adapter_config = PeftConfig.from_pretrained(str(adapter))
    modules = _modules(adapter)
    empty: Any = skeleton(base, adapter_config, paths, modules)
    revision = adapter_config.revision if not Path(base).is_dir() else None
    model, report = type(empty).from_pretrained(
        base, config=empty.config, dtype="auto", revision=revision or "main", output_loading_info=True
    )
    given = {name.removeprefix(MODULES) for name in modules}
    drawn = sorted(set(report["missing_keys"]) - given)
    if drawn:
        told.append(f"the base model has no weights for {', '.join(drawn[:3])}: they are random in the result")
    return model.eval()


def _modules(adapter: Path) -> dict[str, Tensor]:
    """The weights of what the adapter holds in full."""
    tensors = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(MODULES) and "lora_" not in name}


def _save_tokenizer(base: str, adapter: Path, target: Path) -> bool:
    """The adapter's own tokenizer, which may know more tokens, or the base model's."""
    for source in (adapter, Path(base)):
        if source.is_dir():
            copy_files(source, target, _TOKENIZER_FILES)
    if not Path(base).is_dir() and not any(any(target.glob(pattern)) for pattern in _TOKENIZER_FILES):
        try:
            AutoTokenizer.from_pretrained(base).save_pretrained(str(target))
        except Exception:  # a base without a tokenizer is no failure
            return False
    return any(any(target.glob(pattern)) for pattern in _TOKENIZER_FILES)


def _card(base: str, adapter: Path, kind: str) -> str:
    return (
        f"---\nlibrary_name: transformers\nbase_model: {json.dumps(base)}\n---\n\n"
        f"# {Path(base).name} with a merged adapter\n\n"
        f"`{base}` with the updates of the adapter `{adapter.name}` added to its weights. Load it with transformers' "
        f"`{kind}.from_pretrained`; no other package is needed.\n"
    )

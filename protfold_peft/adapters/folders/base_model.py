"""The model that a saved adapter is for: which class of transformers it is, as a structure without weights, or loaded.

Module paths depend on the class: an adapter of `EsmForMaskedLM` names `esm.encoder...`, one of `EsmModel` only
`encoder...`. So the class is the first that the adapter fits, of those that its own configuration and the model's name.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

from protfold_peft.errors import CheckpointError

_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
_HEADS = ("classifier.out_proj.weight", "classifier.weight", "score.weight")


def read_base_config(base: str | os.PathLike[str], *, revision: str | None = None, local: bool = False) -> Any:
    """The configuration of a base model.

    Args:
        base: Hub id or local folder.
        revision: Of the hub's repository.
        local: Do not ask the hub.

    Raises:
        CheckpointError: There is none.
    """
    name = os.fspath(base)
    path = Path(name)
    if path.is_file():
        raise CheckpointError(f"{name} is a file; give the folder of the base model, or its hub id")
    if not path.is_dir() and (name.count("/") > 1 or name.startswith((".", "~", "/"))):
        raise CheckpointError(f"the base model's folder {name} does not exist")
    if path.is_dir() and not (path / "config.json").is_file():
        kind = "an adapter, not a model" if (path / "adapter_config.json").is_file() else "not a model's folder"
        raise CheckpointError(f"{name} has no config.json: it is {kind}")
    try:
        return AutoConfig.from_pretrained(name, revision=revision, local_files_only=local)
    except Exception as error:  # transformers, the hub and JSON raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the configuration of base model '{name}' could not be read: {reason}") from error


def is_folding(config: Any) -> bool:
    """Whether this is the configuration of an ESMFold."""
    return bool(getattr(config, "is_folding_model", False))


def model_classes(config: Any, adapter_config: Any) -> list[type[nn.Module]]:
    """The classes that the adapter may have been made on, most likely first."""
    task = getattr(adapter_config, "task_type", None)
    auto_mapping = getattr(adapter_config, "auto_mapping", None) or {}
    names = [auto_mapping.get("base_model_class")]
    names += ["EsmForProteinFolding"] if is_folding(config) else []
    found = [getattr(transformers, name, None) for name in names if isinstance(name, str)]
    found.append(_of_auto_class(_AUTO_CLASSES.get(str(getattr(task, "value", task))), config))
    found += [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or ()]
    found.append(_of_auto_class("AutoModel", config))
    return list(dict.fromkeys(each for each in found if isinstance(each, type) and issubclass(each, nn.Module)))


def _of_auto_class(name: str | None, config: Any) -> Any:
    chosen = getattr(transformers, name)._model_mapping.get(type(config), None) if name else None
    return chosen[0] if isinstance(chosen, (tuple, list)) else chosen


def skeleton(
    base: str | os.PathLike[str],
    adapter_config: Any,
    paths: Iterable[str],
    modules: Mapping[str, Tensor],
    *,
    local: bool = False,
) -> nn.Module:
    """The base model's structure on the meta device, of the class in which the adapter's modules are.

    Args:
        base: Hub id or local folder; only its configuration is read.
        adapter_config: PEFT's configuration of the adapter.
        paths: Of the adapted modules.
        modules: Weights of modules that the adapter holds in full; they give the number of labels.
        local: Do not ask the hub.

    Raises:
        CheckpointError: The base model's configuration cannot be read, or no class has all of these modules.
    """
    wanted = list(paths)
    revision = getattr(adapter_config, "revision", None)
    config = with_labels(read_base_config(base, revision=revision, local=local), modules)
    classes = model_classes(config, adapter_config)
    missing: dict[str, str] = {}
    for kind in classes:
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            model = structure(kind, config)
            names = {name for name, _ in model.named_modules()}
            lacking = next((path for path in wanted if path not in names), None)
            if lacking is None:
                return model
            missing[kind.__name__] = lacking
    if not missing:
        raise CheckpointError(f"base model '{base}': transformers knows no class for a '{config.model_type}' model")
    name, path = next(iter(missing.items()))
    raise CheckpointError(
        f"the adapter was made for another model: base model '{base}' ({name}) has no module '{path}'"
    )


def structure(kind: type[nn.Module], config: Any) -> nn.Module:
    """A model of this class without weights."""
    with torch.device("meta"):
        return kind(copy.deepcopy(config)).eval()


def with_labels(config: Any, modules: Mapping[str, Tensor]) -> Any:
    """The configuration with as many labels as the adapter's classification head has."""
    for ending in _HEADS:
        for name, tensor in modules.items():
            if name.endswith(f".{ending}") and tensor.dim() == 2 and len(tensor) != config.num_labels:
                config = copy.deepcopy(config)
                config.num_labels = len(tensor)
                return config
    return config


def count_parameters(model: nn.Module) -> int:
    """Of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())

"""The model of a run: loaded, and made ready for what is to be trained."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from protfold_peft.adapters import METHODS, load_fitting_adapter
from protfold_peft.adapters.named import FULL, named_config
from protfold_peft.errors import ConfigError
from protfold_peft.folding.load import LoadedModel, load_model, weights_folder
from protfold_peft.folding.masked_lm import NEW, attach_head
from protfold_peft.folding.mini import MINI_NAME
from protfold_peft.folding.quantize import halve_frozen_trunk
from protfold_peft.runtime import has_bf16, seed_everything
from protfold_peft.training.config import FinetuneConfig

# Parts of EsmFold that no loss reaches.
_NEVER_TRAINED = ("esm.contact_head", "esm.pooler", "esm.embeddings.position_embeddings", "lm_head")
# Heads that only one loss term reaches.
_HEADS = {
    "plddt": "lddt_head",
    "aligned_error": "ptm_head",
    "distogram": "distogram_head",
    "masked_lm": "masked_lm_head",
}


def base_name(config: FinetuneConfig) -> str:
    """What the base model is called in outputs."""
    return config.model.name or MINI_NAME


def load_base(config: FinetuneConfig, device: torch.device) -> LoadedModel:
    """The base model on its device, in the run's precision, with the language model's own head where it is asked for.

    Raises:
        ConfigError: Settings that contradict each other.
        CheckpointError: The model cannot be loaded.
    """
    model = config.model
    if model.quantize is not None and config.mode == "full":
        raise ConfigError("model.quantize holds frozen weights: with mode=full there are none")
    if config.mode == "full" and (config.loss.base_divergence or config.loss.base_distance):
        raise ConfigError(
            "loss.base_divergence and loss.base_distance need a base model beside the trained one: not with mode=full"
        )
    loaded = load_model(model.name, device=str(device), dtype=precision(model.dtype, device), quantize=model.quantize)
    if config.loss.masked_lm:
        if model.masked_lm_head == NEW and config.mode != "full":
            raise ConfigError(
                "model.masked_lm_head=new: an untrained head is of use only where it is trained: mode=full"
            )
        seed_everything(config.training.seed)
        attach_head(loaded.base, model.masked_lm_head, weights_folder(model.name))
        loaded.base.masked_lm_head.requires_grad_(False)
    return loaded


def make_trainable(loaded: LoadedModel, config: FinetuneConfig) -> Any:
    """The model with what is to be trained asking for gradients, and nothing else.

    Raises:
        ConfigError: An adapter that cannot be.
    """
    seed_everything(config.training.seed)
    base = loaded.base
    model = _full(base, config) if config.mode == "full" else _adapted(loaded, config)
    if config.model.dropout is not None:
        for module in base.esm.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.model.dropout
    if config.mode != "full":
        halve_frozen_trunk(base)
    return model


def _full(base: Any, config: FinetuneConfig) -> Any:
    """The whole model, or the parts that are wanted, made trainable."""
    parts = config.training.full_parts
    base.requires_grad_(parts is None)
    for wanted in parts or ():
        found = [p for name, p in base.named_parameters() if name == wanted or name.startswith(f"{wanted}.")]
        if not found:
            raise ConfigError(f"training.full_parts: the model has no part '{wanted}'; esm is the language model")
        for parameter in found:
            parameter.requires_grad_(True)
    unused = [*_NEVER_TRAINED, *(head for term, head in _HEADS.items() if term not in config.loss.weights())]
    for name in unused:
        part = base
        for step in name.split("."):
            part = getattr(part, step, None)
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    return base


def _adapted(loaded: LoadedModel, config: FinetuneConfig) -> Any:
    """The model with an adapter, a fresh one or one that was saved."""
    settings = config.adapter
    if settings.start_from is not None:
        model: Any = load_fitting_adapter(loaded.network, Path(settings.start_from), is_trainable=True)
    else:
        with warnings.catch_warnings():
            # PEFT asks transformers under a name that is on its way out.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            model = _with_new_adapter(loaded.network, config)
    model.peft_config["default"].base_model_name_or_path = base_name(config)
    return model


def _with_new_adapter(network: nn.Module, config: FinetuneConfig) -> Any:
    settings = adapter_config(config)
    if config.adapter.method in METHODS:
        return peft.get_peft_model(network, settings)
    try:
        return peft.get_peft_model(network, settings)
    except (TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"adapter: {config.adapter.method} does not fit this model: {reason}") from error


def adapter_config(config: FinetuneConfig) -> Any:
    """The PEFT configuration of the run's adapter; to be called before anything is computed, too.

    Raises:
        ConfigError: The method is not known, or a setting is not one of it.
    """
    settings = config.adapter
    if settings.method not in METHODS:
        return _named_config(config)
    if settings.rank is None:
        raise ConfigError(f"adapter.rank: {settings.method} needs one")
    face = METHODS[settings.method]
    options: dict[str, Any] = dict(settings.options)
    if "alpha" in {field.name for field in fields(face)}:
        # A start that is stable over ranks wants an alpha that does not grow with them: the adapters' own default.
        default = 8.0 if settings.init == "rank_stable" else float(settings.rank)
        options |= {"alpha": settings.alpha or default}
    elif settings.alpha is not None:
        raise ConfigError(f"adapter.alpha: {settings.method} has none; set adapter.options.scale instead")
    if clash := sorted({"r", "network", "layout", "target_modules", "dropout", "init"} & set(settings.options)):
        raise ConfigError(f"adapter.options.{clash[0]}: set it as a key of adapter itself")
    targets = list(settings.target_modules)
    if config.mode == "trunk":
        targets += settings.trunk_modules
    return face(r=settings.rank, init=settings.init, target_modules=targets, dropout=settings.dropout, **options)


def _named_config(config: FinetuneConfig) -> Any:
    """Of one of PEFT's own methods, as `protfold lm` makes it."""
    settings = config.adapter
    if settings.method == FULL:
        raise ConfigError("adapter.method=full: set mode=full to train all weights")
    return named_config(
        settings.method,
        rank=settings.rank,
        alpha=settings.alpha,
        init=None if settings.init == "authors" else settings.init,
        dropout=settings.dropout,
        target_modules=[*settings.target_modules, *(settings.trunk_modules if config.mode == "trunk" else [])],
        options=settings.options,
    )


def precision(dtype: str, device: torch.device) -> str:
    """What `auto` means in training: prediction has the language model in fp16 on a GPU, which cannot be trained."""
    if dtype == "auto":
        return ("bf16" if has_bf16(device) else "fp32") if device.type == "cuda" else "fp32"
    if "fp16" in dtype.split("/"):
        raise ConfigError(f"model.dtype={dtype}: fp16 gradients overflow; use bf16 or fp32")
    return dtype

"""Loading language models and tokenizers: safetensors only, no code from where they come from, errors in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from protfold_peft.errors import CheckpointError, ConfigError
from protfold_peft.language.config import ModelConfig
from protfold_peft.runtime import DTYPES, require_bitsandbytes, resolve_device

# Tokenizers without a limit say so with a huge number.
_NO_LIMIT = 1_000_000


def device_of(config: ModelConfig) -> torch.device:
    """The device, which must be one that the Trainer can be told to use."""
    device = resolve_device(config.device)
    if device.index:
        raise ConfigError(
            f"model.device={config.device}: training takes the first GPU; choose with CUDA_VISIBLE_DEVICES"
        )
    return device


def is_bf16(config: ModelConfig, device: torch.device) -> bool:
    """Whether the arithmetic is bf16."""
    return config.dtype == "bf16" or (config.dtype == "auto" and device.type == "cuda")


def load_tokenizer(config: ModelConfig, *, padding_side: str = "right") -> Any:
    """The tokenizer, which has a padding token: its own, or else that of the end.

    Raises:
        CheckpointError: There is none, or it cannot be loaded.
    """
    tokenizer = _loading(config.name, AutoTokenizer.from_pretrained, config, padding_side=padding_side)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise CheckpointError(f"the tokenizer of '{config.name}' has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig, auto_class: Any, device: torch.device, **options: Any) -> Any:
    """The model as `auto_class` makes it, in its number format, in evaluation mode.

    A folder with a configuration and no weights gives a model with random weights, drawn from the global generator.

    Raises:
        CheckpointError: It cannot be loaded.
        ConfigError: Quantisation without bitsandbytes.
    """
    dtype = DTYPES["bf16" if is_bf16(config, device) else "fp32"]
    if _has_no_weights(config.name):
        settings = _loading(config.name, AutoConfig.from_pretrained, config, **options)
        return auto_class.from_config(settings, dtype=dtype).eval()
    if config.quantize is not None:
        options |= {"quantization_config": _quantization(config.quantize), "device_map": {"": device}}
    model = _loading(config.name, auto_class.from_pretrained, config, dtype=dtype, use_safetensors=True, **options)
    if config.quantize is not None:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model.eval()


def _has_no_weights(name: str) -> bool:
    folder = Path(name)
    weights = (file for pattern in ("*.safetensors", "*.index.json", "*.bin", "*.pt") for file in folder.glob(pattern))
    return (folder / "config.json").is_file() and not any(weights)


def _quantization(kind: str) -> Any:
    require_bitsandbytes(f"model.quantize={kind}")
    from transformers import BitsAndBytesConfig

    # As in QLoRA: NF4, with the scales quantised too.
    return BitsAndBytesConfig(
        load_in_4bit=kind == "4bit",
        load_in_8bit=kind == "8bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _loading(name: str, load: Callable[..., Any], config: ModelConfig, **options: Any) -> Any:
    """Call a loader of transformers, which raises many kinds of errors."""
    path = Path(name)
    if not path.is_dir() and (name.count("/") > 1 or name.startswith((".", "~", "/"))):
        raise CheckpointError(f"model folder {name} does not exist")
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise CheckpointError(f"{name} is an adapter, not a model: name its base model, and it as adapter.start")
    try:
        return load(name, revision=config.revision, trust_remote_code=False, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"model '{name}' could not be loaded: {reason}") from error


def longest_input(model: nn.Module, tokenizer: Any) -> int | None:
    """The most tokens that a model can take; None if nothing says so."""
    config: Any = model.config
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < _NO_LIMIT else []
    positions = getattr(config, "max_position_embeddings", None)
    if positions and getattr(config, "position_embedding_type", None) != "rotary":
        # Models of RoBERTa's kind count positions from behind the padding token's id.
        table = next((each for name, each in model.named_modules() if name.endswith("position_embeddings")), None)
        padding = getattr(table, "padding_idx", None)
        limits.append(positions if padding is None else positions - padding - 1)
    return min(limits, default=None)

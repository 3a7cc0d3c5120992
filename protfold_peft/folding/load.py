"""Loading a folding model: the built-in one, a Hugging Face hub id, or a local folder, with or without an adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import EsmConfig

from protfold_peft.errors import CheckpointError, ConfigError, ProtfoldError
from protfold_peft.folding.mini import MINI_FOLDER, MINI_NAME, MINI_SEED, UNTRAINED_NAME, build_mini
from protfold_peft.folding.model import EsmFold
from protfold_peft.folding.quantize import quantize_language_model
from protfold_peft.runtime import DTYPES, has_bf16, resolve_device

_ALL_ROWS = 2**31

# Parts of ESM-2 that folding never runs; checkpoints may lack them.
_UNUSED_PARTS = ("esm.contact_head.", "esm.embeddings.position_ids", "esm.embeddings.position_embeddings.")


@dataclass(frozen=True)
class LoadedModel:
    """A folding model ready to predict.

    Attributes:
        network: `EsmFold`, or the PEFT model around it.
        device: Where inputs go.
        id: What the model is called in outputs.
        adapter_hash: SHA-256 over the adapter's configuration and weights, None without an adapter.
        precision: Language model and trunk, `fp32/fp32`.
        untrained: The weights are random: whatever it predicts is noise.
    """

    network: Any
    device: torch.device
    id: str
    adapter_hash: str | None
    precision: str
    untrained: bool

    @property
    def base(self) -> EsmFold:
        """The `EsmFold` itself, without the PEFT wrapper."""
        return self.network if isinstance(self.network, EsmFold) else self.network.get_base_model()

    @property
    def default_recycles(self) -> int:
        """Passes after the first that the weights were trained with."""
        return self.base.default_recycles

    def set_chunk_size(self, chunk_size: int | None) -> None:
        """Rows of the pair state worked on at once; None chooses from the length."""
        self.base.set_chunk_size(chunk_size)


def parse_precision(dtype: str, device: torch.device) -> tuple[torch.dtype, torch.dtype, str]:
    """Turn `auto`, `fp32`, `bf16` or `LANGUAGE_MODEL/TRUNK` into two number formats and their name.

    `auto` is fp32 on a CPU, and `fp16/bf16` on a GPU; `fp16/fp32`, the precision ESMFold was published with, on GPUs
    older than bf16.

    Raises:
        ConfigError: An unknown format, or fp16 for the trunk.
    """
    if dtype == "auto":
        dtype = ("fp16/bf16" if has_bf16(device) else "fp16/fp32") if device.type == "cuda" else "fp32"
    names = dtype.split("/")
    if not 1 <= len(names) <= 2 or any(name not in DTYPES for name in names):
        raise ConfigError(
            f"unknown dtype '{dtype}': use auto, fp32, bf16, or two as LANGUAGE_MODEL/TRUNK, e.g. bf16/fp32"
        )
    if names[-1] == "fp16":
        raise ConfigError(f"dtype '{dtype}': the folding trunk overflows to NaN in fp16; use bf16, fp32 or fp16/fp32")
    return DTYPES[names[0]], DTYPES[names[-1]], f"{names[0]}/{names[-1]}"


def parse_chunk_size(chunk_size: int | str | None) -> int | None:
    """Turn `auto` into None (chosen from the length), and None or `none` into more rows than any protein has.

    Raises:
        ConfigError: Neither of these nor a positive number.
    """
    if chunk_size == "auto":
        return None
    if chunk_size is None or chunk_size == "none":
        return _ALL_ROWS
    if not str(chunk_size).isdecimal() or int(chunk_size) < 1:
        raise ConfigError(f"chunk size '{chunk_size}' is not auto, none or a positive number")
    return int(chunk_size)


def load_model(
    model: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    chunk_size: int | str | None = "auto",
    cpu_offload: bool = False,
    quantize: str | None = None,
) -> LoadedModel:
    """Load a folding model for prediction.

    Args:
        model: A hub id (`facebook/esmfold_v1`), a local folder in transformers' format, None (also
            `"protfold-mini"`) for the built-in model, or `"protfold-mini-untrained"` for random weights.
        adapter: A folder saved by PEFT, to be put on top.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `auto`, `fp32`, `bf16`, or `LANGUAGE_MODEL/TRUNK`; see `parse_precision`.
        chunk_size: Rows of the pair state worked on at once; `auto` chooses from the length; None: all of them.
        quantize: `8bit` or `4bit`: hold the language model's matrices in so few bits (bitsandbytes).
        cpu_offload: Keep the weights in main memory and move each part to the GPU as it runs (slow, but it fits).

    Raises:
        CheckpointError: No such model or adapter, damaged or incomplete weights, or another architecture.
        ConfigError: An impossible option.
    """
    target = resolve_device(device)
    language_model, trunk, precision = parse_precision(dtype, target)
    if cpu_offload and target.type != "cuda":
        raise ConfigError(f"--cpu-offload needs a CUDA device, this run is on {target}; leave it out")
    name = MINI_NAME if model is None else str(model)
    untrained = name == UNTRAINED_NAME
    if untrained:
        network, name = build_mini(), f"{UNTRAINED_NAME} (seed {MINI_SEED})"
    else:
        network = _from_pretrained(str(weights_folder(name) or name), language_model)
    network.set_precision(language_model=language_model, trunk=trunk)
    network.set_chunk_size(parse_chunk_size(chunk_size))
    if quantize is not None:
        quantize_language_model(network, quantize, language_model)
        precision = f"{quantize}:{precision}"
    adapter_hash = None
    if adapter is not None:
        network, adapter_hash = _with_adapter(network, Path(adapter))
    network.eval().requires_grad_(False)
    if cpu_offload:
        from accelerate import cpu_offload as offload

        offload(network, execution_device=target)
    else:
        network.to(target)
    return LoadedModel(network, target, name, adapter_hash, precision, untrained)


def weights_folder(model: str | None) -> Path | None:
    """The folder of a model's weights; None for one of the hub, and for the untrained model, which has none."""
    if model is None or model == MINI_NAME:
        return MINI_FOLDER
    return Path(model) if Path(model).is_dir() else None


def _from_pretrained(model: str, language_model: torch.dtype) -> EsmFold:
    path = Path(model)
    if path.is_file():
        raise CheckpointError(f"{model} is a file; run: protfold convert {model} FOLDER, then use --model FOLDER")
    if not path.is_dir() and (model.count("/") > 1 or model.startswith((".", "~", "/"))):
        raise CheckpointError(f"model folder {model} does not exist")
    # The hub client announces each of its retries; the error at the end says all there is to say.
    hub_logging.set_verbosity_error()
    # Before gigabytes are fetched: is it an ESMFold at all?
    config = _local_config(path) if path.is_dir() else _loading(model, EsmConfig.get_config_dict, model)[0]
    if config.get("model_type") != "esm" or not config.get("is_folding_model"):
        raise CheckpointError(
            f"'{model}' is a model of type '{config.get('model_type')}' that is no ESMFold (is_folding_model is not "
            "set): folding needs one such as facebook/esmfold_v1"
        )
    network, report = _loading(model, EsmFold.from_pretrained, model, dtype=language_model, output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED_PARTS))
    if missing:
        raise CheckpointError(
            f"model '{model}' lacks {len(missing)} weights of an ESMFold, the first is {missing[0]}: "
            "is the download complete?"
        )
    if report["mismatched_keys"]:
        first = sorted(str(key) for key in report["mismatched_keys"])[0]
        raise CheckpointError(f"model '{model}': weights do not fit its config.json, first {first}")
    return network


def _loading(model: str, load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a loader of transformers, which raises OSError, ValueError, RuntimeError and safetensors' own errors."""
    try:
        return load(*args, **kwargs)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"model '{model}' could not be loaded: {reason}") from error


def _local_config(folder: Path) -> dict[str, Any]:
    config_file = folder / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / "adapter_config.json").exists():
            raise CheckpointError(f"{folder} is an adapter, not a model: use --adapter {folder}") from None
        raise CheckpointError(f"{folder} has no config.json: it is not a model in transformers' format") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_file} cannot be read: it is not a JSON object")
    return config


def _with_adapter(network: EsmFold, folder: Path) -> tuple[Any, str]:
    from protfold_peft.adapters import load_fitting_adapter

    try:
        adapted = load_fitting_adapter(network, folder)
    except ProtfoldError:
        raise
    except Exception as error:  # PEFT's own methods raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"adapter {folder} does not fit this model: {reason}") from error
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update((folder / name).read_bytes())
    return adapted, digest.hexdigest()

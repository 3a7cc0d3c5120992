"""What `benchmarks/adapters.py` measures: random models, and every method on the same sites of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Width, layers and heads of the published ESM-2 models, and of a Llama as large as the smallest here.
ESM = {"35M": (480, 12, 20), "650M": (1280, 33, 20), "3B": (2560, 36, 40)}
LLAMA = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12}
LLAMA_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}

TARGETS = {
    "esm": ["query", "key", "value", "attention.output.dense"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
# Name in the tables: name of the config (of PEFT: LoraConfig), options. "base" is the model without an adapter.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("", {}),
    "lora": ("LoraConfig", {}),
    "site_lora": ("SiteLoRAConfig", {}),
    "lorta": ("LoRTAConfig", {}),
    "lotr": ("LoTRConfig", {}),
    "tensor_train": ("TensorTrainConfig", {}),
    "tensor_train_heads": ("TensorTrainConfig", {"heads": True}),
    "tenslora": ("TensLoRAConfig", {}),
    "tenslora_as_lora": ("TensLoRAConfig", {"match": True}),
    "tera": ("TeRAConfig", {}),
}


def make_model(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """`esm` or `esm-650M`, `llama`: random weights, the same every time."""
    from transformers import EsmConfig, EsmForMaskedLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    family, _, size = name.partition("-")
    if family == "llama":
        config = LlamaConfig(vocab_size=1024, pad_token_id=0, **LLAMA, **LLAMA_HEADS)
        model = LlamaForCausalLM(config)
    else:
        width, layers, heads = ESM[size or "35M"]
        config = EsmConfig(
            vocab_size=33,
            mask_token_id=32,
            pad_token_id=1,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            position_embedding_type="rotary",
            layer_norm_eps=1e-5,
        )
        model = EsmForMaskedLM(config)
    torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False)


def make_config(method: str, model: str, rank: int, **options: Any) -> Any:
    """The PEFT config of a method; `options` go to all alike."""
    import peft

    import protfold_peft.adapters as ours

    name, own = METHODS[method]
    own = dict(own) | {"target_modules": TARGETS[model.partition("-")[0]]} | options
    if own.pop("match", False):
        own["match_lora_rank"] = rank
    else:
        own["r"] = rank
    if name == "LoraConfig":
        own["lora_alpha"] = rank
        if "init_weights" in own:
            own["init_lora_weights"] = own.pop("init_weights")
    return getattr(peft if name == "LoraConfig" else ours, name)(**own)


def adapt(base: nn.Module, method: str, model: str, rank: int) -> nn.Module:
    """The base with an adapter on it."""
    from peft import get_peft_model

    torch.manual_seed(1)
    return base if method == "base" else get_peft_model(base, make_config(method, model, rank))


def shared_copy(name: str, first: nn.Module, device: torch.device) -> nn.Module:
    """Another model of the same weights, in the same memory."""
    with torch.device("meta"):
        model = make_model(name)
    # Buffers that no state dict holds (rotary frequencies) are made anew by a real model.
    if any(buffer.is_meta for buffer in model.buffers()):
        model = make_model(name).to(device)
    model.load_state_dict(first.state_dict(), assign=True)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model.requires_grad_(False)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that an optimizer gets."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def n_trainable(model: nn.Module) -> int:
    """Numbers in them."""
    return sum(parameter.numel() for parameter in trainable(model))


def core_size(model: nn.Module) -> int | None:
    """Numbers in the cores of a TeRA adapter: what its cost depends on."""
    cores = [buffer for name, buffer in model.named_buffers() if name.endswith(".G")]
    return sum(core.numel() for core in cores) if cores else None


def batch(name: str, size: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """Random token ids with themselves as labels."""
    low, high = (4, 24) if name.startswith("esm") else (3, 1024)
    ids = torch.randint(low, high, (size, tokens), generator=torch.Generator().manual_seed(5)).to(device)
    return {"input_ids": ids, "labels": ids}


def memory(field: str) -> int:
    """Bytes of resident memory of this process: now (`VmRSS`) or at most since the last reset (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads memory from /proc: run it on Linux")


def reset_peak() -> None:
    """Start `VmHWM` anew."""
    Path("/proc/self/clear_refs").write_text("5")


def safetensors_bytes(shapes: dict[str, tuple[int, ...]], width: int = 4) -> int:
    """Size of a safetensors file of these fp32 tensors, without making them."""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in sorted(shapes.items()):
        size = width * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + size]}  # type: ignore[assignment, dict-item]
        place += size
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + text + -text % 8 + place

"""The README.md of an adapter's folder: what it is, what it fits, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from protfold_peft.adapters.config import TensorAdapterConfig
from protfold_peft.version import __version__

# What the methods are called, by network.
METHOD_NAMES = {
    "cp": "LoRTA",
    "tucker2": "LoTR",
    "tucker": "TensLoRA",
    "random_tucker": "TeRA",
    "tensor_train": "Tensor-Train",
    "lora": "LoRA",
}


def method_name(network: str) -> str:
    """`LoRTA` for `cp`, and so on; a network that was registered since is called by its key."""
    return METHOD_NAMES.get(network, network)


def card(
    title: str, text: Sequence[str], *, base: str | None, tags: Sequence[str], facts: Mapping[str, object], code: str
) -> str:
    """A model card.

    Args:
        title: Its heading.
        text: Paragraphs.
        base: Hub id or path of the base model.
        tags: For the hub.
        facts: A table of names and values.
        code: How to load it.
    """
    header = ["library_name: peft", *([f"base_model: {json.dumps(base)}"] if base else []), "tags:"]
    header += [f"- {tag}" for tag in tags]
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    paragraphs = ["\n".join(["---", *header, "---"]), f"# {title}", *text, "\n".join(table)]
    paragraphs += [f"```python\n{code.strip()}\n```", f"Written by protfold-peft {__version__}."]
    return "\n\n".join(paragraphs) + "\n"


def adapter_card(config: TensorAdapterConfig, text: Sequence[str], parameters: int) -> str:
    """The card of a tensor adapter."""
    method, base = method_name(config.network), config.base_model_name_or_path
    code = (
        "import protfold_peft  # registers the method\n"
        "from peft import PeftModel\n\n"
        f'model = PeftModel.from_pretrained(base, "path/of/this/folder")  # base: {base or "the model it was made for"}'
    )
    facts: dict[str, object] = {"method": method, "rank": config.r, "scale": f"{config.scaling:g}"}
    facts |= {"parameters": f"{parameters:,}", "adapted modules": len(config.site_paths)}
    return card(f"{method} adapter", text, base=base, tags=["protfold-peft", method.lower()], facts=facts, code=code)

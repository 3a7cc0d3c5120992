"""The README.md of an adapter's folder: what it is, what it fits, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import peft

from protfold_peft.files import write_text
from protfold_peft.version import __version__

if TYPE_CHECKING:
    from protfold_peft.adapters.config import TensorAdapterConfig

CARD = "README.md"
# Only in a card that nobody has filled in.
_BLANK = "[More Information Needed]"

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
    header = ["---", "library_name: peft", *([f"base_model: {json.dumps(base)}"] if base else []), "tags:"]
    return "\n".join([*header, *(f"- {tag}" for tag in tags), "---", "", _body(title, text, facts, code)])


def _body(title: str, text: Sequence[str], facts: Mapping[str, object], code: str) -> str:
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    paragraphs = [f"# {title}", *text, "\n".join(table), f"```python\n{code.strip()}\n```"]
    paragraphs.append(f"Written by protfold-peft {__version__}.")
    # PEFT adds this where it is missing.
    paragraphs.append(f"### Framework versions\n\n- PEFT {peft.__version__}")
    return "\n\n".join(paragraphs) + "\n"


def adapter_card(config: TensorAdapterConfig, text: Sequence[str], parameters: int) -> str:
    """The card of a tensor adapter."""
    tags = ["protfold-peft", method_name(config.network).lower()]
    return card(
        _title(config),
        text,
        base=config.base_model_name_or_path,
        tags=tags,
        facts=_facts(config, parameters),
        code=_code(config),
    )


def fill_card(folder: Path, config: TensorAdapterConfig) -> None:
    """Give the card that PEFT has just put into `folder` a text, unless it has one. Its header stays."""
    path = folder / CARD
    if not path.is_file() or _BLANK not in (text := path.read_text(encoding="utf-8")):
        return
    header = re.match(r"---\n.*?\n---\n", text, flags=re.DOTALL)
    parameters = sum(parameter.numel() for parameter in config.build().parameters())
    advice = (
        "`protfold adapter info` lists its groups and factors; `protfold adapter to-lora` writes it as a plain LoRA "
        "adapter, which needs no protfold-peft."
    )
    body = _body(_title(config), [advice], _facts(config, parameters), _code(config))
    write_text(path, (header[0] + "\n" if header else "") + body)


def _title(config: TensorAdapterConfig) -> str:
    return f"{method_name(config.network)} adapter"


def _facts(config: TensorAdapterConfig, parameters: int) -> dict[str, object]:
    base = (config.layout or {}).get("base") or {}
    return {
        "method": method_name(config.network),
        "base model": config.base_model_name_or_path or f"of type {base.get('type')}",
        "rank": config.r,
        "scale": f"{config.scaling:g}",
        "parameters": f"{parameters:,}",
        "adapted linear maps": len(config.sites),
    }


def _code(config: TensorAdapterConfig) -> str:
    return (
        "import protfold_peft  # registers the method\n"
        "from peft import PeftModel\n\n"
        f"# base: {config.base_model_name_or_path or 'the model it was made for'}\n"
        'model = PeftModel.from_pretrained(base, "path/of/this/folder")'
    )

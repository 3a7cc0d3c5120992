"""Where each known model keeps the linear maps that an adapter may change: one table entry per architecture.

A tensor adapter indexes its factors by layer, matrix kind and head, so it must know which module is which; a model
that is not in this table is refused rather than guessed at. To add one, add an entry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

HeadAxis = Literal["output", "input"]


@dataclass(frozen=True)
class Projection:
    """One linear map of every layer.

    `head_axis` is the axis of the weight `(d_out, d_in)` that attention heads divide: the output axis of query, key
    and value, the input axis of the attention output, and none for a feed-forward map. Heads are head-major there:
    `index = head * head_width + j`.
    """

    path: str
    kind: str
    head_axis: HeadAxis | None = None
    key_value: bool = False


@dataclass(frozen=True)
class Architecture:
    """A family of models whose modules have the same names.

    `layer` matches the full path of a module inside a layer; its groups are the layer's index and the path inside
    the layer. It is anchored at the model's root, so modules elsewhere (the folding trunk) never match.
    """

    name: str
    model_types: tuple[str, ...]
    layer: re.Pattern[str]
    projections: tuple[Projection, ...]
    default_targets: tuple[str, ...]

    def head_split(self, projection: Projection, config: Any) -> tuple[int, int] | None:
        """Number and width of the heads that divide this projection, from the model's config."""
        if projection.head_axis is None:
            return None
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        if projection.key_value:
            heads = getattr(config, "num_key_value_heads", None) or heads
        return heads, width


ARCHITECTURES: list[Architecture] = [
    Architecture(
        name="ESM-2",
        model_types=("esm",),
        layer=re.compile(r"(?:esm\.)?encoder\.layer\.(\d+)\.(.+)"),
        projections=(
            Projection("attention.self.query", "query", "output"),
            Projection("attention.self.key", "key", "output", key_value=True),
            Projection("attention.self.value", "value", "output", key_value=True),
            Projection("attention.output.dense", "attention_output", "input"),
            Projection("intermediate.dense", "intermediate"),
            Projection("output.dense", "output"),
        ),
        default_targets=("query", "key", "value", "attention.output.dense"),
    ),
    Architecture(
        name="Llama",
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        layer=re.compile(r"(?:model\.)?layers\.(\d+)\.(.+)"),
        projections=(
            Projection("self_attn.q_proj", "query", "output"),
            Projection("self_attn.k_proj", "key", "output", key_value=True),
            Projection("self_attn.v_proj", "value", "output", key_value=True),
            Projection("self_attn.o_proj", "attention_output", "input"),
            Projection("mlp.gate_proj", "gate"),
            Projection("mlp.up_proj", "up"),
            Projection("mlp.down_proj", "down"),
        ),
        default_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
]


def architecture_of(model: Any) -> Architecture | None:
    """The table entry for this model, or None."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return next((entry for entry in ARCHITECTURES if model_type in entry.model_types), None)

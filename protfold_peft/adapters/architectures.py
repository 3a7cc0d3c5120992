"""Where each known model keeps the linear maps that an adapter may change: one table entry per architecture.

A tensor adapter indexes its factors by layer, matrix kind and head, so it must know which module is which. A model
that is not in this table is read by shape (see `discovery`), without heads. To add one, add an entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

HeadAxis = Literal["output", "input"]


@dataclass(frozen=True)
class Projection:
    """One linear map of every layer.

    Attributes:
        path: Of the module, inside its layer.
        kind: The role of the map.
        head_axis: The axis of the weight `(d_out, d_in)` that attention heads divide: the output axis of query, key
            and value, the input axis of the attention output, and none for a feed-forward map. Heads are head-major
            there: `index = head * head_width + j`.
        key_value: There may be fewer heads, as in grouped-query attention.
        part: Which of `parts` equal slices of a fused module's output this is.
        parts: Into how many maps the module's output divides; 1: it is one map.
        part_per_head: The slices alternate within every head, `(head, part, j)`, instead of following each other.
        batch_first: The leading axis of the module's input is the batch. Where it is not, samples of a batch cannot
            be given adapters of their own.
    """

    path: str
    kind: str
    head_axis: HeadAxis | None = None
    key_value: bool = False
    part: int = 0
    parts: int = 1
    part_per_head: bool = False
    batch_first: bool = True


@dataclass(frozen=True)
class Heads:
    """Number and width of the attention heads of one projection."""

    count: int
    width: int


def language_model_heads(projection: Projection, config: Any) -> Heads:
    """From the names that transformers' configs have; `head_dim` counts where there is one."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if projection.key_value:
        heads = getattr(config, "num_key_value_heads", None) or heads
    return Heads(heads, width)


def folding_trunk_heads(projection: Projection, config: Any) -> Heads:
    """From ESMFold's config: heads of the sequence state, or of the pair state in triangle attention."""
    trunk = config.esmfold_config.trunk
    if projection.path.startswith("seq_attention"):
        return Heads(trunk.sequence_state_dim // trunk.sequence_head_width, trunk.sequence_head_width)
    return Heads(trunk.pairwise_state_dim // trunk.pairwise_head_width, trunk.pairwise_head_width)


@dataclass(frozen=True)
class Stack:
    """Layers of one kind, all with the same modules.

    Attributes:
        layer: Matches the full path of a module inside a layer; its groups are the layer's index and the path inside
            the layer. It is anchored at the model's root.
        projections: The maps of a layer, in the order of their columns.
        name: Prefix of the groups; empty for the only or main stack.
        heads: Gives the heads of a projection that they divide.
    """

    layer: re.Pattern[str]
    projections: tuple[Projection, ...]
    name: str = ""
    heads: Callable[[Projection, Any], Heads] = language_model_heads


@dataclass(frozen=True)
class Architecture:
    """A family of models whose modules have the same names. Its first stack holds the default targets."""

    name: str
    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]
    default_targets: tuple[str, ...]


def _triangle_attention(node: str) -> tuple[Projection, ...]:
    # Stock ESMFold works through the pair state in chunks here, so the leading axis is not always the batch.
    def linear(letter: str, kind: str, axis: HeadAxis) -> Projection:
        return Projection(f"tri_att_{node}.mha.linear_{letter}", f"{node}_{kind}", axis, batch_first=False)

    return (
        linear("q", "query", "output"),
        linear("k", "key", "output"),
        linear("v", "value", "output"),
        linear("o", "attention_output", "input"),
        linear("g", "gate", "output"),
    )


def _triangle_multiplication(direction: str) -> tuple[Projection, ...]:
    names = ("linear_a_p", "linear_a_g", "linear_b_p", "linear_b_g", "linear_g", "linear_z")
    return tuple(
        Projection(f"tri_mul_{direction}.{name}", f"{direction}_{name.removeprefix('linear_')}", batch_first=False)
        for name in names
    )


_BERT_PROJECTIONS = (
    Projection("attention.self.query", "query", "output"),
    Projection("attention.self.key", "key", "output", key_value=True),
    Projection("attention.self.value", "value", "output", key_value=True),
    Projection("attention.output.dense", "attention_output", "input"),
    Projection("intermediate.dense", "intermediate"),
    Projection("output.dense", "output"),
)
_BERT_TARGETS = ("query", "key", "value", "attention.output.dense")

_FOLDING_TRUNK = Stack(
    name="trunk",
    layer=re.compile(r"trunk\.blocks\.(\d+)\.(.+)"),
    projections=(
        Projection("seq_attention.proj", "query", "output", part=0, parts=3, part_per_head=True),
        Projection("seq_attention.proj", "key", "output", part=1, parts=3, part_per_head=True),
        Projection("seq_attention.proj", "value", "output", part=2, parts=3, part_per_head=True),
        Projection("seq_attention.o_proj", "attention_output", "input"),
        Projection("seq_attention.g_proj", "gate", "output"),
        Projection("mlp_seq.mlp.1", "sequence_up"),
        Projection("mlp_seq.mlp.3", "sequence_down"),
        *_triangle_attention("start"),
        *_triangle_attention("end"),
        *_triangle_multiplication("out"),
        *_triangle_multiplication("in"),
        Projection("mlp_pair.mlp.1", "pair_up", batch_first=False),
        Projection("mlp_pair.mlp.3", "pair_down", batch_first=False),
    ),
    heads=folding_trunk_heads,
)

ARCHITECTURES: list[Architecture] = [
    Architecture(
        name="ESM-2",
        model_types=("esm",),
        stacks=(Stack(re.compile(r"(?:esm\.)?encoder\.layer\.(\d+)\.(.+)"), _BERT_PROJECTIONS), _FOLDING_TRUNK),
        default_targets=_BERT_TARGETS,
    ),
    Architecture(
        name="BERT",
        model_types=("bert", "roberta", "xlm-roberta", "camembert", "electra", "data2vec-text", "roberta-prelayernorm"),
        stacks=(Stack(re.compile(r"(?:\w+\.)?encoder\.layer\.(\d+)\.(.+)"), _BERT_PROJECTIONS),),
        default_targets=_BERT_TARGETS,
    ),
    Architecture(
        name="Llama",
        model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo", "olmo2", "granite", "esmc"),
        stacks=(
            Stack(
                re.compile(r"(?:model\.|esmc\.)?layers\.(\d+)\.(.+)"),
                (
                    Projection("self_attn.q_proj", "query", "output"),
                    Projection("self_attn.k_proj", "key", "output", key_value=True),
                    Projection("self_attn.v_proj", "value", "output", key_value=True),
                    Projection("self_attn.o_proj", "attention_output", "input"),
                    Projection("mlp.gate_proj", "gate"),
                    Projection("mlp.up_proj", "up"),
                    Projection("mlp.down_proj", "down"),
                ),
            ),
        ),
        default_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
    Architecture(
        name="GPT-2",
        model_types=("gpt2",),
        stacks=(
            Stack(
                re.compile(r"(?:transformer\.)?h\.(\d+)\.(.+)"),
                (
                    Projection("attn.c_attn", "query", "output", part=0, parts=3),
                    Projection("attn.c_attn", "key", "output", part=1, parts=3),
                    Projection("attn.c_attn", "value", "output", part=2, parts=3),
                    Projection("attn.c_proj", "attention_output", "input"),
                    Projection("mlp.c_fc", "up"),
                    Projection("mlp.c_proj", "down"),
                ),
            ),
        ),
        default_targets=("attn.c_attn", "attn.c_proj"),
    ),
    Architecture(
        name="OPT",
        model_types=("opt",),
        stacks=(
            Stack(
                re.compile(r"(?:model\.)?(?:decoder\.)?layers\.(\d+)\.(.+)"),
                (
                    Projection("self_attn.q_proj", "query", "output"),
                    Projection("self_attn.k_proj", "key", "output"),
                    Projection("self_attn.v_proj", "value", "output"),
                    Projection("self_attn.out_proj", "attention_output", "input"),
                    # The layer flattens batch and tokens before these two.
                    Projection("fc1", "up", batch_first=False),
                    Projection("fc2", "down", batch_first=False),
                ),
            ),
        ),
        default_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
    ),
]


def architecture_of(model: Any) -> Architecture | None:
    """The table entry for this model, or None."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return next((entry for entry in ARCHITECTURES if model_type in entry.model_types), None)

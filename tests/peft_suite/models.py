"""Tiny random models in place of those that PEFT's tests fetch from the hub, one folder each.

PEFT's tests look into a model's name: they skip much with `gpt2`, `llama` and `gemma3`, where methods of theirs lack
something. Ours do not, hence the spelling.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

# A model's output must depend on its weights by more than the tolerances of the tests.
_SPREAD = 0.3
_ENCODER = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": _SPREAD,
}
_LLAMA = _ENCODER | {"num_key_value_heads": 2}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 1.0}
# PEFT's inputs are made of the tokens 1 and 2. ESM-2 pads with 1, and shows nothing of a protein that is all padding.
_ESM = _ENCODER | {"vocab_size": 33, "pad_token_id": 0, "mask_token_id": 32, "position_embedding_type": "rotary"}

_MODELS: dict[str, Callable[[], Any]] = {
    "tiny-OPT": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=40,
            hidden_size=32,
            word_embed_proj_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=48,
            init_std=_SPREAD,
            # PEFT's tests take the end of a sequence for its padding.
            pad_token_id=2,
            eos_token_id=2,
        )
    ),
    "tiny-GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=40, n_embd=32, n_layer=2, n_head=4, initializer_range=_SPREAD, bos_token_id=0, eos_token_id=0
        )
    ),
    "tiny-grouped-query": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA)),
    # Heads wider than the model divided by their number.
    "tiny-Qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_LLAMA, head_dim=12)),
    "tiny-GPT-J": lambda: transformers.GPTJForCausalLM(
        transformers.GPTJConfig(
            vocab_size=40,
            n_embd=32,
            n_layer=2,
            n_head=4,
            rotary_dim=4,
            initializer_range=_SPREAD,
            bos_token_id=0,
            eos_token_id=0,
        )
    ),
    "tiny-T5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=40, decoder_start_token_id=0, **_T5)
    ),
    "tiny-BERT": lambda: transformers.BertModel(transformers.BertConfig(**_ENCODER)),
    "tiny-RoBERTa": lambda: transformers.RobertaModel(transformers.RobertaConfig(**_ENCODER)),
    "tiny-ESM-2": lambda: transformers.EsmModel(transformers.EsmConfig(**_ESM)),
    "tiny-BERT-classifier": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**_ENCODER)),
    "tiny-RoBERTa-classifier": lambda: transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**_ENCODER)
    ),
    "tiny-ESM-2-classifier": lambda: transformers.EsmForSequenceClassification(transformers.EsmConfig(**_ESM)),
    "tiny-grouped-query-classifier": lambda: transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**_LLAMA, num_labels=1)
    ),
}

# The models of the default run have every kind of layer; those marked slow say the same of other names.
DECODERS = ["tiny-OPT", "tiny-GPT-2", "tiny-grouped-query", "tiny-Qwen3", "tiny-GPT-J"]
ENCODER_DECODERS = ["tiny-T5"]
ENCODERS = ["tiny-ESM-2", "tiny-RoBERTa", "tiny-BERT"]
CLASSIFIERS = [f"{name}-classifier" for name in (*ENCODERS, "tiny-grouped-query")]
_SLOW = {"tiny-GPT-J", "tiny-BERT", "tiny-BERT-classifier"}


def model_rows(names: list[str]) -> list[Any]:
    """Rows of PEFT's test matrices, those of the long run marked."""
    return [pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ()) for name in names]


def write_models(folder: Path) -> None:
    """Save every model under its name in `folder`."""
    for name, make in _MODELS.items():
        torch.manual_seed(0)
        make().eval().save_pretrained(folder / name)

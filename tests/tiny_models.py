"""Models so small that a test can afford them, with weights through which everything flows."""

from __future__ import annotations

import copy
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    EsmConfig,
    EsmForMaskedLM,
    EsmTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)
from transformers.models.esm.configuration_esm import get_default_vocab_list

LETTERS = string.ascii_letters + string.digits + " .,:;!?'()|-"

# What the language model of a folding model's configuration is made of.
ESM_SETTINGS = ("vocab_size", "mask_token_id", "pad_token_id", "hidden_size", "num_hidden_layers")
ESM_SETTINGS += ("num_attention_heads", "intermediate_size", "hidden_dropout_prob", "attention_probs_dropout_prob")
ESM_SETTINGS += ("max_position_embeddings", "position_embedding_type", "layer_norm_eps", "token_dropout")


def tiny_config(**changes: Any) -> EsmConfig:
    """An ESMFold of some ten thousand parameters; `changes` go to the trunk."""
    trunk = {
        "num_blocks": 2,
        "sequence_state_dim": 32,
        "pairwise_state_dim": 16,
        "sequence_head_width": 8,
        "pairwise_head_width": 8,
        "max_recycles": 3,
        "chunk_size": None,
        "structure_module": {
            "sequence_dim": 24,
            "pairwise_dim": 12,
            "resnet_dim": 16,
            "num_heads_ipa": 4,
            "num_blocks": 3,
            "dropout_rate": 0.0,
        },
    } | changes
    return EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        layer_norm_eps=1e-5,
        token_dropout=True,
        is_folding_model=True,
        vocab_list=list(get_default_vocab_list()),
        esmfold_config={"fp16_esm": False, "lddt_head_hid_dim": 16, "trunk": trunk},
    )


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw every weight anew: stock initialisation zeroes the ends of all branches, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else parameter + 0.1 * noise)


def save_tiny_esm(folder: Path, **changes: Any) -> Path:
    """A random ESM-2 with a masked-LM head, of the size of the tiny folding model, and its tokenizer."""
    torch.manual_seed(0)
    config = tiny_config()
    settings = {name: getattr(config, name) for name in ESM_SETTINGS} | {"initializer_range": 0.2} | changes
    EsmForMaskedLM(EsmConfig(**settings)).save_pretrained(folder)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(get_default_vocab_list()) + "\n")
    EsmTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every letter."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*special, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_tiny_llama(folder: Path) -> Path:
    """A random Llama with grouped-query attention, for the letters' tokenizer, which is not saved with it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 4,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        # Larger than usual, so that attention of a model that was never trained depends on its input.
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_tiny_roberta(folder: Path, letters: PreTrainedTokenizerFast) -> Path:
    """A random RoBERTa with a masked-LM head, and its tokenizer of letters."""
    tokenizer = copy.deepcopy(letters)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=0,
        max_position_embeddings=65,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    RobertaForMaskedLM(config).save_pretrained(folder)
    return folder

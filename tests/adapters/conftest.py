"""Tiny random models, made the same way every time, and adapters whose update is not zero."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    EsmcConfig,
    EsmcForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    EsmForProteinFolding,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from protfold_peft.adapters import LoRTAConfig

ESM = {
    "vocab_size": 33,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "position_embedding_type": "rotary",
    "pad_token_id": 1,
    "mask_token_id": 32,
    "token_dropout": False,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
STRUCTURE = {
    "sequence_dim": 32,
    "pairwise_dim": 16,
    "ipa_dim": 4,
    "resnet_dim": 16,
    "num_heads_ipa": 2,
    "num_qk_points": 2,
    "num_v_points": 2,
    "num_blocks": 2,
    "num_transition_layers": 1,
    "num_resnet_blocks": 1,
}
TRUNK = {
    "num_blocks": 1,
    "sequence_state_dim": 32,
    "pairwise_state_dim": 16,
    "sequence_head_width": 8,
    "pairwise_head_width": 8,
    "max_recycles": 1,
    "structure_module": STRUCTURE,
}
# Grouped-query attention, and heads whose width is not hidden_size / heads.
LLAMA = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "pad_token_id": 0,
}


def make_esm(**changes: object) -> EsmForMaskedLM:
    torch.manual_seed(0)
    return EsmForMaskedLM(EsmConfig(**(ESM | changes))).eval()


def make_fold() -> EsmForProteinFolding:
    torch.manual_seed(0)
    esmfold = {"trunk": TRUNK, "fp16_esm": False}
    return EsmForProteinFolding(EsmConfig(**ESM, is_folding_model=True, esmfold_config=esmfold)).eval()


def make_llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(LLAMA | changes))).eval()


def make_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=3, n_head=4, n_inner=48, n_positions=32)).eval()


def make_roberta() -> RobertaForMaskedLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    return RobertaForMaskedLM(RobertaConfig(vocab_size=40, max_position_embeddings=32, **sizes)).eval()


def make_opt() -> OPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48}
    return OPTForCausalLM(OPTConfig(vocab_size=40, word_embed_proj_dim=32, max_position_embeddings=32, **sizes)).eval()


def make_esmc() -> EsmcForMaskedLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    return EsmcForMaskedLM(EsmcConfig(vocab_size=64, **sizes)).eval()


# Models of tokens with logits, by the name of their family.
MAKERS: dict[str, Callable[..., nn.Module]] = {
    "esm": make_esm,
    "llama": make_llama,
    "gpt2": make_gpt2,
    "roberta": make_roberta,
    "opt": make_opt,
    "esmc": make_esmc,
}


@pytest.fixture
def make_model() -> Callable[[str], nn.Module]:
    return lambda family: MAKERS[family]()


@pytest.fixture
def esm() -> Callable[..., EsmForMaskedLM]:
    return make_esm


@pytest.fixture
def fold() -> Callable[[], EsmForProteinFolding]:
    return make_fold


@pytest.fixture
def llama() -> Callable[..., LlamaForCausalLM]:
    return make_llama


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(4, 24, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def adapted() -> Callable[..., PeftModel]:
    """Wrap a model with an adapter that changes its output, as if trained."""

    def make(model: nn.Module, seed: int = 2, **options: object) -> PeftModel:
        torch.manual_seed(seed)
        return get_peft_model(model, LoRTAConfig(**({"r": 3, "init_weights": False} | options)))

    return make


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    yield
    torch.set_num_threads(before)

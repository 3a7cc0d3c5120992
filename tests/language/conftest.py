"""The language data, tiny random models, and a tokenizer of single letters for them."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = string.ascii_letters + string.digits + " .,:;!?'()|-"


@pytest.fixture(scope="session")
def language_data(test_data: Path) -> Path:
    """The language model and texts of the test data; the test is skipped where they are not there."""
    folder = test_data / "language"
    if not (folder / "stories260K" / "model.safetensors").is_file():
        pytest.skip(f"{folder} does not hold the language model stories260K")
    return folder


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerFast:
    """A token for every letter."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*special, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random Llama with grouped-query attention, for the letters' tokenizer."""
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
    folder = tmp_path_factory.mktemp("tiny_llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, for comparisons to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

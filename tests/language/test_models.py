"""Models come from safetensors and run no code of their own; a configuration alone gives a model to pre-train."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from protfold_peft.errors import CheckpointError
from protfold_peft.language.config import ModelConfig
from protfold_peft.language.models import load_model, load_tokenizer, longest_input

CPU = torch.device("cpu")


def settings(folder):
    return ModelConfig(name=str(folder), device="cpu")


def copied(llama, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(llama, folder)
    return folder


def test_pickled_weights_are_refused_unopened(llama, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = copied(llama, tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load_model(settings(folder), AutoModelForCausalLM, CPU)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_model_is_not_run(llama, tmp_path):
    folder = copied(llama, tmp_path)
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "trap", "auto_map": {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load_model(settings(folder), AutoModelForCausalLM, CPU)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_alone_gives_random_weights(roberta, tmp_path):
    folder = copied(roberta, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(1)
    one = load_model(settings(folder), AutoModelForMaskedLM, CPU).state_dict()
    torch.manual_seed(1)
    other = load_model(settings(folder), AutoModelForMaskedLM, CPU).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    stored = AutoModelForMaskedLM.from_pretrained(roberta).state_dict()
    assert not all(torch.equal(one[name], stored[name]) for name in one)


def test_the_longest_input_is_what_the_model_can_take(roberta, llama, esm):
    """One token more than that fails, or is not limited by positions."""
    tokenizer = load_tokenizer(settings(roberta))
    model = AutoModelForMaskedLM.from_pretrained(roberta).eval()
    limit = longest_input(model, tokenizer)
    assert limit == 64
    model(input_ids=torch.full((1, limit), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 7))
    assert longest_input(AutoModelForCausalLM.from_pretrained(llama), load_tokenizer(settings(llama))) == 64
    assert longest_input(AutoModelForMaskedLM.from_pretrained(esm), load_tokenizer(settings(esm))) is None


def test_a_tokenizer_without_padding_pads_with_its_end(llama, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    GPT2LMHeadModel(GPT2Config(vocab_size=80, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "model")
    found = load_tokenizer(settings(tmp_path / "model"))
    assert found.pad_token == found.eos_token == "</s>"

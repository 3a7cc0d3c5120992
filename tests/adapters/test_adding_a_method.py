"""The method in docs/adding_a_method.md works as the page says: it is read from there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from protfold_peft.adapters import TensorAdapterConfig, check_gradients
from protfold_peft.adapters.networks import NETWORKS

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_method.md"


@pytest.fixture(scope="module")
def toy():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    module = types.ModuleType("toy_method")
    sys.modules["toy_method"] = module
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    yield module
    del NETWORKS["toy"], TensorAdapterConfig.faces["toy"], sys.modules["toy_method"]


@pytest.mark.parametrize("family", ["esm", "llama", "gpt2"])
def test_the_toy_method_is_a_peft_method(toy, make_model, tokens, tmp_path, family):
    base = make_model(family)
    plain = base(input_ids=tokens).logits
    torch.manual_seed(2)
    model = get_peft_model(base, toy.ToyConfig(r=4, scale=0.5, target_modules="all-linear"))
    torch.testing.assert_close(model(input_ids=tokens).logits, plain, rtol=0, atol=0)
    with check_gradients(model):
        model(input_ids=tokens, labels=tokens).loss.backward()
    networks = model.base_model.networks("default").values()
    assert model.get_nb_trainable_parameters()[0] == sum(
        4 * (len(network.P) + network.Q.shape[1]) + len(network.sites) for network in networks
    )
    reference = make_model(family)
    with torch.no_grad():
        for network in networks:
            network.c.uniform_(-1, 1)
            if family != "gpt2":
                for index, site in enumerate(network.sites):
                    weight = reference.get_submodule(site.path).weight
                    weight += 0.5 * network.c[index] * (network.P @ network.Q)
    expected = model(input_ids=tokens).logits
    if family != "gpt2":
        torch.testing.assert_close(reference(input_ids=tokens).logits, expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(family), tmp_path)
    assert type(loaded.peft_config["default"]) is toy.ToyConfig
    assert torch.equal(loaded(input_ids=tokens).logits, expected)
    torch.testing.assert_close(model.merge_and_unload()(input_ids=tokens).logits, expected, rtol=0, atol=1e-5)

"""Sums of adapters against sums of their dense updates."""

from __future__ import annotations

import pytest
import torch
from adapter_methods import FORMS, make_config
from peft import get_peft_model

from protfold_peft.adapters import load_adapter
from protfold_peft.errors import ConfigError

SUMMED = [form for form in FORMS if not form.startswith("tera")]


def two_adapters(model, form, other=None, **options):
    torch.manual_seed(2)
    model = get_peft_model(model, make_config(form, target_modules="all-linear"))
    model.add_adapter("other", make_config(other or form, target_modules="all-linear", **options))
    return model.eval()


def updates(model, name):
    networks = model.base_model.networks(name).values()
    return {site.key: network.delta(site) for network in networks for site in network.sites}


@pytest.mark.parametrize("family", ["esm", "llama", "gpt2"])
@pytest.mark.parametrize("form", SUMMED)
@torch.no_grad()
def test_the_sum_is_exact(make_model, tokens, form, family):
    own = {} if "ranks" in form else {"r": 2}
    model = two_adapters(make_model(family).double(), form, **own)
    model.base_model.add_weighted_adapter(["default", "other"], [0.7, -1.5], "sum")
    first, second, total = (updates(model, name) for name in ("default", "other", "sum"))
    for key, delta in total.items():
        torch.testing.assert_close(delta, 0.7 * first[key] - 1.5 * second[key], rtol=0, atol=1e-12)
    assert model.active_adapters == ["default"]
    model.set_adapter("sum")
    logits = model(input_ids=tokens).logits
    model.base_model.set_adapter_weights({"default": 0.7, "other": -1.5})
    torch.testing.assert_close(model(input_ids=tokens).logits, logits, rtol=0, atol=1e-10)


def test_averaging_factors_would_be_something_else(esm):
    """Why the sum is defined on the updates."""
    model = two_adapters(esm().double(), "lorta")
    first, second = (model.base_model.networks(name)["attention"] for name in ("default", "other"))
    site = first.sites[0]
    wanted = (first.delta(site) + second.delta(site)) / 2
    with torch.no_grad():
        for factor, value in zip(first.parameters(), second.parameters(), strict=True):
            factor.copy_((factor + value) / 2)
    assert (first.delta(site) - wanted).norm() > 0.5 * wanted.norm()


@pytest.mark.parametrize("form", ["lorta", "lotr", "tenslora", "tensor_train_heads"])
def test_a_sum_is_saved_and_loaded_like_any_adapter(esm, tokens, tmp_path, form):
    model = two_adapters(esm(), form)
    model.base_model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum")
    model.set_adapter("sum")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = load_adapter(esm(), tmp_path / "sum").eval()
    assert torch.equal(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_sums_that_do_not_exist_are_refused_and_change_nothing(esm, tokens):
    model = two_adapters(esm(), "lorta", other="lotr")
    torch.manual_seed(3)
    model.add_adapter("narrow", make_config("lorta", target_modules=["query"]))
    model.add_adapter("tera", make_config("tera"))
    model.add_adapter("tera2", make_config("tera", seed=1))
    before = model(input_ids=tokens).logits
    for names, says in [
        (["default", "other"], r"'other' is of network 'tucker2'.*set_adapter_weights"),
        (["default", "narrow"], "'narrow' changes other modules"),
        (["tera", "tera2"], "cannot be combined into one"),
        (["default", "nobody"], "no adapter 'nobody'; there are default, other"),
        (["default"], "1 adapters and 2 weights"),
    ]:
        with pytest.raises(ConfigError, match=says):
            model.base_model.add_weighted_adapter(names, [1.0, 2.0], "sum")
    with pytest.raises(ConfigError, match="there is an adapter 'other' already"):
        model.base_model.add_weighted_adapter(["default"], [1.0], "other")
    with pytest.raises(ConfigError, match="weight of adapter 'default' is nan"):
        model.base_model.add_weighted_adapter(["default"], [float("nan")], "sum")
    assert "sum" not in model.peft_config
    assert torch.equal(model(input_ids=tokens).logits, before)


@torch.no_grad()
def test_weights_hold_for_different_methods_and_for_merging(esm, tokens):
    model = two_adapters(esm().double(), "tera", other="tenslora_qkv")
    model.base_model.set_adapter_weights({"default": 0.3, "other": 2.0})
    reference = esm().double()
    for name, weight in [("default", 0.3), ("other", 2.0)]:
        for key, delta in updates(model, name).items():
            reference.get_submodule(key).weight += weight * delta
    expected = reference(input_ids=tokens).logits
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=0, atol=1e-10)
    model.base_model.set_adapter(["default", "other"])  # counts each once again
    once = model(input_ids=tokens).logits
    assert not torch.allclose(once, expected)
    model.base_model.set_adapter_weights({"default": 0.3, "other": 2.0})
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=tokens).logits, expected, rtol=0, atol=1e-10)
    with pytest.raises(ConfigError, match="no adapter 'x'"):
        two_adapters(esm(), "tera").base_model.set_adapter_weights({"x": 1.0})

"""The dead-adapter check against models whose living and dead sites are known."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from protfold_peft.adapters import DeadAdapterError, GradientCheck, LoRTAConfig, check_gradients
from protfold_peft.errors import ConfigError


def detach_output(module, inputs, output):
    return output.detach()


def step(model, tokens):
    model(input_ids=tokens, labels=tokens).loss.backward()


@pytest.mark.parametrize("init_weights", [True, False])
def test_a_living_model_passes_even_before_the_first_step(esm, tokens, init_weights):
    """With B = 0 the gradients of every other factor are zero, which is no fault."""
    model = get_peft_model(esm(), LoRTAConfig(target_modules="all-linear", init_weights=init_weights))
    with check_gradients(model) as check:
        step(model, tokens)
    assert check.dead_sites() == ()


def test_stock_esmfold_is_dead_in_every_site(fold):
    """Its forward pass detaches the language model's output, and backward succeeds all the same."""
    model = get_peft_model(fold(), LoRTAConfig(target_modules=["query", "value"])).train()
    residues = torch.randint(0, 20, (1, 5), generator=torch.Generator().manual_seed(5))
    with pytest.raises(DeadAdapterError, match=r"6 of 6 .*and 2 more.*detach") as caught, check_gradients(model):
        model(residues, num_recycles=0).positions.sum().backward()
    assert len(caught.value.sites) == 6
    assert all(site.ran for site in caught.value.sites)
    assert caught.value.sites[0].path == "esm.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize("kind", ["query", "value"])
def test_one_cut_off_module_is_found_though_every_factor_has_gradients(esm, adapted, tokens, kind):
    model = adapted(esm())
    cut = getattr(model.get_base_model().esm.encoder.layer[1].attention.self, kind)
    cut.register_forward_hook(detach_output)
    with GradientCheck(model) as check:
        step(model, tokens)
    assert all(factor.grad.any() for factor in model.base_model.tensor_factors.parameters())
    assert [site.path for site in check.dead_sites()] == [f"esm.encoder.layer.1.attention.self.{kind}"]


def test_everything_under_a_cut_is_dead(esm, adapted, tokens):
    model = adapted(esm())
    model.get_base_model().esm.encoder.layer[1].register_forward_hook(detach_output)
    with pytest.raises(DeadAdapterError) as caught, check_gradients(model):
        step(model, tokens)
    assert {site.path.split(".")[3] for site in caught.value.sites} == {"0", "1"}
    assert len(caught.value.sites) == 8


def test_a_module_that_never_runs_is_told_apart(esm, adapted, tokens):
    model = adapted(esm(), target_modules=["intermediate.dense"])
    layer = model.get_base_model().esm.encoder.layer[2]
    layer.feed_forward_chunk = lambda hidden: hidden
    with pytest.raises(DeadAdapterError, match="did not use them") as caught, check_gradients(model):
        step(model, tokens)
    assert [(site.path.split(".")[3], site.ran) for site in caught.value.sites] == [("2", False)]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_it_sees_through_gradient_checkpointing(esm, adapted, tokens, use_reentrant):
    model = adapted(esm()).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.get_base_model().esm.encoder.layer[1].attention.self.key.register_forward_hook(detach_output)
    with GradientCheck(model) as check:
        step(model, tokens)
    assert [site.path for site in check.dead_sites()] == ["esm.encoder.layer.1.attention.self.key"]


def test_it_adds_up_over_passes_and_stops_when_detached(esm, adapted, tokens):
    model = adapted(esm())
    check = GradientCheck(model)
    assert len(check.dead_sites()) == 12
    check.attach()
    check.attach()
    handle = model.get_base_model().esm.encoder.layer[0].register_forward_hook(detach_output)
    step(model, tokens)
    assert len(check.dead_sites()) == 4
    handle.remove()
    check.detach()
    step(model, tokens)
    assert len(check.dead_sites()) == 4
    check.attach()
    step(model, tokens)
    check.raise_if_dead()


def test_it_changes_no_gradient(esm, adapted, tokens):
    watched, plain = adapted(esm()), adapted(esm())
    with check_gradients(watched):
        step(watched, tokens)
    step(plain, tokens)
    for a, b in zip(watched.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_a_model_with_nothing_to_train_is_refused(esm, adapted, tokens, tmp_path):
    with pytest.raises(ConfigError, match="no active tensor adapter"):
        GradientCheck(esm())
    model = adapted(esm())
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is_trainable=True"):
        GradientCheck(PeftModel.from_pretrained(esm(), tmp_path))
    with model.disable_adapter(), pytest.raises(ConfigError):
        GradientCheck(model)

"""A structure loss reaches the language model, and its gradient is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protfold_peft.errors import ConfigError
from protfold_peft.folding.attention import row_attention
from protfold_peft.folding.model import EsmFold


def structure_loss(model: EsmFold, batch: dict[str, Tensor], recycles: int = 0) -> Tensor:
    """Mean squared distance between CA atoms: a plain function of the coordinates."""
    atoms = model(**batch, recycles=recycles).positions[-1, :, :, 1]
    pairs = batch["attention_mask"][:, :, None] * batch["attention_mask"][:, None, :]
    squared = (atoms[:, :, None] - atoms[:, None]).square().sum(-1)
    return (squared * pairs).sum() / pairs.sum() / 1000


@pytest.mark.usefixtures("double_everywhere")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_with_respect_to_language_model_weights_by_finite_differences(make_pair, batch, checkpointing) -> None:
    # One structure-module step: between steps ESMFold stops the gradient of the rotations by design (AlphaFold 2
    # supplement, Algorithm 20, line 10), so over several steps the two differ rightly.
    one_step = {"sequence_dim": 24, "pairwise_dim": 12, "num_heads_ipa": 4, "num_blocks": 1, "dropout_rate": 0.0}
    tiny = make_pair(structure_module=one_step)[1]
    tiny.double().train()
    if checkpointing:
        tiny.activation_checkpointing_enable()
    layer = tiny.esm.encoder.layer[1]
    weights = [layer.attention.self.query.weight, layer.attention.output.dense.weight, layer.output.dense.weight]
    tiny.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    structure_loss(tiny, batch).backward()
    generator = torch.Generator().manual_seed(2)
    step = 1e-6
    for weight in weights:
        direction = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        with torch.no_grad():
            weight += step * direction
            above = structure_loss(tiny, batch)
            weight -= 2 * step * direction
            below = structure_loss(tiny, batch)
            weight += step * direction
        finite = (above - below) / (2 * step)
        analytic = (weight.grad * direction).sum()
        assert abs(finite) > 1e-6
        assert analytic == pytest.approx(finite.item(), rel=1e-5)


def test_checkpointing_gives_the_same_gradients_and_covers_trunk_and_language_model(tiny, batch) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    tiny.train()
    # The contact head is in the checkpoint but folding never runs it, and in stock code's way alanine's row of the
    # amino-acid embedding is the padding row.
    parameters = {name: p for name, p in tiny.named_parameters() if "contact_head" not in name}
    tiny.requires_grad_(True)
    structure_loss(tiny, batch, recycles=1).backward()
    plain = {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}
    assert all(plain[name].abs().max() > 0 for name in plain if name.startswith("esm.") and name.endswith("weight"))
    tiny.zero_grad()
    tiny.activation_checkpointing_enable()
    layers = [module for module in tiny.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert len(layers) == 3 + 2
    assert all(module.gradient_checkpointing for module in layers)
    assert all(m._gradient_checkpointing_func.keywords == {"use_reentrant": False} for m in layers)
    structure_loss(tiny, batch, recycles=1).backward()
    for name, parameter in parameters.items():
        if plain[name] is not None:
            assert torch.allclose(parameter.grad, plain[name], atol=1e-6, rtol=1e-4), name


def test_stock_gets_no_gradient_where_ours_does(make_pair, batch) -> None:
    stock, ours = make_pair()
    gradients = {}
    for name, model in (("stock", stock), ("ours", ours)):
        model.requires_grad_(True).train()
        out = model(**batch)
        out.positions[-1].square().mean().backward()
        gradients[name] = model.esm.encoder.layer[0].attention.self.query.weight.grad
    assert gradients["stock"] is None
    assert gradients["ours"].abs().max() > 0


def test_language_model_gradients_can_be_cut_off(tiny, batch) -> None:
    tiny.requires_grad_(True).train().language_model_gradients = False
    structure_loss(tiny, batch).backward()
    assert all(parameter.grad is None for parameter in tiny.esm.parameters())
    assert tiny.esm_s_combine.grad.abs().max() > 0
    assert tiny.trunk.blocks[0].tri_mul_in.linear_a_p.weight.grad.abs().max() > 0


def test_a_frozen_language_model_records_nothing(tiny, batch) -> None:
    tiny.requires_grad_(False)
    assert not tiny(**batch).positions.requires_grad


def test_adapters_that_keep_their_parameters_outside_the_language_model_are_trained(tiny, batch) -> None:
    from peft import get_peft_model

    from protfold_peft.adapters import LoRTAConfig

    adapted = get_peft_model(tiny, LoRTAConfig(r=2, target_modules=["query", "key", "value", "attention.output.dense"]))
    assert not any(parameter.requires_grad for parameter in tiny.esm.parameters())
    adapted.train()
    adapted(**batch, recycles=1).positions[-1].square().mean().backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert any(name.endswith(".B") and grad.abs().max() > 0 for name, grad in gradients.items())


def test_training_an_fp16_language_model_is_refused(tiny, batch) -> None:
    tiny.set_precision(language_model=torch.float16)
    tiny.esm.requires_grad_(True)
    with pytest.raises(ConfigError, match="fp16"):
        tiny(**batch)


def test_training_after_inference_mode(tiny, batch) -> None:
    with torch.inference_mode():
        tiny(**batch)
    tiny.train()
    structure_loss(tiny, batch).backward()
    assert tiny.esm_s_mlp[1].weight.grad.abs().max() > 0


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_row_attention_equals_plain_attention_and_its_gradients(monkeypatch, rows_at_once) -> None:
    b, r, h, n, d = 2, 7, 3, 5, 4
    monkeypatch.setattr("protfold_peft.folding.attention._CPU_SCORES", rows_at_once * h * n * n)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(b, r, n, 3, h, d, generator=generator, dtype=torch.float64)
    bias = torch.randn(b, h, n, n, generator=generator, dtype=torch.float64)
    inputs = [t.requires_grad_(True) for t in (x, bias)]
    q, k, v = x.transpose(2, 4).unbind(3)
    expected = ((0.7 * q @ k.transpose(-1, -2) + bias[:, None]).softmax(-1) @ v).transpose(2, 3)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    actual = row_attention(*inputs, 0.7)
    given = torch.autograd.grad((actual * weight).sum(), inputs)
    assert torch.allclose(actual, expected, atol=1e-12)
    for a, e in zip(given, wanted):
        assert torch.allclose(a, e, atol=1e-11)


def test_bf16_trunk_trains(tiny, batch) -> None:
    tiny.set_precision(trunk=torch.bfloat16)
    tiny.requires_grad_(True).train()
    structure_loss(tiny, batch).backward()
    rounded = tiny.esm.encoder.layer[0].attention.self.query.weight.grad.clone()
    tiny.zero_grad()
    tiny.set_precision()
    structure_loss(tiny, batch).backward()
    exact = tiny.esm.encoder.layer[0].attention.self.query.weight.grad
    assert torch.nn.functional.cosine_similarity(rounded.flatten(), exact.flatten(), dim=0) > 0.95

"""Number formats, checkpointing, compilation and dropout: the same mathematics on every road."""

from __future__ import annotations

import pytest
import torch
from adapter_methods import METHODS, make_config
from peft import LoraConfig, get_peft_model

from protfold_peft.adapters import LoRTAConfig


def gradients(model, tokens):
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def test_half_precision_base_keeps_fp32_factors(esm, adapted, tokens):
    model = adapted(esm().bfloat16())
    assert {factor.dtype for factor in model.base_model.tensor_factors.parameters()} == {torch.float32}
    output = model(input_ids=tokens)
    assert output.logits.dtype == torch.bfloat16
    grads = gradients(model, tokens)
    assert {grad.dtype for grad in grads.values()} == {torch.float32}

    plain = get_peft_model(esm().bfloat16(), LoRTAConfig(r=3, init_weights=False), autocast_adapter_dtype=False)
    assert {factor.dtype for factor in plain.base_model.tensor_factors.parameters()} == {torch.bfloat16}
    assert plain(input_ids=tokens).logits.dtype == torch.bfloat16


def test_float64_base_gets_float64_factors(esm, adapted):
    model = adapted(esm().double())
    assert {factor.dtype for factor in model.base_model.tensor_factors.parameters()} == {torch.float64}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_bf16_autocast_is_as_close_to_fp32_as_loras(esm, tokens, base_dtype, method):
    """Rounding errors of LoRA under the same autocast are the yardstick. Updates are small, as trained ones are."""

    def error(config):
        torch.manual_seed(2)
        exact = get_peft_model(esm().to(base_dtype).float(), config)
        torch.manual_seed(2)
        model = get_peft_model(esm().to(base_dtype), config)
        wanted = gradients(exact, tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = gradients(model, tokens)
        assert {grad.dtype for grad in got.values()} == {torch.float32}
        return max(relative(got[name], wanted[name]) for name in wanted)

    targets = ["query", "key", "value", "attention.output.dense"]
    lora = error(LoraConfig(r=3, init_lora_weights=False, target_modules=targets))
    size = {"scale": 0.05} if method in ("tenslora", "tera") else {"alpha": 0.05}
    assert error(make_config(method, target_modules=targets, **size)) < max(2 * lora, 0.05)


def test_gradient_checkpointing_gives_the_same_gradients(esm, adapted, tokens):
    plain, checkpointed = adapted(esm()).train(), adapted(esm()).train()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in checkpointed.modules())
    wanted, got = gradients(plain, tokens), gradients(checkpointed, tokens)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_compiles_into_one_graph(esm, tokens, method):
    torch.manual_seed(2)
    model = get_peft_model(esm(num_hidden_layers=1), make_config(method)).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input_ids=tokens).logits, model(input_ids=tokens).logits, rtol=0, atol=1e-5)
    compiled(input_ids=tokens, labels=tokens).loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in gradients(model, tokens).items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


def test_dropout_acts_on_the_update_and_only_in_training(esm, adapted, tokens):
    model, plain = adapted(esm(), dropout=0.5), adapted(esm())
    assert torch.equal(model(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    model.train()
    first, second = (model(input_ids=tokens).logits for _ in range(2))
    assert not torch.equal(first, second)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=tokens).logits, esm()(input_ids=tokens).logits)


def test_leading_axes_are_free(esm, adapted):
    layer = adapted(esm()).get_base_model().esm.encoder.layer[0].attention.self.query
    x = torch.randn(2, 3, 5, 32)
    torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2]), rtol=0, atol=1e-6)
    torch.testing.assert_close(layer(x)[1, 2, 4], layer(x[1, 2, 4]), rtol=0, atol=1e-6)

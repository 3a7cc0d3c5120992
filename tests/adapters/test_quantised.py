"""Adapters on 8- and 4-bit bases, beside LoRA on the same base."""

from __future__ import annotations

import pytest
import torch
from adapter_methods import METHODS, make_config
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import resolve_quantization_backend
from torch import nn

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

QKVO = ["query", "key", "value", "attention.output.dense"]


def quantised(model, bits):
    """The attention projections in 8 or 4 bits, as transformers would load them."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".attention." in path:
            if bits == 8:
                new = bnb.nn.Linear8bitLt(module.in_features, module.out_features, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
            else:
                new = bnb.nn.Linear4bit(module.in_features, module.out_features, compute_dtype=torch.float32)
                new.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
            new.bias = module.bias
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new.to("cpu"))
    setattr(model, f"is_loaded_in_{bits}bit", True)  # PEFT's LoRA asks for it
    return model.eval()


@pytest.fixture(params=[8, 4])
def base(esm, request):
    # The 4-bit blocks are of 64 numbers.
    return lambda: quantised(esm(hidden_size=64, intermediate_size=64), request.param)


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize("method", METHODS)
def test_forward_gradients_save_and_load(base, tokens, tmp_path, method):
    torch.manual_seed(2)
    model = get_peft_model(base(), make_config(method, target_modules=QKVO)).eval()
    plain = logits(base(), tokens)
    assert {factor.dtype for factor in model.base_model.tensor_factors.parameters()} == {torch.float32}
    output = model(input_ids=tokens, labels=tokens)
    # The exact update on top of the quantised layer's own output.
    layer = model.get_base_model().esm.encoder.layer[1].attention.self.query
    x = torch.randn(2, 5, 64)
    expected = layer.base_layer(x) + x @ layer.get_delta_weight("default").T
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    output.loss.backward()
    assert all(factor.grad is not None and factor.grad.any() for factor in model.parameters() if factor.requires_grad)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, tokens), plain, rtol=0, atol=1e-2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path).eval()
    for one, other in zip(loaded.base_model.tensor_factors.parameters(), model.base_model.tensor_factors.parameters()):
        assert torch.equal(one, other)
    # The quantised layers themselves compute in another way after their first pass without gradients.
    torch.testing.assert_close(logits(loaded, tokens), logits(model, tokens), rtol=0, atol=1e-2)


def dequantised(layer):
    base = layer.get_base_layer()
    return resolve_quantization_backend(base).get_base_weight(base).clone()


@torch.no_grad()
def merge_error(layer):
    """How far merging leaves the weight from base plus update, relative to the update."""
    base, update = dequantised(layer), layer.get_delta_weight("default")
    layer.merge()
    return ((dequantised(layer) - base - update).norm() / update.norm()).item()


@pytest.mark.parametrize("method", METHODS)
def test_merging_loses_no_more_than_loras_merge_of_the_same_update(base, method):
    """Quantising anew rounds the update away in part, whatever wrote it."""
    path = "esm.encoder.layer.1.attention.self.query"
    torch.manual_seed(2)
    ours = get_peft_model(base(), make_config(method, target_modules=QKVO)).get_base_model().get_submodule(path)
    config = LoraConfig(r=64, lora_alpha=64, target_modules=QKVO)
    theirs = get_peft_model(base(), config).get_base_model().get_submodule(path)
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(torch.eye(64))
        theirs.lora_B["default"].weight.copy_(ours.get_delta_weight("default"))
    assert merge_error(ours) == pytest.approx(merge_error(theirs), rel=0.02)

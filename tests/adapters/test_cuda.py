"""Adapters on a GPU against the same on the CPU."""

from __future__ import annotations

import pytest
import torch
from adapter_methods import METHODS, make_config
from peft import PeftModel, get_peft_model

from protfold_peft.adapters import collapsed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def gradients(model, tokens):
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.requires_grad}


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the fp32 that transformers keeps in float64 models (rotations, root-mean-square norms, softmax)."""
    assert (actual - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["esm", "llama", "gpt2"])
def test_outputs_gradients_and_frozen_tensors(make_model, tokens, tmp_path, family, method):
    """In float64, so that little but a mistake makes a difference; the adapter is made on each device by itself."""
    models = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(2)
        config = make_config(method, target_modules="all-linear")
        models.append(get_peft_model(make_model(family).double(), config).to(device).eval())
    on_cpu, on_gpu = models
    assert all(factor.is_cuda for factor in on_gpu.base_model.tensor_factors.parameters())
    for one, other in zip(on_cpu.base_model.tensor_factors.buffers(), on_gpu.base_model.tensor_factors.buffers()):
        assert torch.equal(one, other.cpu())
    expected = on_cpu(input_ids=tokens).logits
    assert_near(on_gpu(input_ids=tokens.cuda()).logits.cpu(), expected)
    wanted, got = gradients(on_cpu, tokens), gradients(on_gpu, tokens.cuda())
    for name, gradient in wanted.items():
        assert_near(got[name], gradient)
    on_cpu.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        base = make_model(family).double().cuda()
        loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
        assert all(t.is_cuda for t in loaded.base_model.tensor_factors.state_dict().values())
        assert all(buffer.is_cuda for buffer in loaded.base_model.tensor_factors.buffers())
        with collapsed(loaded), torch.no_grad():
            actual = loaded(input_ids=tokens.cuda()).logits.cpu()
        assert_near(actual, expected)


def test_mixed_batches(make_model):
    tokens = torch.randint(4, 24, (4, 7), generator=torch.Generator().manual_seed(3)).cuda()
    torch.manual_seed(2)
    model = get_peft_model(make_model("llama").double().cuda(), make_config("lorta"), adapter_name="one")
    model.add_adapter("two", make_config("lotr", r=2))
    model.add_adapter("three", make_config("tera"))
    model.eval()
    names = ["one", "two", "__base__", "three"]
    with torch.no_grad():
        mixed = model(input_ids=tokens, adapter_names=names).logits
        for place, name in enumerate(names):
            if name != "__base__":
                model.set_adapter(name)
                expected = model(input_ids=tokens[place : place + 1]).logits
                torch.testing.assert_close(mixed[place : place + 1], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_autocast_trains(make_model, tokens, method):
    torch.manual_seed(2)
    size = {"scale": 0.05} if method in ("tenslora", "tera") else {"alpha": 0.05}
    model = get_peft_model(make_model("esm"), make_config(method, **size)).cuda()
    wanted = gradients(model, tokens.cuda())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        got = gradients(model, tokens.cuda())
    for name, gradient in wanted.items():
        assert ((got[name] - gradient).norm() / gradient.norm()).item() < 0.1

"""The same numbers on a CUDA device; run with `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import pytest
import torch

from protfold_peft.folding.load import load_model
from protfold_peft.folding.predict import predict

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.usefixtures("exact_products")
def test_outputs_and_gradients_on_cuda_equal_those_on_the_cpu(tiny, batch) -> None:
    def run(device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model = tiny.to(device)
        model.requires_grad_(True).train()
        model.zero_grad()
        inputs = {key: value.to(device) for key, value in batch.items()}
        with torch.no_grad():
            inferred = model(**inputs).s_s
        output = model(**inputs, recycles=0)
        output.distogram_logits.square().mean().backward()
        gradient = model.esm.encoder.layer[0].attention.self.query.weight.grad
        return inferred.cpu(), output.s_z.detach().cpu(), gradient.cpu().clone()  # `to` moves gradients too

    real = batch["attention_mask"].bool()
    pairs = real[:, :, None] & real[:, None, :]
    on_cpu, on_cuda = run("cpu"), run("cuda")
    for actual, expected, keep in zip(on_cuda, on_cpu, (real, pairs, slice(None))):
        assert (actual[keep] - expected[keep]).norm() < 1e-4 * expected[keep].norm()


@pytest.mark.parametrize("dtype", ["fp16/fp32", "fp16/bf16", "bf16"])
def test_reduced_precision_stays_near(dtype) -> None:
    sequence = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
    exact = predict(load_model(device="cpu"), sequence, recycles=0)
    reduced = predict(load_model(device="cuda", dtype=dtype), sequence, recycles=0)
    assert abs(exact.plddt - reduced.plddt).mean() < 2


def test_offloaded_weights_give_the_same_prediction() -> None:
    sequence = "NLYIQWLKDGGPSSGRPPPS"
    whole = predict(load_model(device="cuda", dtype="fp32"), sequence)
    offloaded = predict(load_model(device="cuda", dtype="fp32", cpu_offload=True), sequence)
    assert abs(whole.plddt - offloaded.plddt).max() < 1e-3

"""Fitting a training step to a memory budget: the estimate against counts, the choice, and what is computed twice."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from tiny_models import randomise, tiny_config
from torch import nn

from protfold_peft.adapters import LoRTAConfig
from protfold_peft.errors import ConfigError
from protfold_peft.folding.checkpointing import checkpointed, set_checkpointing
from protfold_peft.folding.model import EsmFold
from protfold_peft.folding.quantize import halve_frozen_trunk
from protfold_peft.training import dry_run
from protfold_peft.training.made import made_batch
from protfold_peft.training.memory import (
    Curve,
    Footprint,
    cap,
    choose,
    measure_footprint,
    parse_budget,
    peak_bytes,
    recorded_layers,
    saved_bytes,
    usable,
)
from protfold_peft.training.objective import structure_loss

TARGETS = ["query", "key", "value", "attention.output.dense"]
CPU = torch.device("cpu")
LENGTH = 48


def adapted(targets: Any = TARGETS, device: torch.device = CPU, **trunk: Any) -> Any:
    """A tiny model with LoRTA in the named modules, in training mode."""
    torch.manual_seed(0)
    model = EsmFold(tiny_config(**trunk))
    randomise(model)
    model.esm.set_attn_implementation("sdpa")
    config = LoRTAConfig(r=4, target_modules=targets, init="orthogonal")
    return peft.get_peft_model(model.to(device).requires_grad_(False), config).train()


def backward(model: Any, length: int, batch: int = 1) -> torch.Tensor:
    made = made_batch(length, batch, model.get_base_model().device)
    output = model(made["input_ids"], made["attention_mask"], recycles=0)
    loss = structure_loss(output, made, {"fape": 1.0, "distogram": 0.3, "aligned_error": 0.1}).total
    loss.backward()
    return loss.detach()


def step(model: Any, length: int, batch: int = 1) -> None:
    backward(model, length, batch)
    model.zero_grad(set_to_none=True)


def footprint_of(model: Any, batch: int = 1, length: int = LENGTH) -> Footprint:
    base = model.get_base_model()
    return measure_footprint(base, lambda n: step(model, n, batch), length=length, batch=batch, held=0)


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("22.5 GiB", 22.5 * 2**30), (" 512MB ", 512 * 10**6), ("8MiB", 2**23)]
)
def test_budgets_are_read_in_their_units(text, size) -> None:
    assert parse_budget(text) == size


@pytest.mark.parametrize("text", ["24", "24 gigabytes", "-1GB", "0GB", "GB", "nanGB", "1e3MB"])
def test_other_budgets_are_refused_by_name(text) -> None:
    with pytest.raises(ConfigError, match=f"memory budget '{text}'.*24GB"):
        parse_budget(text)


def test_live_arrays_are_counted_to_the_byte() -> None:
    def run() -> None:
        a = torch.ones(1000)  # 4,000 bytes
        b = a * 2  # 8,000
        c = b.view(10, 100).add_(1)  # in place, and views: nothing new
        del a  # 4,000
        d = torch.cat([c.flatten(), c.flatten()])  # 12,000
        del d
        (c.double() * 1.0).sum()  # 4,000 + 8,000 + 8,000

    assert peak_bytes(run, CPU) == 20_000


def test_saved_arrays_are_counted_once_and_without_those_apart() -> None:
    x = torch.randn(10, 10, requires_grad=True)
    weight = torch.randn(10, 10)

    def run() -> torch.Tensor:
        y = (x @ weight).exp()  # saves weight, and the result of exp
        return y * y  # saves y, which is that result

    assert saved_bytes(run, [x, weight]) == 400
    assert saved_bytes(run, [x]) == 800


@pytest.mark.parametrize("batch", [1, 3])
def test_the_curves_meet_what_is_counted_at_longer_samples(batch) -> None:
    model = adapted()
    footprint = footprint_of(model, batch)
    beyond = LENGTH + LENGTH // 3
    set_checkpointing(model.get_base_model())
    counted = peak_bytes(lambda: step(model, beyond, batch), CPU)
    assert 0.97 * counted < footprint.step.at(beyond) < 1.12 * counted


@pytest.mark.parametrize(("kept_layers", "kept_blocks"), [(0, 0), (3, 0), (3, 2), (3, 4), (0, 4)])
def test_the_expected_peak_is_near_the_counted_one_and_never_far_below(kept_layers, kept_blocks) -> None:
    model = adapted(num_blocks=4)
    footprint = footprint_of(model)
    assert (footprint.layers, footprint.blocks) == (3, 4)
    expected = footprint.peak(LENGTH, kept_layers, kept_blocks)
    set_checkpointing(model.get_base_model(), kept_layers=kept_layers, kept_blocks=kept_blocks)
    counted = peak_bytes(lambda: step(model, LENGTH), CPU)
    assert 0.97 * counted < expected < 1.35 * counted


def test_what_is_computed_twice_gives_the_same_loss_and_gradients() -> None:
    found = []
    for kept in ((0, 0), (1, 1), (3, 2)):
        model = adapted()
        set_checkpointing(model.get_base_model(), kept_layers=kept[0], kept_blocks=kept[1])
        assert checkpointed(model.get_base_model()) == (3 - kept[0], 2 - kept[1])
        loss = backward(model, 20)
        found.append((loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    for loss, gradients in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert gradients.keys() == found[0][1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=0, atol=0)


def test_offloaded_inputs_give_the_same_gradients_and_are_copies(monkeypatch) -> None:
    packed: list[torch.Tensor] = []
    plain = torch.autograd.graph.save_on_cpu

    class Watched(plain):  # type: ignore[misc, valid-type]
        def __init__(self, pin_memory: bool = False) -> None:
            super().__init__(pin_memory)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: packed.append(tensor) or pack(tensor)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Watched)
    gradients = []
    for offload in (False, True):
        model = adapted()
        set_checkpointing(model.get_base_model(), offload=offload)
        backward(model, 20)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    # Both states of every block, and of nothing else: 2 x (b, n, 32) and 2 x (b, n, n, 16).
    shapes = sorted(tuple(tensor.shape) for tensor in packed if tensor.numel())
    assert shapes == [(1, 20, 20, 16)] * 2 + [(1, 20, 32)] * 2
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


def test_more_memory_means_less_computed_twice_and_layers_are_kept_first() -> None:
    curves = {"step": Curve(0, 0, 10), "layer": Curve(0, 1, 0), "block": Curve(0, 0, 1)}
    footprint = Footprint(held=1000, layers=4, blocks=3, **curves)
    # At 10 residues: 2000 bytes, 10 for a layer, 100 for a block.
    plans = [choose(footprint, budget, 10) for budget in (2000, 2009, 2025, 2040, 2139, 2140, 2240, 10**6)]
    kept = [(plan.kept_layers, plan.kept_blocks) for plan in plans]
    assert kept == [(0, 0), (0, 0), (2, 0), (4, 0), (4, 0), (4, 1), (4, 2), (4, 3)]
    assert [plan.peak for plan in plans] == [2000, 2000, 2020, 2040, 2040, 2140, 2240, 2340]
    assert "2 of 4 language-model layers and 3 of 3 trunk blocks are computed twice" in plans[2].described
    assert "nothing is computed twice" in plans[-1].described
    with pytest.raises(ConfigError, match=r"1 x 10 residues takes .* what would do: --memory-budget 0\.1GB"):
        choose(footprint, 1999, 10)


def test_no_limit_on_a_cpu_without_a_budget() -> None:
    assert usable(CPU, None) is None
    assert usable(CPU, 10**9) == 10**9


def test_nothing_is_recorded_below_the_lowest_adapter() -> None:
    model = adapted([f"encoder.layer.{place}.attention.self.{name}" for place in (1, 2) for name in ("query", "key")])
    base = model.get_base_model()
    recorded: dict[int, bool] = {}
    layers: Any = base.esm.encoder.layer
    for place, layer in enumerate(layers):
        layer.register_forward_hook(lambda _, __, out, place=place: recorded.update({place: _state(out).requires_grad}))
    backward(model, 20)
    assert recorded == {0: False, 1: True, 2: True}
    assert recorded_layers(base, lambda: step(model, 20)) == 2
    assert footprint_of(model).layers == 2


def _state(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("bits", [None, "8bit", "4bit"])
def test_the_frozen_model_has_no_gradient_buffers(bits) -> None:
    model = adapted()
    base = model.get_base_model()
    if bits is not None:
        pytest.importorskip("bitsandbytes")
        from protfold_peft.folding.quantize import quantize_language_model

        torch.manual_seed(0)
        base = EsmFold(tiny_config())
        randomise(base)
        quantize_language_model(base, bits, torch.float32)
        base.to(CPU).requires_grad_(False)
        model = peft.get_peft_model(base, LoRTAConfig(r=4, target_modules=TARGETS, init="orthogonal")).train()
    set_checkpointing(base)
    backward(model, 20)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(not parameter.requires_grad for parameter in base.trunk.parameters())


def test_earlier_passes_leave_nothing() -> None:
    """Arrays of the passes without gradients are gone when the last begins, and after the step."""
    model = adapted()
    set_checkpointing(model.get_base_model())
    made = made_batch(32, 1, CPU)

    def run(recycles: int) -> None:
        output = model(made["input_ids"], made["attention_mask"], recycles=recycles)
        structure_loss(output, made, {"fape": 1.0}).total.backward()
        model.zero_grad(set_to_none=True)

    run(0)
    without, more = peak_bytes(lambda: run(0), CPU), peak_bytes(lambda: run(3), CPU)
    pair_state = 32 * 32 * 16 * 4
    # The recycled distances and both normalised states of the pass before are part of the last one's inputs.
    assert more - without <= 2 * pair_state
    gc.collect()
    before = sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor and t.dim() >= 3)
    run(3)
    gc.collect()
    assert sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor and t.dim() >= 3) == before


def test_a_run_takes_its_budget_and_tells(settings, tmp_path) -> None:
    told = dry_run(settings(tmp_path / "out", model={"memory_budget": "64GB"}))
    assert told.plan is not None
    assert "nothing is computed twice" in told.plan
    assert dry_run(settings(tmp_path / "out")).plan is None
    with pytest.raises(ConfigError, match=r"memory budget: 0\.00 GiB may be used, but a step on 2 x 16 residues"):
        dry_run(settings(tmp_path / "out", model={"memory_budget": "1MB"}))
    with pytest.raises(ConfigError, match="leave out gradient_checkpointing"):
        dry_run(settings(tmp_path / "out", model={"memory_budget": "64GB", "gradient_checkpointing": True}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu_the_peak_is_within_the_expected_one() -> None:
    device = torch.device("cuda")
    model = adapted(device=device, num_blocks=6, pairwise_state_dim=64, sequence_state_dim=128)
    footprint = footprint_of(model, length=256)
    for kept in ((0, 0), (3, 0), (3, 3), (3, 6)):
        set_checkpointing(model.get_base_model(), kept_layers=kept[0], kept_blocks=kept[1])
        step(model, 256)
        counted = peak_bytes(lambda: step(model, 256), device)
        assert counted < 1.1 * footprint.peak(256, *kept), kept
        assert counted > 0.6 * footprint.peak(256, *kept), kept


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu_offloading_frees_the_inputs_of_blocks() -> None:
    device = torch.device("cuda")
    model = adapted(device=device, num_blocks=8, pairwise_state_dim=64, sequence_state_dim=128)
    peaks = []
    for offload in (False, True):
        set_checkpointing(model.get_base_model(), offload=offload)
        step(model, 256)
        peaks.append(peak_bytes(lambda: step(model, 256), device))
    # Eight pair states of 256 x 256 x 64 fp32 wait elsewhere, but for the one or two at hand.
    assert peaks[0] - peaks[1] > 5 * 256 * 256 * 64 * 4


def test_a_gpu_may_be_named_without_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda` is what `auto` means, and PyTorch's own function takes only numbered devices."""
    from torch.cuda._utils import _get_device_index

    shares = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda share, device: shares.append((share, _get_device_index(device))),
    )
    cap(torch.device("cuda"), None)
    cap(torch.device("cuda:1"), 40 * 2**30)
    assert shares[0] == (1.0, 0)
    assert shares[1][1] == 1
    assert 0.4 < shares[1][0] < 0.5


def test_checkpointing_reaches_every_block() -> None:
    base = EsmFold(tiny_config())
    set_checkpointing(base)
    stacks: list[nn.Module] = [*base.esm.encoder.layer, *base.trunk.blocks]
    assert all(block.gradient_checkpointing for block in stacks)


@pytest.mark.parametrize("targets", [TARGETS, [*TARGETS, "tri_att_start.mha.linear_q", "seq_attention.proj"]])
def test_a_frozen_trunk_in_bf16_gives_the_same_digits(targets) -> None:
    """Autocast rounds the weights itself: doing so beforehand changes nothing but the memory."""
    found = []
    for halved in (False, True):
        model = adapted(targets)
        trunk = model.get_base_model().trunk
        model.get_base_model().set_precision(trunk=torch.bfloat16)
        if halved:
            halve_frozen_trunk(model.get_base_model())
            assert trunk.blocks[0].tri_mul_in.linear_z.weight.dtype == torch.bfloat16
            assert trunk.blocks[0].layernorm_1.weight.dtype == torch.float32
            assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        loss = backward(model, 20)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        with torch.no_grad():
            predicted = model.eval()(torch.arange(15)[None], recycles=1).positions
        found.append([loss, predicted, *gradients])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_trunk_in_fp32_is_left_alone() -> None:
    model = adapted().get_base_model()
    halve_frozen_trunk(model)
    assert {p.dtype for p in model.trunk.parameters()} == {torch.float32}

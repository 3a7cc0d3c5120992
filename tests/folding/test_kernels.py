"""The kernels' arithmetic, in Triton's interpreter on a CPU, against PyTorch's own operations; what chooses them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from tiny_models import randomise, tiny_config
from torch import Tensor

from protfold_peft.folding import kernels
from protfold_peft.folding.kernels.linear import together, untouched
from protfold_peft.folding.trunk import FoldingTrunk, TrunkBlock

WIDTHS: dict[str, Any] = {"sequence_state_dim": 32, "pairwise_state_dim": 32, "sequence_head_width": 16}
WIDTHS["pairwise_head_width"] = 16


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton kernels run as Python on this CPU, as `tests/conftest.py` asks for where there is no GPU."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("this machine runs the kernels themselves: pytest -m gpu")
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)
        # numpy 2.4 makes no number of an array of one element, as the interpreter expects for the bounds of loops.
        tensor.__index__ = lambda self: int(self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)


def load(name: str) -> Any:
    """A module of kernels."""
    return importlib.import_module(f"protfold_peft.folding.kernels.{name}")


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(("n", "ending"), [(17, False), (35, True)])
def test_attention_and_its_gradients_equal_float64(n, ending) -> None:
    b, r, h, d = 2, 3, 1, 16
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(b, n, r, 3, h, d, generator=generator).transpose(1, 2) if ending else torch.randn(b, r, n, 3, h, d)
    bias = torch.randn(b, h, n, n, generator=generator)
    bias[1, ..., n - 4 :] = -1e9  # padding
    grad = torch.randn(b, r, n, h, d, generator=generator)
    exact = [t.double().requires_grad_(True) for t in (x, bias)]
    q, k, v = exact[0].transpose(2, 4).unbind(3)
    expected = ((0.3 * q @ k.transpose(-1, -2) + exact[1][:, None]).softmax(-1) @ v).transpose(2, 3)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    inputs = [x.requires_grad_(True), bias.requires_grad_(True)]
    actual = load("triton_attention_backward").triangle_attention(*inputs, 0.3)
    given = torch.autograd.grad(actual, inputs, grad)
    for a, e in zip((actual, *given), (expected, *wanted)):
        assert a.dtype == torch.float32
        assert (a.double() - e).abs().max() < 2e-6 * e.abs().max()


def states(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Random states of a padded batch, and its mask."""
    generator = torch.Generator().manual_seed(sum(lengths))
    b, n = len(lengths), max(lengths)
    s = torch.randn(b, n, WIDTHS["sequence_state_dim"], generator=generator)
    z = torch.randn(b, n, n, WIDTHS["pairwise_state_dim"], generator=generator)
    return s, z, (torch.arange(n) < torch.tensor(lengths)[:, None]).float()


@pytest.mark.usefixtures("interpreter")
def test_block_and_its_gradients_equal_the_reference() -> None:
    block: Any = TrunkBlock(tiny_config(**WIDTHS).esmfold_config.trunk).eval().requires_grad_(False)
    randomise(block)
    training = load("fast_training")
    assert training.frozen(block)
    s, z, mask = states([6, 4])
    real = mask.bool()
    pairs = real[:, :, None] & real[:, None]
    weights = torch.randn(s.shape) * mask[..., None], torch.randn(z.shape) * pairs[..., None]
    leaves = [t.requires_grad_(True) for t in (s, z)]
    expected = block(*leaves, mask)
    wanted = torch.autograd.grad([(e * w).sum() for e, w in zip(expected, weights)], leaves)
    frozen = training.FrozenBlock()
    # Weights are packed twice, the second time into the same place.
    actual = frozen(block, *leaves, mask, torch.float32)
    given = torch.autograd.grad([(a * w).sum() for a, w in zip(actual, weights)], leaves)
    for a, e, keep in zip((*actual, *given), (*expected, *wanted), (real, pairs, real, pairs)):
        assert (a - e)[keep].abs().max() < 1e-5 * e.abs().max()


class Replayed:
    """A graph that computes again: what the code around graphs sees, without a device."""

    def __init__(self, call: Any) -> None:
        self.replay = call


@pytest.mark.usefixtures("interpreter")
def test_padded_and_replayed_passes_equal_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = FoldingTrunk(tiny_config(**(WIDTHS | {"num_blocks": 1})).esmfold_config.trunk).eval().requires_grad_(False)
    randomise(trunk)
    graphs = load("graphs")
    monkeypatch.setattr(graphs, "_MULTIPLE", 6)

    def record(self: Any, key: Any, s: Tensor, z: Tensor, mask: Tensor, aatype: Tensor, place: Any) -> None:
        b, p = key
        s, z, mask, aatype = (
            s.new_zeros(b, p, 32),
            z.new_zeros(b, p, p, 32),
            mask.new_zeros(b, p),
            aatype.new_zeros(b, p),
        )
        new_s, placed = s.clone(), {name: x.clone() for name, x in place(s, z, aatype, mask).items()}

        def call() -> None:
            state, _ = self._blocks(s, z, mask)
            new_s.copy_(state)
            for name, x in place(state, z, aatype, mask).items():
                placed[name].copy_(x)

        self._passes[key] = graphs._Pass(Replayed(call), s, z, mask, aatype, new_s, placed)

    monkeypatch.setattr(graphs.TrunkGraphs, "_record", record)
    features, _, mask = states([5, 4])
    aatype, index = torch.arange(10).view(2, 5), torch.arange(5).expand(2, 5)
    real = mask.bool()
    with torch.no_grad():
        expected = trunk(features, aatype, index, mask, 1)
        monkeypatch.setattr(kernels, "triton_runs", lambda device: True)
        trunk.autocast_dtype = torch.float32
        actual = trunk(features, aatype, index, mask, 1)
    assert list(trunk._graphs._passes) == [(2, 6)]
    for name in ("states", "positions", "frames", "sidechain_frames"):
        assert actual[name].shape == expected[name].shape
        assert (actual[name] - expected[name])[:, real].abs().max() < 1e-5 * expected[name].abs().max()
    assert (actual["s_s"] - expected["s_s"])[real].abs().max() < 1e-5 * expected["s_s"].abs().max()


def test_layers_together_equal_layers_one_by_one_and_notice_changes() -> None:
    layers = [torch.nn.Linear(4, width, bias=width != 3) for width in (2, 3, 5)]
    x = torch.randn(6, 4)
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    assert torch.allclose(together(*layers)(x), expected, atol=1e-6)
    together(*layers)(x).square().sum().backward()
    gradient = layers[1].weight.grad
    assert gradient is not None
    assert torch.allclose(gradient, 2 * expected[:, 2:5].T @ x, atol=1e-5)
    module = torch.nn.ModuleList(layers)
    assert untouched(module)
    layers[2].register_forward_hook(lambda module, inputs, output: output + 1)
    assert torch.allclose(together(*layers)(x)[:, 5:], expected[:, 5:] + 1, atol=1e-6)
    assert not untouched(module)


def test_adapted_layers_of_the_trunk_are_called(tiny, batch) -> None:
    from peft import LoraConfig, get_peft_model

    with torch.no_grad():
        before = tiny(**batch, recycles=0).s_z
        adapted = get_peft_model(
            tiny, LoraConfig(r=2, init_lora_weights=False, target_modules=r"trunk\..*(linear_a_p|linear_q)")
        )
        after = adapted(**batch, recycles=0).s_z
        merged = adapted.merge_and_unload()(**batch, recycles=0).s_z
    assert (after - before).abs().max() > 1e-2
    assert (after - merged).abs().max() < 1e-4 * after.abs().max()


def test_a_triton_that_cannot_run_is_told_and_left_out(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    pytest.importorskip("triton")

    def fail(*arguments: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(load("triton_pair"), "norm", fail)
    kernels.triton_works.cache_clear()
    with caplog.at_level("WARNING"):
        assert not kernels.triton_works(torch.device("cpu"))
    assert "without its own kernels" in caplog.text
    assert "Failed to find C compiler" in caplog.text
    kernels.triton_works.cache_clear()


@pytest.mark.usefixtures("interpreter")
def test_a_triton_that_runs_is_found() -> None:
    kernels.triton_works.cache_clear()
    assert kernels.triton_works(torch.device("cpu"))
    kernels.triton_works.cache_clear()


def test_settings_hold_for_a_block_only() -> None:
    assert not kernels.settings().reference
    with kernels.reference_kernels():
        assert kernels.settings().reference
        with kernels.using(attention="torch", reference=False):
            assert kernels.settings().attention == "torch"
            assert not kernels.settings().reference
        assert kernels.settings().reference
    assert kernels.settings() == kernels.KernelSettings()
    assert not kernels.triton_runs(torch.device("cpu"))


def test_the_command_line_s_switch_holds_while_it_folds(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from typer.testing import CliRunner

    from protfold_peft.cli.main import app
    from protfold_peft.folding import run

    seen: list[bool] = []

    def fold(settings: Any) -> Any:
        seen.append(kernels.settings().reference)
        return run.RunResult(folded=1, skipped=0, failed=0, invalid=0, out=settings.out)

    monkeypatch.setattr(run, "run_prediction", fold)
    for switch in ([], ["--reference-kernels"]):
        result = CliRunner().invoke(app, ["predict", "any.fasta", "--out", str(tmp_path), "--device", "cpu", *switch])
        assert result.exit_code == 0, result.output
    assert seen == [False, True]
    assert not kernels.settings().reference

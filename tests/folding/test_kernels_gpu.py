"""The kernels on a CUDA device against float64 and against the reference path; run with `pytest -m gpu`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import randomise, tiny_config
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from protfold_peft.folding import kernels
from protfold_peft.folding.load import load_model
from protfold_peft.folding.predict import predict
from protfold_peft.folding.trunk import FoldingTrunk, TrunkBlock
from protfold_peft.metrics.tm_score import tm_score

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

# Largest error relative to the largest value: rounding of the inputs' format, a few times over.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
WIDTHS: dict[str, Any] = {"sequence_state_dim": 256, "pairwise_state_dim": 128, "sequence_head_width": 32}
WIDTHS["pairwise_head_width"] = 32


def exact_attention(x: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Plain attention of `x` `(b, r, n, 3, h, d)`."""
    q, k, v = (x.select(3, slot).transpose(2, 3) for slot in range(3))
    return (((q @ k.transpose(-1, -2)) * scale + bias[:, None]).softmax(-1) @ v).transpose(2, 3)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("n", "width", "ending"), [(17, 32, False), (100, 16, True), (128, 32, True), (257, 64, False)]
)
@pytest.mark.parametrize("library", ["triton", "cuequivariance"])
def test_attention_and_its_gradients_equal_float64(library, dtype, n, width, ending) -> None:
    if library == "cuequivariance":
        if not kernels.has_cuequivariance():
            pytest.skip("cuequivariance is not installed")
        if dtype == torch.float32:
            pytest.skip("used for 16-bit inputs only")
        from protfold_peft.folding.kernels.choose import cuequivariance_attention as attend
    else:
        from protfold_peft.folding.kernels.triton_attention_backward import triangle_attention as attend
    generator = torch.Generator("cuda").manual_seed(n)
    b, r, h = 2, 9, 3

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    x = draw(b, n, r, 3, h, width).transpose(1, 2) if ending else draw(b, r, n, 3, h, width)
    x, bias = x.to(dtype), draw(b, h, n, n).to(dtype)
    bias[1, :, :, n - 5 :] = -1e4  # padding of the second sample
    grad = draw(b, r, n, h, width).to(dtype)
    scale = width**-0.5
    exact = [t.double().requires_grad_(True) for t in (x, bias)]
    expected = exact_attention(*exact, scale)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    inputs = [x.requires_grad_(True), bias.requires_grad_(True)]
    actual = attend(*inputs, scale)
    given = torch.autograd.grad(actual, inputs, grad)
    with torch.no_grad():
        inferred = attend(*inputs, scale)
    for a, e in zip((actual, inferred, *given), (expected, expected, *wanted)):
        assert (a.double() - e).abs().max() < TOLERANCE[dtype] * e.abs().max()


def trunk_inputs(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random states of a padded batch, and its mask."""
    generator = torch.Generator("cuda").manual_seed(seed)
    b, n = len(lengths), max(lengths)
    s = torch.randn(b, n, WIDTHS["sequence_state_dim"], generator=generator, device="cuda")
    z = torch.randn(b, n, n, WIDTHS["pairwise_state_dim"], generator=generator, device="cuda")
    return s, z, (torch.arange(n, device="cuda") < torch.tensor(lengths, device="cuda")[:, None]).float()


def error(actual: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Relative error at real residues or pairs."""
    real = mask.bool()
    keep = real if actual.dim() == 3 else real[:, :, None] & real[:, None]
    return ((actual.double() - expected)[keep].norm() / expected[keep].norm()).item()


@pytest.mark.parametrize("lengths", [[17], [100, 61], [128], [257]])
def test_fused_block_is_as_near_to_float64_as_autocast_is(lengths) -> None:
    from protfold_peft.folding.kernels.fast_block import PackedBlock, supported, update

    block: Any = TrunkBlock(tiny_config(**WIDTHS).esmfold_config.trunk).eval()
    randomise(block)
    block.cuda()
    assert supported(block)
    s, z, mask = trunk_inputs(lengths)
    with torch.no_grad(), kernels.using(reference=True):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            rounded = block(s.clone(), z.clone(), mask)
        fused_z = z.clone()
        fused_s = update(s.clone(), fused_z, mask, PackedBlock(block, torch.bfloat16))
        exact = block.double()(s.double(), z.double(), mask.double())
    for fused, autocast, expected in zip((fused_s, fused_z), rounded, exact):
        assert torch.isfinite(fused).all()
        assert error(fused, expected, mask) < 1.5 * error(autocast, expected, mask)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("lengths", [[17], [100, 61], [192]])
def test_gradients_are_as_near_to_float64_as_autocast_s_are(lengths, frozen) -> None:
    block: Any = TrunkBlock(tiny_config(**WIDTHS).esmfold_config.trunk).eval()
    randomise(block)
    block.cuda()
    s, z, mask = trunk_inputs(lengths)
    block.requires_grad_(not frozen)
    pairs = (mask[:, :, None] * mask[:, None])[..., None]

    def gradients(dtype: torch.dtype | None, reference: bool) -> list[Tensor]:
        exact = dtype is None
        leaves = [(t.double() if exact else t.clone()).requires_grad_(True) for t in (s, z)]
        block.double() if exact else block.float()
        with kernels.using(reference=reference), torch.autocast("cuda", dtype=torch.bfloat16, enabled=not exact):
            new_s, new_z = block(*leaves, mask.to(leaves[0].dtype))
        loss = (new_s * mask[..., None]).square().sum() + (new_z * pairs).square().sum()
        weights = (block.tri_att_start.linear.weight, block.tri_mul_in.linear_a_g.weight)
        return list(torch.autograd.grad(loss, (*leaves, *(weights if not frozen else ()))))

    exact = gradients(None, True)
    rounded = gradients(torch.bfloat16, True)
    fused = gradients(torch.bfloat16, False)
    for expected, autocast, actual in zip(exact, rounded, fused):
        distance = (actual.double() - expected).norm()
        assert torch.isfinite(actual).all()
        assert distance < 1.5 * (autocast.double() - expected).norm() + 1e-3 * expected.norm()


def test_frozen_blocks_hold_their_inputs_only_and_are_not_computed_thrice() -> None:
    trunk = FoldingTrunk(tiny_config(**(WIDTHS | {"num_blocks": 4})).esmfold_config.trunk).train().requires_grad_(False)
    randomise(trunk)
    trunk.autocast_dtype = torch.bfloat16
    trunk.cuda()
    s, z, mask = trunk_inputs([96])
    leaf = s.clone().requires_grad_(True)
    gradients = []
    for checkpointing in (False, True):
        for block in trunk.blocks:
            block.gradient_checkpointing = checkpointing
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        new_s, new_z = trunk._blocks(leaf, z, mask)
        held = torch.cuda.memory_allocated() - before
        # The states before each block, the last ones, and the room for weights that all blocks share.
        weights = sum(weight.numel() for weight in trunk.blocks[0].parameters())
        assert held < 1.2 * 4 * (s.numel() + z.numel()) * 4 + 4 * weights
        gradients.append(torch.autograd.grad(new_s.square().sum() + new_z.square().sum(), leaf)[0])
    assert torch.equal(*gradients)


@pytest.fixture
def trunk() -> FoldingTrunk:
    """Two blocks of the true pair width in bf16."""
    trunk = FoldingTrunk(tiny_config(**WIDTHS).esmfold_config.trunk).eval()
    randomise(trunk)
    trunk.autocast_dtype = torch.bfloat16
    return trunk.cuda().requires_grad_(False)


def run_blocks(trunk: FoldingTrunk, lengths: list[int], **changes: object) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks on the states that belong to `lengths`."""
    s, z, mask = trunk_inputs(lengths)
    with torch.no_grad(), kernels.using(**changes):
        if trunk._load_kernels(s):
            aatype = torch.zeros_like(mask, dtype=torch.int64)
            new_s, new_z, _ = trunk._run_kernels(s, z, aatype, mask, graphs=kernels.settings().graphs)
        else:
            new_s, new_z = trunk._blocks(s, z, mask)
    return new_s, new_z, mask


@pytest.mark.parametrize("lengths", [[64], [17], [100, 61], [129]])
def test_graphs_give_the_numbers_of_eager_kernels(trunk, lengths) -> None:
    eager_s, eager_z, mask = run_blocks(trunk, lengths, graphs=False)
    recorded = [run_blocks(trunk, lengths, graphs=True) for _ in range(4)]
    assert len(trunk._graphs._passes) == 1
    run_blocks(trunk, [33], graphs=True)
    run_blocks(trunk, [33], graphs=True)
    recorded.append(run_blocks(trunk, lengths, graphs=True))
    for new_s, new_z, _ in recorded:
        # Where padding was added, tiles are cut differently, which moves roundings.
        assert error(new_s, eager_s.double(), mask) < 5e-3
        assert error(new_z, eager_z.double(), mask) < 5e-3
    assert torch.equal(recorded[1][1], recorded[-1][1])


def test_graphs_follow_weights_however_they_change(trunk) -> None:
    for _ in range(3):
        run_blocks(trunk, [64], graphs=True)
    weight = trunk.blocks[1].mlp_pair.mlp[3].weight
    before = run_blocks(trunk, [64], graphs=True)[1]
    weight.data.mul_(3)  # what PEFT's merging does: nothing counts this change
    changed = run_blocks(trunk, [64], graphs=True)[1]
    expected = run_blocks(trunk, [64], graphs=False)[1]
    assert not torch.allclose(before, changed)
    assert torch.equal(changed, expected)
    trunk.blocks[1].mlp_pair.mlp[3].weight = torch.nn.Parameter(weight / 3, requires_grad=False)
    run_blocks(trunk, [64], graphs=True)
    assert error(run_blocks(trunk, [64], graphs=True)[1], before.double(), torch.ones(1, 64, device="cuda")) < 5e-3


def test_a_changed_module_is_called_as_it_is(trunk) -> None:
    plain = run_blocks(trunk, [64])[1]
    trunk.blocks[0].tri_mul_in.linear_z.register_forward_hook(lambda module, inputs, output: output * 0)
    hooked, expected = run_blocks(trunk, [64])[1], run_blocks(trunk, [64], reference=True)[1]
    everywhere = torch.ones(1, 64, device="cuda")
    assert error(hooked, expected.double(), everywhere) < 1e-2
    assert error(hooked, plain.double(), everywhere) > 1e-1


def test_no_pass_waits_for_the_device(trunk) -> None:
    n = 48
    features = torch.randn(1, n, WIDTHS["sequence_state_dim"], device="cuda")
    aatype = torch.randint(0, 20, (1, n), device="cuda")
    index, mask = torch.arange(n, device="cuda")[None], torch.ones(1, n, device="cuda")
    with torch.no_grad():
        for _ in range(2):
            expected = trunk(features, aatype, index, mask, 2)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            actual = trunk(features, aatype, index, mask, 2)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(actual["positions"], expected["positions"])


def test_bf16_prediction_folds_as_fp32_does() -> None:
    sequence = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
    exact = predict(load_model(device="cpu", dtype="fp32"), sequence)
    fused = predict(load_model(device="cuda", dtype="fp32/bf16"), sequence)
    a, b = (torch.as_tensor(p.structure.chains[0].atom_positions)[None, :, 1].double() for p in (fused, exact))
    assert tm_score(a, b, torch.ones(a.shape[:2], dtype=torch.bool)).score.item() > 0.99

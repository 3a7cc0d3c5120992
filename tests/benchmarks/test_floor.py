"""The operations that `floor` counts are those that PyTorch counts as it runs the modules at their true widths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights
from transformers.models.esm.modeling_esm import EsmLayer
from transformers.models.esm.modeling_esmfold import EsmFoldTriangularSelfAttentionBlock

from protfold_peft.benchmarks import floor
from protfold_peft.benchmarks.models import build, configuration
from protfold_peft.folding.model import EsmFold

LENGTHS = (16, 40)


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def config():
    config = configuration("full")
    config._attn_implementation = "eager"
    return config


@pytest.mark.parametrize("t", LENGTHS)
def test_language_model_layer(config, t) -> None:
    with torch.device("meta"), no_init_weights():
        layer = EsmLayer(config)
        x = torch.empty(1, t, config.hidden_size)
        turns = (torch.empty(1, t, config.hidden_size // config.num_attention_heads),) * 2
    assert counted(lambda: layer(x, attention_mask=None, position_embeddings=turns)) == floor.language_model_layer(t)


@pytest.mark.parametrize("n", LENGTHS)
def test_trunk_block(config, n) -> None:
    trunk = config.esmfold_config.trunk
    with no_init_weights():
        block = EsmFoldTriangularSelfAttentionBlock(trunk)
    s, z, mask = torch.zeros(1, n, 1024), torch.zeros(1, n, n, 128), torch.ones(1, n)
    parts = {
        "tri_mul": 2 * floor.triangle_multiplication(n),
        "tri_att": 2 * floor.triangle_attention(n),
        "mlp_pair": floor.pair_transition(n),
        "others": floor.sequence_update(n),
    }
    with FlopCounterMode(block, display=False) as counter, torch.no_grad():
        block(s, z, mask=mask)
    found = dict.fromkeys(parts, 0)
    for name, operations in counter.get_flop_counts().items():
        path = name.split(".")
        if len(path) == 2:
            part = next((part for part in parts if path[1].startswith(part)), "others")
            found[part] += sum(operations.values())
    assert found == parts
    assert counter.get_total_flops() == sum(parts.values())


def test_structure_module_and_heads() -> None:
    """Ours, which sums the points by a matrix product; the true widths, with one block and a small language model."""
    config = configuration("medium")
    config.esmfold_config.trunk.num_blocks = 1
    model = build(EsmFold, config, torch.device("cpu"))
    n = 24
    with FlopCounterMode(model, display=False) as counter, torch.no_grad():
        model(torch.zeros(1, n, dtype=torch.int64), recycles=0)
    found = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    inside = ("structure_module", "trunk2sm_s", "trunk2sm_z")
    expected = 8 * floor.structure_step(n) + floor.into_structure(n)
    # Distances of points may be products too, which no floor has to contain: less than a hundredth.
    assert sum(found[f"EsmFold.trunk.{name}"] for name in inside) == pytest.approx(expected, rel=0.01)
    assert sum(found[f"EsmFold.{name}"] for name in ("distogram_head", "ptm_head")) == floor.heads(n)


def test_the_least_time_is_the_longer_of_operations_and_bytes() -> None:
    part = floor.Part("some", lambda n: 10 * n, lambda n: n * n)
    assert part.seconds(4, rate=10, bandwidth=1) == 16
    assert part.seconds(4, rate=1, bandwidth=1) == 40


def test_bytes_hold_the_weights_once() -> None:
    """At no length at all only weights are left: those of the published model, but for norms, biases and embeddings."""
    weights = sum(part.bytes(0) for part in floor.PARTS) / 2
    assert weights == pytest.approx(2.83e9 + 48 * 13.6e6, rel=0.01)


def test_the_table_names_what_dominates() -> None:
    lines = floor.table((256,), 800e12, 3e12)
    assert sum("**" in line for line in lines) == 1
    assert lines[-1].startswith("| 256 | all |")

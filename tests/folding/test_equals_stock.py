"""On frozen weights our model gives stock transformers' numbers, and repairs what stock gets wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from protfold_peft.errors import ConfigError
from protfold_peft.folding.model import EsmFold

# Not `angles`: normalising a vector near zero magnifies rounding; `unnormalized_angles` and `positions` cover them.
PER_RESIDUE = ("positions", "frames", "sidechain_frames", "unnormalized_angles", "states", "lddt_head")
PER_PAIR = ("distogram_logits", "ptm_logits", "s_z", "predicted_aligned_error")


def assert_same(stock: dict, ours: dict, mask: Tensor, tolerance: float) -> None:
    """Equal at real residues, relative to the size of each output."""
    real = mask.bool()
    pairs = real[:, :, None] & real[:, None, :]
    for name in (*PER_RESIDUE, *PER_PAIR, "s_s", "lm_logits", "plddt"):
        expected, actual = stock[name], ours[name]
        if name in PER_RESIDUE:
            expected, actual = expected[:, real], actual[:, real]
        else:
            keep = pairs if name in PER_PAIR else real
            expected, actual = expected[keep], actual[keep]
        if name == "plddt":
            expected = 100 * expected
        scale = expected.abs().max().clamp(min=1)
        assert (actual - expected).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training-path"])
@pytest.mark.parametrize("recycles", [0, 1, 2, None])
def test_padded_batch_equals_stock_at_every_recycle_count(make_pair, batch, recycles, gradients) -> None:
    stock, ours = make_pair()
    with torch.set_grad_enabled(gradients):
        expected = stock(**batch, num_recycles=recycles)
        actual = ours(**batch, recycles=recycles)
    assert_same(expected, actual, batch["attention_mask"], 1e-5)


@pytest.mark.usefixtures("double_everywhere")
def test_in_float64_the_agreement_is_exact_to_rounding(make_pair, batch) -> None:
    stock, ours = (model.double() for model in make_pair())
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert_same(stock(**batch), ours(**batch), batch["attention_mask"], 1e-11)


@pytest.mark.parametrize("chunk_size", [1, 5, 21, 1000])
def test_chunk_size_changes_nothing(tiny: EsmFold, batch, chunk_size) -> None:
    with torch.no_grad():
        expected = tiny(**batch)
        tiny.set_chunk_size(chunk_size)
        actual = tiny(**batch)
    assert_same({**expected, "plddt": expected["plddt"] / 100}, actual, batch["attention_mask"], 1e-5)


@pytest.mark.parametrize("blocks", [0, 1])
def test_trunk_of_few_blocks(make_pair, batch, blocks) -> None:
    stock, ours = make_pair(num_blocks=blocks)
    with torch.no_grad():
        assert_same(stock(**batch), ours(**batch), batch["attention_mask"], 1e-5)


def test_eager_attention_in_the_language_model_agrees(tiny: EsmFold, batch) -> None:
    assert tiny.esm.config._attn_implementation == "sdpa"
    with torch.no_grad():
        fused = tiny(**batch)
        tiny.set_attn_implementation("eager")
        eager = tiny(**batch)
    assert_same({**eager, "plddt": eager["plddt"] / 100}, fused, batch["attention_mask"], 1e-5)


def test_none_means_the_recycles_of_the_configuration(tiny: EsmFold, batch) -> None:
    # max_recycles counts passes in the configuration (3); recycles counts those after the first (2).
    assert tiny.default_recycles == 2
    with torch.no_grad():
        assert torch.equal(tiny(**batch).positions, tiny(**batch, recycles=2).positions)
        assert not torch.equal(tiny(**batch).positions, tiny(**batch, recycles=1).positions)


def test_ptm_of_a_padded_batch_is_that_of_each_sequence_alone(make_pair, batch) -> None:
    stock, ours = make_pair()
    with torch.no_grad():
        together = ours(**batch).ptm
        for row, length in enumerate(batch["attention_mask"].sum(1)):
            alone = {key: value[row : row + 1, :length] for key, value in batch.items()}
            # Unpadded and alone, the stock scalar is right.
            assert together[row] == pytest.approx(stock(**alone).ptm.item(), abs=1e-6)


def test_plddt_is_on_0_to_100(tiny: EsmFold, batch) -> None:
    with torch.no_grad():
        plddt = tiny(**batch).plddt
    assert 1 < plddt.min() < plddt.max() <= 100


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.int32])
def test_masks_of_any_type(tiny: EsmFold, batch, kind) -> None:
    with torch.no_grad():
        expected = tiny(**batch).positions
        actual = tiny(batch["input_ids"], attention_mask=batch["attention_mask"].to(kind)).positions
    assert torch.equal(expected, actual)


def test_a_hole_in_the_mask_is_refused(tiny: EsmFold, batch) -> None:
    mask = batch["attention_mask"].clone()
    mask[0, 4] = 0
    with pytest.raises(ValueError, match="right only"):
        tiny(batch["input_ids"], attention_mask=mask)


def test_negative_recycles_and_unknown_arguments_are_refused(tiny: EsmFold, batch) -> None:
    with pytest.raises(ValueError, match="recycles"):
        tiny(**batch, recycles=-1)
    with pytest.raises(ValueError, match="num_recycles"):
        tiny(**batch, num_recycles=1)


def test_masking_pattern_hides_residues_and_returns_targets(tiny: EsmFold, batch) -> None:
    pattern = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    pattern[0, 3] = pattern[1, 2] = pattern[2, 20] = True  # the last is padding
    with torch.no_grad():
        output = tiny(**batch, masking_pattern=pattern, recycles=0)
        changed = batch["input_ids"].clone()
        changed[0, 3] = (changed[0, 3] + 7) % 20
        other = tiny(changed, batch["attention_mask"], masking_pattern=pattern, recycles=0)
    assert output.mlm_targets is not None
    assert (output.mlm_targets != -100).nonzero().tolist() == [[0, 3], [1, 2]]
    assert output.mlm_targets[0, 3] == batch["input_ids"][0, 3]
    # What is hidden cannot matter to anything but the atoms drawn on the frames.
    assert torch.equal(output.states, other.states)
    assert torch.equal(output.s_z, other.s_z)


def test_unknown_residues_have_a_backbone(make_pair, batch) -> None:
    stock, ours = make_pair()
    ids = batch["input_ids"].clone()
    ids[0, 5] = 20
    with torch.no_grad():
        expected = stock(ids, attention_mask=batch["attention_mask"])
        actual = ours(ids, attention_mask=batch["attention_mask"])
    assert expected.atom37_atom_exists[0, 5].sum() == 0
    assert actual.atom37_atom_exists[0, 5].nonzero().flatten().tolist() == [0, 1, 2, 4]  # N, CA, C, O
    atoms = actual.positions[-1, 0, 5, :4]
    assert (atoms[1] - atoms[0]).norm() == pytest.approx(1.46, abs=0.03)
    assert (atoms[1] - atoms[2]).norm() == pytest.approx(1.52, abs=0.03)
    known = batch["attention_mask"].bool().clone()
    known[0, 5] = False
    assert (actual.positions[:, known] - expected.positions[:, known]).abs().max() < 5e-4
    assert torch.allclose(actual.frames[:, 0], expected.frames[:, 0], atol=5e-4)


@pytest.mark.parametrize("trunk", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("language_model", [torch.float32, torch.bfloat16])
def test_precision_of_language_model_and_trunk(tiny: EsmFold, batch, language_model, trunk) -> None:
    with torch.no_grad():
        exact = tiny(**batch, recycles=0)
        frequencies = tiny.esm.rotary_embeddings.inv_freq.clone()
        tiny.set_precision(language_model=language_model, trunk=trunk)
        rounded = tiny(**batch, recycles=0)
    assert tiny.esm.dtype == language_model
    assert torch.equal(tiny.esm.rotary_embeddings.inv_freq, frequencies)
    assert rounded.positions.dtype == rounded.s_z.dtype == torch.float32
    assert {parameter.dtype for parameter in tiny.trunk.parameters()} == {torch.float32}
    real = batch["attention_mask"].bool()
    difference = (rounded.s_s - exact.s_s)[real].norm() / exact.s_s[real].norm()
    reduced = torch.bfloat16 in (language_model, trunk)
    assert difference < 0.05
    assert (difference > 1e-4) == reduced


def test_fp16_trunk_is_refused_with_the_reason(tiny: EsmFold) -> None:
    with pytest.raises(ConfigError, match="overflows"):
        tiny.set_precision(trunk=torch.float16)


def test_saved_model_loads_into_stock_transformers(tiny: EsmFold, make_pair: Callable, batch, tmp_path) -> None:
    from transformers.models.esm.modeling_esmfold import EsmForProteinFolding

    tiny.save_pretrained(tmp_path)
    stock = EsmForProteinFolding.from_pretrained(tmp_path).eval()
    assert stock.config.architectures == ["EsmForProteinFolding"]
    with torch.no_grad():
        assert_same(stock(**batch), tiny(**batch), batch["attention_mask"], 1e-5)

"""Samples of one batch through adapters of their own: each gets what it gets when its adapter runs alone."""

from __future__ import annotations

import pytest
import torch
from adapter_methods import METHODS, make_config
from peft import get_peft_model

from protfold_peft.adapters import LoRTAConfig, MixedBatchError

BASE = "__base__"
# More than one rank, and every method.
RANKS = {method: 2 + index for index, method in enumerate(METHODS)}


def with_all_methods(model, **options):
    """The model with an adapter of every method, named after it, and another of LoRTA that changes other modules."""
    model = get_peft_model(model, make_config("lorta", r=RANKS["lorta"], **options), adapter_name="lorta")
    for method in METHODS:
        if method != "lorta":
            torch.manual_seed(RANKS[method])
            model.add_adapter(method, make_config(method, r=RANKS[method], **options))
    return model.eval()


def alone(model, name, run):
    """What `run` gives for one adapter."""
    if name == BASE:
        with model.disable_adapter():
            return run()
    model.set_adapter(name)
    return run()


NAMES = ["tera", BASE, "lorta", "lora", "tenslora", "lotr", "lorta", "tensor_train", BASE]


@pytest.mark.parametrize("family", ["esm", "llama", "gpt2", "roberta"])
def test_each_sample_gets_its_own_adapter(make_model, family):
    torch.manual_seed(3)
    model = with_all_methods(make_model(family).double(), target_modules="all-linear")
    tokens = torch.randint(4, 24, (len(NAMES), 7))
    with torch.no_grad():
        mixed = model(input_ids=tokens, adapter_names=NAMES).logits
        for name in dict.fromkeys(NAMES):
            rows = [row for row, own in enumerate(NAMES) if own == name]
            expected = alone(model, name, lambda rows=rows: model(input_ids=tokens[rows]).logits)
            torch.testing.assert_close(mixed[rows], expected, rtol=0, atol=1e-10)
        by_adapter = [alone(model, name, lambda: model(input_ids=tokens[:1]).logits) for name in dict.fromkeys(NAMES)]
    # All adapters differ, so that a mistaken one would be seen.
    for index, first in enumerate(by_adapter):
        for second in by_adapter[:index]:
            assert (first - second).abs().max() > 1e-6


def test_whatever_is_active_does_not_matter(esm, tokens):
    model = with_all_methods(esm())
    names = ["tenslora", BASE]
    with torch.no_grad():
        outputs = []
        for active in ("lora", "tera"):
            model.set_adapter(active)
            outputs.append(model(input_ids=tokens, adapter_names=names).logits)
        plain = model(input_ids=tokens).logits
        assert torch.equal(*outputs)
        # Nothing of the call is left behind.
        assert torch.equal(model(input_ids=tokens).logits, plain)


def test_adapters_of_other_modules_mix(esm, tokens):
    model = get_peft_model(esm(), make_config("lorta", target_modules=["query"]), adapter_name="first")
    torch.manual_seed(5)
    model.add_adapter("second", make_config("lotr", target_modules=["value", "intermediate.dense"]))
    with torch.no_grad():
        mixed = model.eval()(input_ids=tokens, adapter_names=["first", "second"]).logits
        for row, name in enumerate(["first", "second"]):
            expected = alone(model, name, lambda row=row: model(input_ids=tokens[row : row + 1]).logits)
            torch.testing.assert_close(mixed[row : row + 1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generation(llama, num_beams):
    torch.manual_seed(4)
    model = with_all_methods(llama().double())
    names = ["tera", BASE, "lorta", "tensor_train"]
    prompts = torch.randint(4, 24, (len(names), 5))
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": num_beams, "min_new_tokens": 6}

    def generate(rows, **more):
        ids = prompts[rows]
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options, **more)

    mixed = generate(list(range(len(names))), adapter_names=names)
    sequences = []
    for row, name in enumerate(names):
        expected = alone(model, name, lambda row=row: generate([row]))
        assert torch.equal(mixed[row : row + 1], expected)
        sequences.append(alone(model, name, lambda: generate([0])))
    assert any(not torch.equal(sequences[0], other) for other in sequences[1:])


def test_heads_trained_in_full_go_with_their_adapter(llama, tokens):
    """PEFT does so for single linear modules."""
    model = get_peft_model(llama(), make_config("lorta", modules_to_save=["lm_head"]), adapter_name="first")
    torch.manual_seed(5)
    model.add_adapter("second", make_config("tenslora", modules_to_save=["lm_head"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name:
                parameter.add_(0.1 if ".first." in name else -0.2)
    model.eval()
    names, tokens = ["second", BASE, "first"], tokens[:1].repeat(3, 1)
    with torch.no_grad():
        mixed = model(input_ids=tokens, adapter_names=names).logits
        for row, name in enumerate(names):
            expected = alone(model, name, lambda: model(input_ids=tokens[:1]).logits)
            torch.testing.assert_close(mixed[row : row + 1], expected, rtol=0, atol=1e-5)


def test_a_disabled_model_takes_no_notice_of_names(esm, tokens):
    model = with_all_methods(esm())
    with torch.no_grad(), model.disable_adapter():
        expected = model(input_ids=tokens).logits
        assert torch.equal(model(input_ids=tokens, adapter_names=["lora", "tera"]).logits, expected)


def test_modules_whose_leading_axis_is_not_the_batch_are_refused(make_model, tokens):
    model = get_peft_model(make_model("opt"), make_config("lorta", target_modules=["q_proj", "fc1"])).eval()
    with pytest.raises(MixedBatchError, match=r"fc1.*leading axis of its input is not the batch") as caught:
        model(input_ids=tokens, adapter_names=["default", BASE])
    assert "set_adapter" in str(caught.value)


def test_an_adapter_that_leaves_those_modules_alone_is_mixed(make_model, tokens):
    """Though another adapter of the model changes them."""
    model = get_peft_model(make_model("opt"), make_config("lorta", target_modules=["q_proj", "fc1"]))
    model.add_adapter("projections", make_config("lorta", target_modules=["q_proj"]))
    with torch.no_grad():
        mixed = model.eval()(input_ids=tokens, adapter_names=["projections", BASE]).logits
        for row, name in enumerate(["projections", BASE]):
            expected = alone(model, name, lambda row=row: model(input_ids=tokens[row : row + 1]).logits)
            torch.testing.assert_close(mixed[row : row + 1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["tri_att_start.mha.linear_q", "tri_mul_out.linear_a_p", "mlp_pair.mlp.1"])
def test_the_pair_state_of_the_folding_trunk_is_refused(fold, target):
    model = get_peft_model(fold(), make_config("lorta", target_modules=[target])).eval()
    residues = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(5))
    with pytest.raises(MixedBatchError, match="leading axis of its input is not the batch"), torch.no_grad():
        model(residues, num_recycles=0, adapter_names=["default", BASE])


def test_the_sequence_state_of_the_folding_trunk_is_mixed(fold):
    model = get_peft_model(fold(), make_config("lorta", target_modules=["query", "seq_attention.proj"])).eval()
    residues = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(5))
    names = ["default", BASE]
    with torch.no_grad():
        mixed = model(residues, num_recycles=0, adapter_names=names).s_s
        for row, name in enumerate(names):
            expected = alone(model, name, lambda row=row: model(residues[row : row + 1], num_recycles=0).s_s)
            torch.testing.assert_close(mixed[row : row + 1], expected, rtol=0, atol=1e-4)


def test_what_cannot_be_served_is_refused(esm, tokens):
    model = get_peft_model(esm(), LoRTAConfig(r=2))
    names = ["default", BASE]
    with pytest.raises(MixedBatchError, match="training mode"):
        model.train()(input_ids=tokens, adapter_names=names)
    model.eval()
    with pytest.raises(MixedBatchError, match=r"non-existing adapter.*nobody"):
        model(input_ids=tokens, adapter_names=["default", "nobody"])
    with pytest.raises(MixedBatchError, match="3 and 2"):
        model(input_ids=tokens, adapter_names=[*names, BASE])
    model.merge_adapter()
    with pytest.raises(MixedBatchError, match="merged"):
        model(input_ids=tokens, adapter_names=names)
    model.unmerge_adapter()
    # After an error the model works as before.
    with torch.no_grad():
        model(input_ids=tokens, adapter_names=names)
        model(input_ids=tokens)

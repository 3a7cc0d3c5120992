"""One adapter per sample of a batch: each sample as if its adapter were alone."""

from __future__ import annotations

import pytest
import torch
from adapter_methods import METHODS, make_config
from peft import get_peft_model
from transformers import RobertaConfig, RobertaForSequenceClassification

from protfold_peft.adapters import MixedBatchError, collapsed

FAMILIES = ["esm", "llama", "gpt2", "roberta", "esmc"]
TOKENS = torch.randint(4, 24, (8, 7), generator=torch.Generator().manual_seed(3))


def with_adapters(model, names=tuple(METHODS)):
    """Adapters of all methods, of different ranks and on different modules."""
    torch.manual_seed(2)
    for place, name in enumerate(names):
        targets = "all-linear" if place % 2 == 0 else None
        config = make_config(name.split("-")[0], r=2 + place % 3, target_modules=targets)
        if place == 0:
            model = get_peft_model(model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    return model.eval()


def alone(model, tokens, name):
    if name == "__base__":
        with model.disable_adapter():
            return model(input_ids=tokens).logits
    model.set_adapter(name)
    return model(input_ids=tokens).logits


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_sample_is_as_with_its_adapter_alone(make_model, family):
    model = with_adapters(make_model(family))
    names = ["lorta", "__base__", "tera", "lotr", "lorta", "tensor_train", "tenslora", "lora"]
    mixed = model(input_ids=TOKENS, adapter_names=names).logits
    for place, name in enumerate(names):
        expected = alone(model, TOKENS[place : place + 1], name)
        torch.testing.assert_close(mixed[place : place + 1], expected, rtol=0, atol=1e-5)
    # The active adapter has no part in it, and stays active.
    model.set_adapter("lotr")
    assert torch.equal(model(input_ids=TOKENS, adapter_names=names).logits, mixed)
    assert model.active_adapters == ["lotr"]
    with collapsed(model):
        torch.testing.assert_close(model(input_ids=TOKENS, adapter_names=names).logits, mixed, rtol=0, atol=1e-5)
    # Without any, it is the base model.
    plain = make_model(family)(input_ids=TOKENS).logits
    torch.testing.assert_close(model(input_ids=TOKENS, adapter_names=["__base__"] * 8).logits, plain, rtol=0, atol=1e-5)


@torch.no_grad()
def test_weights_of_adapters_count(esm):
    model = with_adapters(esm(), ("lorta", "lotr"))
    model.base_model.set_adapter_weights({"lorta": 0.5, "lotr": 2.0})
    mixed = model(input_ids=TOKENS, adapter_names=["lorta", "lotr"] * 4).logits
    model.base_model.set_adapter_weights({"lotr": 2.0})
    expected = model(input_ids=TOKENS).logits
    torch.testing.assert_close(mixed[1::2], expected[1::2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 2])
def test_generation(make_model, beams):
    model = with_adapters(make_model("llama"), ("lorta", "tera", "lotr"))
    names = ["lorta", "tera", "__base__", "lotr"]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    mixed = model.generate(input_ids=TOKENS[:4], adapter_names=names, **options)
    for place, name in enumerate(names):
        one = TOKENS[place : place + 1]
        if name == "__base__":
            with model.disable_adapter():
                expected = model.generate(input_ids=one, **options)
        else:
            model.set_adapter(name)
            expected = model.generate(input_ids=one, **options)
        assert torch.equal(mixed[place], expected[0])


@torch.no_grad()
def test_heads_that_were_trained_in_full_go_with_their_adapter():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    base = RobertaForSequenceClassification(
        RobertaConfig(vocab_size=40, max_position_embeddings=32, num_labels=3, **sizes)
    ).eval()
    plain = base(input_ids=TOKENS).logits
    model = get_peft_model(base, make_config("lorta", modules_to_save=["classifier.out_proj"]), adapter_name="one")
    model.add_adapter("two", make_config("tenslora", modules_to_save=["classifier.out_proj"]))
    model.eval()
    for name, parameter in model.named_parameters():
        if ".modules_to_save.one." in name:
            parameter.add_(0.1)
        if ".modules_to_save.two." in name:
            parameter.mul_(2)
    names = ["one", "two", "__base__"] * 2 + ["one", "two"]
    mixed = model(input_ids=TOKENS, adapter_names=names).logits
    for name in ("one", "two"):
        model.set_adapter(name)
        own = [place for place, other in enumerate(names) if other == name]
        torch.testing.assert_close(mixed[own], model(input_ids=TOKENS[own]).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[[2, 5]], plain[[2, 5]], rtol=0, atol=1e-5)


def test_what_cannot_be_served_is_refused(esm, make_model, fold):
    model = with_adapters(esm(), ("lorta", "lotr"))
    for names, says in [
        (["lorta"] * 7, "7 and 8 respectively"),
        (["lorta", "nobody"] * 4, "non-existing adapter.*nobody"),
    ]:
        with pytest.raises(MixedBatchError, match=says):
            model(input_ids=TOKENS, adapter_names=names)
    with pytest.raises(MixedBatchError, match="training mode"):
        model.train()(input_ids=TOKENS, adapter_names=["lorta"] * 8)
    model.eval().merge_adapter()
    with pytest.raises(MixedBatchError, match="merged adapters"):
        model(input_ids=TOKENS, adapter_names=["lotr"] * 8)


def test_modules_whose_leading_axis_is_not_the_batch_are_refused(make_model, fold):
    """OPT flattens batch and tokens before its feed-forward maps; ESMFold goes through the pair state in chunks, and
    with three samples in chunks of the right size the lengths would even agree."""
    opt = with_adapters(make_model("opt"), ("lorta",))
    with pytest.raises(MixedBatchError, match=r"layers\.0\.fc1': the leading axis of its input is not the batch"):
        opt(input_ids=TOKENS, adapter_names=["lorta"] * 8)
    attention_only = with_adapters(make_model("opt"), ("lotr", "lora"))
    attention_only.delete_adapter("lotr")
    with torch.no_grad():
        mixed = attention_only(input_ids=TOKENS, adapter_names=["lora", "__base__"] * 4).logits
        torch.testing.assert_close(mixed[::2], alone(attention_only, TOKENS, "lora")[::2], rtol=0, atol=1e-5)
    folding = get_peft_model(fold(), make_config("lorta", target_modules=["tri_att_start.mha.linear_q"])).eval()
    with pytest.raises(MixedBatchError, match=r"tri_att_start\.mha\.linear_q'"):
        folding(torch.zeros(3, 5, dtype=torch.long), num_recycles=0, adapter_names=["default"] * 3)
    folding = get_peft_model(fold(), make_config("lorta", target_modules=["query", "seq_attention.proj"])).eval()
    residues = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        mixed = folding(residues, num_recycles=0, adapter_names=["default", "__base__"]).positions
        expected = folding(residues[:1], num_recycles=0).positions
    torch.testing.assert_close(mixed[:, :1], expected, rtol=0, atol=1e-3)

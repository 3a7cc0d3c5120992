"""Every method through the life of a PEFT adapter, on every family of models."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from adapter_methods import METHODS, make_config
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from protfold_peft.adapters import collapsed, describe_adapters, load_adapter
from protfold_peft.adapters.cards import method_name

FAMILIES = ["esm", "llama", "gpt2", "roberta", "opt", "esmc"]
CASES = [(family, method) for family in FAMILIES for method in METHODS]


def adapt(model, method, **options):
    torch.manual_seed(2)
    return get_peft_model(model, make_config(method, target_modules="all-linear", **options)).eval()


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize(("family", "method"), CASES)
def test_save_load_disable_merge_and_unload(make_model, tokens, tmp_path, family, method):
    model = adapt(make_model(family), method)
    plain, expected = logits(make_model(family), tokens), logits(model, tokens)
    assert not torch.allclose(plain, expected)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == model.get_nb_trainable_parameters()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        loaded = PeftModel.from_pretrained(make_model(family), tmp_path).eval()
    assert type(loaded.peft_config["default"]) is METHODS[method][0]
    assert torch.equal(logits(loaded, tokens), expected)
    assert torch.equal(
        logits(load_adapter(make_model(family), tmp_path, low_cpu_mem_usage=True).eval(), tokens), expected
    )
    with model.disable_adapter():
        assert torch.equal(logits(model, tokens), plain)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, tokens), expected, rtol=0, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, tokens), expected, rtol=0, atol=1e-4)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, tokens), expected, rtol=0, atol=1e-4)
    assert set(merged.state_dict()) == set(make_model(family).state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_pefts_auto_class_finds_base_and_adapter(make_model, tokens, tmp_path, method):
    make_model("llama").save_pretrained(tmp_path / "base")
    model = adapt(LlamaForCausalLM.from_pretrained(tmp_path / "base"), method)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


@pytest.mark.parametrize("method", METHODS)
def test_the_model_card_says_how_to_load_it_and_is_kept(esm, tmp_path, method):
    model = adapt(esm(), method)
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    text = card.read_text()
    assert "More Information Needed" not in text
    assert text.startswith("---\n")
    assert "library_name: peft" in text
    assert text.index("import protfold_peft") < text.index("from peft import PeftModel")
    assert f"# {method_name(METHODS[method][0].network)} adapter" in text
    assert "| rank | 3 |" in text
    assert "| adapted linear maps | 18 |" in text
    assert f"| parameters | {model.get_nb_trainable_parameters()[0]:,} |" in text
    card.write_text(text + "\nMine.\n")
    model.save_pretrained(tmp_path)
    assert card.read_text().count("Mine.") == card.read_text().count("### Framework versions") == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_configuration_describes_itself(esm, method):
    (adapter,) = adapt(esm(), method).describe_adapters()
    assert adapter == describe_adapters(adapt(esm(), method))[0]
    for group in adapter.groups:
        assert group.parameters == sum(torch.Size(shape).numel() for shape in group.factors.values())
        assert set(group.ranks) <= set(group.modes) | {"rank"}


@pytest.mark.parametrize("method", METHODS)
def test_stock_esmfold_with_adapters_in_its_trunk(fold, tmp_path, method):
    """The fused `(head, [q, k, v], j)` projection among them, checked against a dense change of the weights."""
    torch.manual_seed(2)
    targets = ["query", "seq_attention.proj", "tri_att_start.mha.linear_q", "mlp_pair.mlp.1"]
    model = get_peft_model(fold().double(), make_config(method, target_modules=targets)).eval()
    sites = model.peft_config["default"].sites
    assert {site.key for site in sites if site.rows is not None} == {
        f"trunk.blocks.0.seq_attention.proj[{kind}]" for kind in ("query", "key", "value")
    }
    residues = torch.randint(0, 20, (1, 6), generator=torch.Generator().manual_seed(5))
    reference = fold().double()
    with torch.no_grad():
        for network in model.base_model.networks("default").values():
            for site in network.sites:
                weight = reference.get_submodule(site.path).weight
                if site.rows is None:
                    weight += network.delta(site)
                else:
                    # 4 heads of width 8; of each head the rows of query, key and value follow each other.
                    part = ["query", "key", "value"].index(site.kind)
                    weight.view(4, 3, 8, 32)[:, part] += network.delta(site).view(4, 8, 32)
        expected = reference(residues, num_recycles=0).positions
        actual = model(residues, num_recycles=0).positions
        assert (actual - fold().double()(residues, num_recycles=0).positions).abs().max() > 1e-4
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)
        model.save_pretrained(tmp_path)
        loaded = load_adapter(fold().double(), tmp_path).eval()
        assert torch.equal(loaded(residues, num_recycles=0).positions, actual)


@pytest.mark.parametrize("method", METHODS)
def test_copies_are_apart_and_complete(gpt2_model, tokens, method):
    model = adapt(gpt2_model, method)
    expected = logits(model, tokens)
    twin = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    whole = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        for factor in model.base_model.tensor_factors.parameters():
            factor.zero_()
    assert torch.equal(logits(twin, tokens), expected)
    assert torch.equal(logits(whole, tokens), expected)
    assert not torch.equal(logits(model, tokens), expected)


@pytest.fixture
def gpt2_model(make_model):
    return make_model("gpt2")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_with_and_without_kept_pairs(make_model, method, family):
    model = adapt(make_model(family), method)
    prompt = torch.randint(4, 24, (2, 3), generator=torch.Generator().manual_seed(4))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert not torch.equal(logits(model, prompt), logits(make_model(family), prompt))
    expected = model.generate(input_ids=prompt, **options)
    with collapsed(model):
        assert torch.equal(model.generate(input_ids=prompt, **options), expected)


@pytest.mark.parametrize("method", METHODS)
def test_kept_pairs_notice_every_change(esm, tokens, method):
    model = adapt(esm(), method)
    model.add_adapter("other", make_config(method, r=2, target_modules="all-linear"))
    factor = next(model.base_model.tensor_factors["default"].parameters())

    def check():
        kept = logits(model, tokens)
        for layer in model.modules():
            if hasattr(layer, "_collapsed"):
                layer._collapsed = {}
        assert torch.equal(logits(model, tokens), kept)
        return kept

    with collapsed(model), torch.no_grad():
        before = check()
        factor.mul_(2)  # an optimizer's way
        changed = check()
        assert not torch.equal(before, changed)
        factor.data = factor.data / 2  # a device's or a parallel wrapper's way
        assert torch.equal(check(), before)
        model.base_model.set_adapter_weights({"default": 0.5})
        assert not torch.equal(check(), before)
        model.base_model.set_adapter_weights({"default": 1})
        assert torch.equal(check(), before)
        model.set_adapter("other")
        assert not torch.equal(check(), before)
    model.set_adapter("default")
    assert torch.equal(logits(model, tokens), before)
    # With gradients nothing is kept, so that every step sees its own.
    with collapsed(model):
        model(input_ids=tokens).logits.sum().backward()
        assert all(layer._collapsed == {} for layer in model.modules() if hasattr(layer, "_collapsed"))


@pytest.mark.parametrize("method", METHODS)
def test_compiles_into_one_graph(esm, tokens, method):
    torch._dynamo.reset()
    model = adapt(esm(), method)
    expected = logits(model, tokens)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, tokens), expected, rtol=0, atol=1e-5)

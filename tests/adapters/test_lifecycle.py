"""The adapter as a PEFT method: save, load, several adapters, merging, copying."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import warnings

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file

from protfold_peft.adapters import (
    BrokenAdapterError,
    LoRTAConfig,
    TensorAdapterConfig,
    TensorLinear,
    TensorPeftType,
    load_adapter,
)
from protfold_peft.errors import CheckpointError, ConfigError

FACTORS = ["A", "B", "Ch", "Cl", "Cm"]


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


def own_network(layer, name="default"):
    return layer.network(name, layer.tensor_sites[name][0])


def factors(model, name="default"):
    return {key: value.clone() for key, value in model.base_model.tensor_factors[name].state_dict().items()}


def test_names_and_ownership(esm, adapted):
    model = adapted(esm())
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable == [f"base_model.tensor_factors.default.attention.{name}" for name in FACTORS]
    layers = [module for module in model.modules() if isinstance(module, TensorLinear)]
    assert len(layers) == 12
    assert len({id(own_network(layer)) for layer in layers}) == 1
    assert [key for key in model.state_dict() if "tensor_" in key] == trainable


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_is_exact_and_silent(esm, adapted, tokens, tmp_path, low_cpu_mem_usage, dtype):
    model = adapted(esm().to(dtype), target_modules="all-linear")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == model.get_nb_trainable_parameters()[0]
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert set(saved) == {
        f"base_model.tensor_factors.{group}.{name}"
        for group in ("attention", "linear_48x32", "linear_32x48")
        for name in FACTORS
        if group == "attention" or name != "Ch"
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        loaded = PeftModel.from_pretrained(esm().to(dtype), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert type(loaded.peft_config["default"]) is LoRTAConfig
    for key, value in factors(model).items():
        assert torch.equal(factors(loaded)[key], value)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


def test_a_grouped_query_adapter_saves_both_head_factors(llama, adapted, tokens, tmp_path):
    model = adapted(llama())
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved["base_model.tensor_factors.attention.Ch"].shape == (4, 3)
    assert saved["base_model.tensor_factors.attention.Ch_2"].shape == (2, 3)
    assert torch.equal(logits(load_adapter(llama(), tmp_path), tokens), logits(model, tokens))


def test_the_stored_layout_decides_what_a_row_means(esm, adapted, tokens, tmp_path):
    """Swap the rows of two layers in the file: the loaded update must be that of a model with the layers' factors
    swapped, which discovery order alone would never give."""
    model = adapted(esm())
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["layout"]["groups"]["attention"]["layers"] == "0-2"
    config["layout"]["groups"]["attention"]["layers"] = "2,1,0"
    path.write_text(json.dumps(config))
    swapped = load_adapter(esm(), tmp_path)
    with torch.no_grad():
        rows = model.base_model.networks("default")["attention"].Cl
        rows.copy_(rows[[2, 1, 0]].clone())
    assert torch.equal(logits(swapped, tokens), logits(model, tokens))


def test_stock_esmfold_trains_saves_and_loads(fold, adapted, tmp_path):
    model = adapted(fold(), target_modules=["query", "key", "value", "attention.output.dense"])
    assert len(model.targeted_module_names) == 12
    assert all(name.startswith("esm.encoder.layer.") for name in model.targeted_module_names)
    residues = torch.randint(0, 20, (1, 6), generator=torch.Generator().manual_seed(5))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fold(), tmp_path)
    with torch.no_grad():
        positions, plain = (m(residues, num_recycles=0).positions for m in (model, fold()))
        assert torch.equal(loaded(residues, num_recycles=0).positions, positions)
    assert not torch.equal(positions, plain)


def test_an_adapter_moves_between_masked_lm_and_esmfold(esm, fold, adapted, tmp_path):
    model = adapted(esm())
    model.save_pretrained(tmp_path)
    loaded = load_adapter(fold(), tmp_path)
    assert all(torch.equal(value, factors(loaded)[key]) for key, value in factors(model).items())


def test_training_reaches_only_the_factors_and_resumes(esm, tokens, tmp_path):
    model = get_peft_model(esm(), LoRTAConfig(r=4, init="rank_stable"))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(50):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("tensor_factors" in name), name
    model.save_pretrained(tmp_path)
    resumed = PeftModel.from_pretrained(esm(), tmp_path, is_trainable=True)
    assert [n for n, p in resumed.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    frozen = PeftModel.from_pretrained(esm(), tmp_path)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_checkpoint_loads_into_the_adapter_that_is_there(esm, adapted, tokens, tmp_path):
    """The way transformers' Trainer resumes."""
    model, other = adapted(esm()), adapted(esm(), seed=99)
    model.save_pretrained(tmp_path)
    other.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert torch.equal(logits(other, tokens), logits(model, tokens))
    assert all(parameter.requires_grad for parameter in other.base_model.tensor_factors.parameters())


def test_another_adapter_does_not_take_the_place_of_one_of_its_name(esm, adapted, tmp_path):
    """PEFT would load its factors and keep the scale, or the seed, of the one that is there."""
    adapted(esm(), alpha=3.0).save_pretrained(tmp_path)
    model = adapted(esm(), alpha=8.0)
    before = factors(model)
    with pytest.raises(
        ConfigError, match=r"'default' already, and its alpha differs \(3\.0 in .*, 8\.0 in the model\)"
    ):
        load_adapter(model, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in factors(model).items())
    same = load_adapter(adapted(esm(), alpha=3.0, seed=9), tmp_path)
    assert all(torch.equal(value, factors(adapted(esm()))[key]) for key, value in factors(same).items())
    load_adapter(model, tmp_path, adapter_name="other")


@pytest.mark.parametrize("bias", ["all", "tensor_network_only"])
def test_biases_are_trained_and_saved_on_request(esm, adapted, tokens, tmp_path, bias):
    model = adapted(esm(), bias=bias, target_modules=["query"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad and name.endswith("bias")}
    assert any(".query." in name for name in trained)
    assert any(".key." in name for name in trained) == (bias == "all")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapter(esm(), tmp_path), tokens), logits(model, tokens))


def test_saving_as_a_pickle_is_refused_where_it_happens(esm, adapted, tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickle.*safe_serialization=True"):
        adapted(esm()).save_pretrained(tmp_path, safe_serialization=False)


def test_roads_that_peft_closes_to_shared_factors_fail_clearly(esm):
    with pytest.raises(ValueError, match="shared state"):
        inject_adapter_in_model(LoRTAConfig(), esm())
    # Newer transformers ask for a newer PEFT before they look at the adapter.
    with pytest.raises((ValueError, ImportError), match=r"shared state|version of PEFT"):
        esm().add_adapter(LoRTAConfig())
    with pytest.raises(ValueError, match="TENSOR_NETWORK"):
        get_peft_model(esm(), LoRTAConfig(), mixed=True)


def test_disabling_gives_the_base_model(esm, adapted, tokens):
    model = adapted(esm())
    changed, plain = logits(model, tokens), logits(esm(), tokens)
    assert not torch.allclose(changed, plain)
    with model.disable_adapter():
        assert torch.equal(logits(model, tokens), plain)
    assert torch.equal(logits(model, tokens), changed)
    assert all(parameter.requires_grad for parameter in model.base_model.tensor_factors.parameters())


def test_several_adapters(esm, adapted, tokens):
    model = adapted(esm())
    first = logits(model, tokens)
    torch.manual_seed(9)
    model.add_adapter("other", LoRTAConfig(r=5, init_weights=False, target_modules=["query", "intermediate.dense"]))
    assert torch.equal(logits(model, tokens), first)
    trainable = {name.split(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"default"}

    model.set_adapter("other")
    trainable = {name.split(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"other"}
    second = logits(model, tokens)
    alone = adapted(esm(), seed=9, r=5, target_modules=["query", "intermediate.dense"])
    assert torch.equal(second, logits(alone, tokens))

    model.base_model.set_adapter(["default", "other"])
    both = logits(model, tokens)
    reference = esm()
    with torch.no_grad():
        for name in ("default", "other"):
            for network in model.base_model.networks(name).values():
                for site in network.sites:
                    reference.get_submodule(site.path).weight += network.delta(site)
    torch.testing.assert_close(both, logits(reference, tokens), rtol=0, atol=1e-5)

    model.set_adapter("default")
    model.delete_adapter("other")
    assert list(model.base_model.tensor_factors) == ["default"]
    assert torch.equal(logits(model, tokens), first)


def test_adding_an_adapter_leaves_a_frozen_one_frozen(esm, adapted):
    model = adapted(esm())
    model.set_requires_grad("default", requires_grad=False)
    model.add_adapter("other", LoRTAConfig(r=2))
    assert not any(parameter.requires_grad for parameter in model.base_model.tensor_factors.parameters())


def test_a_failed_addition_leaves_the_model_as_it_was(esm, adapted, tokens):
    model = adapted(esm())
    before = logits(model, tokens)
    for name, config in [("other", LoRTAConfig(target_modules=["nothing"])), ("B", LoRTAConfig())]:
        with pytest.raises(ConfigError):
            model.add_adapter(name, config)
    assert list(model.base_model.tensor_factors) == list(model.peft_config) == ["default"]
    assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("name", ["A", "Cl", "attention", "tensor_factors", "v1.0"])
def test_names_that_peft_would_confuse_are_refused(esm, name):
    """With adapters 'x' and 'A', PEFT would leave every factor A out of the file of 'x'."""
    with pytest.raises(ConfigError, match="cannot be the name"):
        get_peft_model(esm(), LoRTAConfig(), adapter_name=name)


def test_two_adapters_save_apart_and_load_under_other_names(esm, adapted, tokens, tmp_path):
    model = adapted(esm())
    torch.manual_seed(9)
    model.add_adapter("other", LoRTAConfig(r=5, init_weights=False))
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 5
    loaded = load_adapter(esm(), tmp_path / "other", adapter_name="first")
    loaded = load_adapter(loaded, tmp_path, adapter_name="second")
    for source, target in [("other", "first"), ("default", "second")]:
        for key, value in factors(model, source).items():
            assert torch.equal(factors(loaded, target)[key], value)


def test_one_config_serves_several_models(esm):
    """With the same layout the models share the object, as PEFT expects; with another, each keeps its own."""
    config = LoRTAConfig(r=2)
    shallow = get_peft_model(esm(num_hidden_layers=2), config)
    deep = get_peft_model(esm(), config)
    assert shallow.peft_config["default"] is config
    assert [len(model.peft_config["default"].sites) for model in (shallow, deep)] == [8, 12]
    deep.add_adapter("reference", deep.peft_config["default"])
    assert deep.peft_config["reference"] is deep.peft_config["default"]


def test_changed_targets_do_not_meet_an_old_layout(esm, adapted, tmp_path):
    made = adapted(esm(), target_modules=["query"]).peft_config["default"]
    with pytest.raises(ConfigError, match=r"target_modules=\['key'\].*\['query'\].*layout=None"):
        get_peft_model(esm(), dataclasses.replace(made, target_modules=["key"]))
    fresh = get_peft_model(esm(), dataclasses.replace(made, target_modules=["key"], layout=None))
    assert {site.kind for site in fresh.peft_config["default"].sites} == {"key"}


def test_many_targets_are_saved_as_given(esm, adapted, tmp_path):
    """PEFT shortens lists of twenty and more; the layout was made from the list as given."""
    names = ["self.query", "self.key", "self.value", "output.dense"]
    targets = [f"esm.encoder.layer.{layer}.attention.{name}" for layer in range(5) for name in names]
    model = adapted(esm(num_hidden_layers=6), target_modules=targets)
    model.save_pretrained(tmp_path)
    assert load_adapter(esm(num_hidden_layers=6), tmp_path).peft_config["default"].target_modules == targets


def test_a_reference_adapter_is_copied_by_name(esm, adapted):
    """The way preference optimisation copies the policy's adapter: replace `.default.` in parameter names."""
    model = adapted(esm())
    model.add_adapter("reference", model.peft_config["default"])
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if ".default." in name:
                parameters[name.replace(".default.", ".reference.")].copy_(parameter)
    assert all(torch.equal(value, factors(model, "reference")[key]) for key, value in factors(model).items())


@pytest.mark.parametrize("safe_merge", [False, True])
def test_merge_and_unmerge(esm, adapted, tokens, safe_merge):
    model = adapted(esm(), target_modules="all-linear")
    expected = logits(model, tokens)
    weight = model.get_base_model().esm.encoder.layer[0].attention.self.query.weight
    original = weight.clone()
    model.merge_adapter(safe_merge=safe_merge)
    assert not torch.allclose(weight, original)
    torch.testing.assert_close(logits(model, tokens), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("default")
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, tokens), logits(esm(), tokens), rtol=0, atol=1e-5)
    torch.testing.assert_close(weight, original, rtol=0, atol=1e-7)
    torch.testing.assert_close(logits(model, tokens), expected, rtol=0, atol=1e-5)


def test_merge_and_unload_gives_a_plain_model(esm, adapted, tokens):
    model = adapted(esm())
    expected = logits(model, tokens)
    merged = model.merge_and_unload()
    assert set(merged.state_dict()) == set(esm().state_dict())
    torch.testing.assert_close(logits(merged, tokens), expected, rtol=0, atol=1e-5)
    plain = adapted(esm()).unload()
    assert torch.equal(logits(plain, tokens), logits(esm(), tokens))


def test_safe_merge_refuses_a_broken_adapter(esm, adapted, tokens):
    model = adapted(esm())
    with torch.no_grad():
        model.base_model.networks("default")["attention"].B[0, 0] = torch.nan
    weight = model.get_base_model().esm.encoder.layer[0].attention.self.query.weight.clone()
    with pytest.raises(BrokenAdapterError, match=r"layer\.0\.attention\.self\.query"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(model.get_base_model().esm.encoder.layer[0].attention.self.query.weight, weight)


def test_a_deep_copy_is_apart_from_its_original(esm, adapted, tokens):
    model = adapted(esm())
    expected = logits(model, tokens)
    twin = copy.deepcopy(model)
    layer = next(module for module in twin.modules() if isinstance(module, TensorLinear))
    assert own_network(layer) is twin.base_model.networks("default")["attention"]
    with torch.no_grad():
        for factor in model.base_model.tensor_factors.parameters():
            factor.zero_()
    assert torch.equal(logits(twin, tokens), expected)
    assert torch.equal(logits(model, tokens), logits(esm(), tokens))


def test_state_dict_and_whole_model_survive_torch_save(esm, adapted, tokens):
    model = adapted(esm())
    expected = logits(model, tokens)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = adapted(esm(), seed=99)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(logits(other, tokens), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    whole = torch.load(buffer, weights_only=False)
    assert torch.equal(logits(whole, tokens), expected)
    layer = next(module for module in whole.modules() if isinstance(module, TensorLinear))
    assert own_network(layer) is whole.base_model.networks("default")["attention"]


def test_peft_state_dict_round_trip(esm, adapted, tokens):
    model, other = adapted(esm()), adapted(esm(), seed=99)
    result = set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    assert not result.unexpected_keys
    assert torch.equal(logits(other, tokens), logits(model, tokens))


def test_modules_to_save_travel_with_the_adapter(esm, adapted, tokens, tmp_path):
    model = adapted(esm(), modules_to_save=["lm_head"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in saved.values()) == model.get_nb_trainable_parameters()[0]
    assert torch.equal(logits(PeftModel.from_pretrained(esm(), tmp_path), tokens), logits(model, tokens))


def test_pefts_own_reader_gives_the_face(esm, adapted, tmp_path):
    adapted(esm()).save_pretrained(tmp_path)
    assert type(PeftConfig.from_pretrained(tmp_path)) is LoRTAConfig


def test_status_names_the_method(esm, adapted):
    status = adapted(esm()).get_model_status()
    assert status.peft_types == {"default": "TENSOR_NETWORK"}
    assert (status.num_adapter_layers, status.trainable_params) == (12, 3 * (32 + 8 + 4 + 3 + 4))
    assert status.available_adapters == ["default"]
    assert TensorPeftType.TENSOR_NETWORK == "TENSOR_NETWORK"


def test_the_generic_config_gives_the_face_of_its_network():
    assert type(TensorAdapterConfig(network="cp", r=4)) is LoRTAConfig
    assert isinstance(LoRTAConfig(), PeftConfig)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 4}, "no key 'rank'"),
        ({"alfa": 4}, "did you mean 'alpha'"),
        ({"r": 0}, "r=0"),
        ({"r": 2.5}, r"r=2\.5"),
        ({"r": True}, "r=True"),
        ({"alpha": 0}, "alpha=0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
        ({"bias": "some"}, "bias='some' is not known; use none, all, tensor_network_only"),
        ({"init": "zeros"}, "authors, orthogonal, rank_stable"),
        ({"head_layout": "interleaved"}, "authors_peft, authors_litgpt"),
        ({"network": "tucker"}, "not the face of network 'tucker'; use TensLoRAConfig"),
        ({"layers_pattern": "layers"}, "without layers_to_transform"),
    ],
)
def test_bad_options_are_one_line_errors(options, says):
    with pytest.raises(ConfigError, match=says) as caught:
        LoRTAConfig(**options)
    assert "\n" not in str(caught.value)


def test_an_unknown_network_is_refused():
    with pytest.raises(ConfigError, match="network='tuck' is not known; use one of cp, tucker2"):
        TensorAdapterConfig(network="tuck")

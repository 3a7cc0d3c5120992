"""Fitting: adapters that were exported are found again, and others as near as they can be."""

from __future__ import annotations

import json
import math

import pytest
import torch
from adapter_methods import FORMS, METHODS, make_config
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import EsmConfig, EsmForMaskedLM, RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification

from protfold_peft.adapters import load_adapter
from protfold_peft.adapters.folders.export import export_lora
from protfold_peft.adapters.folders.fit import METHODS as NAMES
from protfold_peft.adapters.folders.fit import fit_adapter
from protfold_peft.adapters.folders.lora_folder import read_lora
from protfold_peft.adapters.folders.saved import read_adapter
from protfold_peft.errors import CheckpointError, ConfigError

NAME_OF = {network: name for name, network in NAMES.items()}


def exported(model, form, tmp_path, **options):
    """The base model's folder and that of a LoRA that is a tensor adapter of rank 3."""
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    adapted = get_peft_model(model, make_config(form, **({"target_modules": "all-linear"} | options))).eval()
    adapted.save_pretrained(tmp_path / "ours")
    export_lora(tmp_path / "ours", tmp_path / "lora")
    return adapted


def plain_lora(model, tmp_path, **options):
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    settings = {"r": 4, "target_modules": ["query", "value"], "init_lora_weights": False} | options
    adapted = get_peft_model(model, LoraConfig(**settings)).eval()
    adapted.save_pretrained(tmp_path / "lora")
    return adapted


def measured_residual(tmp_path, model):
    """From the dense updates of both folders, loaded by PEFT; the whole and the worst module."""
    ours = load_adapter(model(), tmp_path / "fit").base_model.model
    theirs = PeftModel.from_pretrained(model(), tmp_path / "lora").base_model.model
    lost = whole = worst = 0.0
    for path, module in ours.named_modules():
        if hasattr(module, "tensor_factors") and hasattr(module, "get_delta_weight"):
            expected = theirs.get_submodule(path).get_delta_weight("default").double()
            with torch.no_grad():
                square = (module.get_delta_weight("default").double() - expected).square().sum().item()
            lost, whole = lost + square, whole + expected.square().sum().item()
            worst = max(worst, math.sqrt(square / expected.square().sum().item()))
    return math.sqrt(lost / whole), worst


@pytest.mark.parametrize("family", ["esm", "gpt2", "llama", "roberta"])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "tera"])
def test_an_exported_adapter_is_found_again(make_model, tokens, tmp_path, family, method):
    if (family, method) == ("llama", "tenslora"):
        pytest.skip("the search may end beside the best ranks of a Tucker tensor with two numbers of heads")
    adapted = exported(make_model(family), method, tmp_path)
    base = str(tmp_path / "base")
    report = fit_adapter(tmp_path / "lora", tmp_path / "fit", method=method, rank=3, base=base)
    assert report.worst_residual < 1e-5
    assert report.parameters < report.lora_parameters or method == "lora"
    again = load_adapter(make_model(family), tmp_path / "fit").eval()
    assert type(again.peft_config["default"]) is FORMS[method][0]
    expected, base_logits = adapted(input_ids=tokens).logits, make_model(family)(input_ids=tokens).logits
    difference = (again(input_ids=tokens).logits - expected).abs().max()
    assert difference < 1e-4 * (expected - base_logits).abs().max()


@pytest.mark.parametrize("form", ["tensor_train_heads", "tenslora_att", "tenslora_qkv_depth", "lorta_rslora"])
def test_other_forms_are_found_again(esm, tmp_path, form):
    exported(esm(), form, tmp_path)
    config, own = FORMS[form]
    method = NAME_OF[config.network]
    base = str(tmp_path / "base")
    report = fit_adapter(tmp_path / "lora", tmp_path / "fit", method=method, rank=3, base=base, options=own)
    assert report.worst_residual < 1e-5


@pytest.mark.parametrize("method", ["lorta", "lotr", "tensor_train", "tenslora"])
def test_the_residual_is_that_of_the_dense_updates(esm, tmp_path, method):
    """A LoRA that is no tensor of low rank; with rsLoRA and patterns, whose scale PEFT itself tells."""
    patterns = {"rank_pattern": {"layer.1.attention.self.query": 2}, "alpha_pattern": {"value": 3}}
    plain_lora(esm(), tmp_path, lora_alpha=5, use_rslora=True, **patterns)
    base = str(tmp_path / "base")
    report = fit_adapter(tmp_path / "lora", tmp_path / "fit", method=method, rank=4, base=base)
    whole, worst = measured_residual(tmp_path, esm)
    assert 0.2 < report.residual < 1
    assert report.residual == pytest.approx(whole, rel=1e-4)
    assert report.worst_residual == pytest.approx(worst, rel=1e-4)


def test_more_rank_is_nearer(esm, tmp_path):
    plain_lora(esm(), tmp_path)
    found = []
    for rank in (1, 4, 16):
        base = str(tmp_path / "base")
        found.append(fit_adapter(tmp_path / "lora", tmp_path / "fit", rank=rank, base=base, overwrite=True).residual)
    assert found[0] > found[1] > found[2]


def test_lora_of_its_own_rank_is_exact_and_of_less_the_best(esm, tmp_path):
    plain_lora(esm(), tmp_path)
    base = str(tmp_path / "base")
    assert fit_adapter(tmp_path / "lora", tmp_path / "fit", method="lora", rank=4, base=base).residual < 1e-6
    report = fit_adapter(tmp_path / "lora", tmp_path / "fit", method="lora", rank=2, base=base, overwrite=True)
    lora = read_lora(tmp_path / "lora")
    singular = [torch.linalg.svdvals(up @ down) for down, up in lora.pairs.values()]
    lost = sum(values[2:].square().sum().item() for values in singular)
    whole = sum(values.square().sum().item() for values in singular)
    assert report.residual == pytest.approx(math.sqrt(lost / whole), rel=1e-5)


def test_the_head_and_the_configuration_are_kept(tokens, tmp_path):
    """The base folder is of a masked language model; the LoRA's task makes it a classifier of three labels."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = RobertaConfig(vocab_size=40, max_position_embeddings=32, **sizes)
    torch.manual_seed(0)
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "base")

    def classifier():
        return RobertaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3).eval()

    torch.manual_seed(3)
    settings = LoraConfig(
        r=2, task_type="SEQ_CLS", target_modules=["query", "key"], init_lora_weights=False, lora_dropout=0.1
    )
    adapted = get_peft_model(classifier(), settings).eval()
    adapted.save_pretrained(tmp_path / "lora")
    fit_adapter(tmp_path / "lora", tmp_path / "fit", method="lora", rank=2)  # the LoRA names its base
    again = load_adapter(classifier(), tmp_path / "fit").eval()
    found = again.peft_config["default"]
    assert (found.task_type, found.dropout) == ("SEQ_CLS", 0.1)
    assert found.base_model_name_or_path == str(tmp_path / "base")
    assert found.layout["base"]["name"] == "base"
    torch.testing.assert_close(again(input_ids=tokens).logits, adapted(input_ids=tokens).logits, rtol=1e-4, atol=1e-5)


def test_an_adapter_inside_a_folding_model(fold, tmp_path):
    exported(fold(), "lorta", tmp_path)
    report = fit_adapter(tmp_path / "lora", tmp_path / "fit", rank=3, base=str(tmp_path / "base"))
    assert report.worst_residual < 1e-5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trains biases"),
        ({"lora_bias": True}, "a bias of its own"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"peft_type": "IA3"}, "not a LoRA"),
        ({"r": 5}, "rank 4 in the weights and 5"),
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"base_model_name_or_path": "./nowhere"}, "does not exist"),
    ],
)
def test_a_lora_that_cannot_be_fitted(esm, tmp_path, changes, says):
    plain_lora(esm(), tmp_path)
    file = tmp_path / "lora" / "adapter_config.json"
    named = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    file.write_text(json.dumps(named | changes))
    with pytest.raises(CheckpointError, match=says) as caught:
        fit_adapter(tmp_path / "lora", tmp_path / "fit")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fit").exists()


def test_other_refusals(esm, llama, tmp_path):
    plain_lora(esm(), tmp_path)
    lora, base = tmp_path / "lora", str(tmp_path / "base")
    with pytest.raises(ConfigError, match="tensors are random"):
        fit_adapter(lora, tmp_path / "fit", method="tera", base=base)
    with pytest.raises(ConfigError, match="'lrota' is not known; use lora, lorta"):
        fit_adapter(lora, tmp_path / "fit", method="lrota", base=base)
    llama().save_pretrained(tmp_path / "llama")
    with pytest.raises(CheckpointError, match=r"has no module 'esm\.encoder"):
        fit_adapter(lora, tmp_path / "fit", base=str(tmp_path / "llama"))
    esm(hidden_size=64).save_pretrained(tmp_path / "wider")
    with pytest.raises(CheckpointError, match="is 32 x 32, the base model's 64 x 64"):
        fit_adapter(lora, tmp_path / "fit", base=str(tmp_path / "wider"))
    weights = lora / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights)
    with pytest.raises(CheckpointError, match="shapes"):
        fit_adapter(lora, tmp_path / "fit", base=base)


def test_the_same_seed_gives_the_same_file(esm, tmp_path):
    plain_lora(esm(), tmp_path)
    base = str(tmp_path / "base")
    before = torch.random.get_rng_state()
    for name in ("one", "two"):
        fit_adapter(tmp_path / "lora", tmp_path / name, rank=2, base=base, seed=5)
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_lorta_of_rank_8_at_the_size_of_esm2_650m(tmp_path):
    sizes = {"hidden_size": 1280, "num_hidden_layers": 33, "num_attention_heads": 20, "intermediate_size": 5120}
    config = EsmConfig(vocab_size=33, position_embedding_type="rotary", pad_token_id=1, **sizes)
    model = EsmForMaskedLM(config)
    torch.manual_seed(3)
    get_peft_model(model, make_config("lorta", r=8)).save_pretrained(tmp_path / "ours")
    config.architectures = ["EsmForMaskedLM"]
    config.save_pretrained(tmp_path / "base")
    export_lora(tmp_path / "ours", tmp_path / "lora")
    report = fit_adapter(tmp_path / "lora", tmp_path / "fit", rank=8, base=str(tmp_path / "base"))
    assert report.worst_residual < 1e-4
    assert report.parameters == 11_208
    assert read_adapter(tmp_path / "fit").config.r == 8

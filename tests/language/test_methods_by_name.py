"""Any PEFT method by its name: the configuration that it should be, on whatever the model is."""

from __future__ import annotations

from dataclasses import asdict

import peft
import pytest
from transformers import AutoModelForCausalLM

from protfold_peft.adapters import METHODS, TensLoRAConfig
from protfold_peft.adapters.named import method_names
from protfold_peft.errors import ConfigError
from protfold_peft.language.adapter import add_adapter, make_config, param_groups
from protfold_peft.language.config import AdapterConfig, TrainingConfig


def made(**settings):
    return make_config(AdapterConfig(**settings), "CAUSAL_LM")


@pytest.mark.parametrize("method", METHODS)
def test_ours(method):
    config = made(method=method, rank=3, dropout=0.1, init="rank_stable")
    assert type(config) is METHODS[method]
    assert (config.r, config.dropout, config.init, config.task_type) == (3, 0.1, "rank_stable", "CAUSAL_LM")
    if hasattr(config, "alpha"):
        assert config.scaling == 1
        assert made(method=method, rank=4, alpha=8.0).scaling == 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "peft_lora", "rank": 4, "dropout": 0.1},
         peft.LoraConfig(r=4, lora_alpha=4, lora_dropout=0.1, task_type="CAUSAL_LM")),
        ({"method": "dora", "rank": 2, "alpha": 6.0, "target_modules": ["q_proj"]},
         peft.LoraConfig(r=2, lora_alpha=6, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")),
        ({"method": "vera", "rank": 16, "dropout": 0.1, "options": {"d_initial": 0.2}},
         peft.VeraConfig(r=16, vera_dropout=0.1, d_initial=0.2, task_type="CAUSAL_LM")),
        ({"method": "loha", "rank": 3}, peft.LoHaConfig(r=3, alpha=3, task_type="CAUSAL_LM")),
        ({"method": "ia3", "rank": None}, peft.IA3Config(task_type="CAUSAL_LM")),
    ],
)  # fmt: skip
def test_pefts_own(settings, expected):
    assert asdict(made(**settings)) == asdict(expected)


def test_options_reach_the_method():
    config = made(method="tenslora", rank=2, options={"variant": "qkv_depth", "scale": 0.5})
    assert isinstance(config, TensLoRAConfig)
    assert (config.variant, config.scale) == ("qkv_depth", 0.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "lotra"}, "adapter.method='lotra' is not known; did you mean 'lotr'"),
        ({"method": "ia3"}, "adapter.rank: ia3 has no such setting; set it to null"),
        ({"method": "ia3", "rank": None, "dropout": 0.1}, "adapter.dropout: ia3 has none"),
        ({"method": "tera", "alpha": 3.0}, "adapter.alpha: tera has none"),
        ({"method": "vera", "options": {"d_inital": 1}}, "vera has no such key; did you mean 'd_initial'"),
        ({"method": "lorta", "options": {"task_type": "X"}}, "adapter.options.task_type"),
        ({"method": "lorta", "init": "zeros"}, "init='zeros' is not known"),
    ],
)
def test_mistakes_are_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        made(**settings)


def test_every_named_method_of_pefts_is_known():
    assert {"lorta", "peft_lora", "dora", "vera", "ia3", "full"} <= set(method_names())
    assert "tensor_network" not in method_names()


def test_groups_have_their_learning_rates(tiny_llama_folder):
    def groups(method, **rates):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
        model = add_adapter(model, AdapterConfig(method=method, modules_to_save=["norm"]), "CAUSAL_LM")
        made = param_groups(model, TrainingConfig(steps=1, learning_rate=1.0, **rates))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert sum(p.numel() for group in made for p in group["params"]) == trained
        return {group["name"]: group["lr"] for group in made}

    rates = {"head_learning_rate": 2.0, "core_learning_rate": 3.0, "factor_learning_rate": 4.0}
    assert groups("lotr", **rates) == {"core": 3.0, "factor": 4.0, "other": 2.0}
    assert groups("peft_lora", head_learning_rate=2.0) == {"adapter": 1.0, "head": 2.0}
    with pytest.raises(ConfigError, match="for tensor adapters"):
        groups("peft_lora", core_learning_rate=2.0)

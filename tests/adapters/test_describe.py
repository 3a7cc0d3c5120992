"""The description of an adapter against the model it was made on."""

from __future__ import annotations

import pytest

from protfold_peft.adapters import LoRTAConfig, describe_adapters
from protfold_peft.errors import ConfigError


def test_groups_modes_factors_and_share(esm, adapted):
    base = sum(parameter.numel() for parameter in esm().parameters())
    model = adapted(esm(), target_modules=["query", "attention.output.dense", "intermediate.dense"], alpha=6)
    (adapter,) = describe_adapters(model)
    assert (adapter.name, adapter.network, adapter.rank, adapter.scale) == ("default", "cp", 3, 2.0)
    assert adapter.active
    assert adapter.model_parameters == base
    assert adapter.parameters == model.get_nb_trainable_parameters()[0]
    assert adapter.share == pytest.approx(adapter.parameters / base)
    attention, linear = adapter.groups
    assert attention.modes == {"model": 32, "head_width": 8, "heads": 4, "layers": 3, "kinds": 2}
    assert attention.kinds == ("query", "attention_output")
    assert attention.factors["Ch"] == (4, 3)
    assert attention.parameters == 3 * sum(attention.modes.values())
    assert linear.modes == {"input": 32, "output": 48, "layers": 3, "kinds": 1}
    assert linear.sites[0] == "esm.encoder.layer.0.intermediate.dense"


def test_grouped_query_heads_are_two_modes(llama, adapted):
    (adapter,) = describe_adapters(adapted(llama()))
    assert adapter.groups[0].modes == {
        "model": 32,
        "head_width": 12,
        "heads": 4,
        "heads_2": 2,
        "layers": 3,
        "kinds": 4,
    }


def test_other_adapters_and_saved_modules_are_not_the_model(esm, adapted):
    base = sum(parameter.numel() for parameter in esm().parameters())
    model = adapted(esm(), modules_to_save=["lm_head"])
    model.add_adapter("other", LoRTAConfig(r=2))
    first, second = describe_adapters(model)
    assert first.model_parameters == second.model_parameters == base
    assert (first.active, second.active) == (True, False)
    assert first.saved_in_full == ("lm_head",)


def test_a_model_without_adapters_is_refused(esm):
    with pytest.raises(ConfigError, match="no tensor adapters"):
        describe_adapters(esm())

"""Sites: which modules are found, named and refused, and where they sit along the tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protfold_peft.adapters.networks import CPNetwork
from protfold_peft.adapters.sites import HeadSplit, Site, assign, check_fit, find_maps, select
from protfold_peft.errors import CheckpointError, ConfigError

QKVO = ["query", "key", "value", "attention.output.dense"]


def test_rows_are_layers_and_columns_are_kinds(esm):
    sites = {site.path: site for site in assign(select(esm(), QKVO), CPNetwork.group_of)}
    assert len(sites) == 12
    for layer in range(3):
        for column, name in enumerate(["self.query", "self.key", "self.value", "output.dense"]):
            site = sites[f"esm.encoder.layer.{layer}.attention.{name}"]
            assert (site.group, site.row, site.column) == ("attention", layer, column)
            assert site.heads == HeadSplit("input" if name == "output.dense" else "output", 4, 8)


def test_rows_and_columns_count_only_what_is_targeted(esm):
    targets = [f"esm.encoder.layer.{layer}.attention.self.{kind}" for layer in (0, 2) for kind in ("key", "value")]
    sites = assign(select(esm(), targets), CPNetwork.group_of)
    assert [(site.layer, site.kind, site.row, site.column) for site in sites] == [
        (0, "key", 0, 0),
        (0, "value", 0, 1),
        (2, "key", 1, 0),
        (2, "value", 1, 1),
    ]


def test_maps_without_heads_group_by_shape(esm):
    groups = {site.path: site.group for site in assign(select(esm(), "all-linear"), CPNetwork.group_of)}
    assert len(groups) == 18
    assert groups["esm.encoder.layer.1.intermediate.dense"] == "linear_48x32"
    assert groups["esm.encoder.layer.1.output.dense"] == "linear_32x48"
    assert groups["esm.encoder.layer.1.attention.self.value"] == "attention"


def test_key_value_heads_and_head_dim_come_from_the_config(llama):
    heads = {linear.kind: linear.heads for linear in find_maps(llama())[1]}
    assert heads["query"] == HeadSplit("output", 4, 12)
    assert heads["key"] == heads["value"] == HeadSplit("output", 2, 12)
    assert heads["attention_output"] == HeadSplit("input", 4, 12)
    assert heads["gate"] is None


@pytest.mark.parametrize("model", ["esm", "fold"])
def test_language_model_sites_have_the_same_names_in_both_models(model, request):
    sites = select(request.getfixturevalue(model)(), QKVO)
    assert {linear.path.split(".encoder.")[0] for linear in sites} == {"esm"}
    assert len(sites) == 12


def test_target_none_is_query_key_value_and_output(esm):
    assert select(esm(), None) == select(esm(), QKVO)


def test_a_regular_expression_matches_whole_paths(esm):
    chosen = select(esm(), r"esm\.encoder\.layer\.[01]\.attention\.self\.query")
    assert [linear.layer for linear in chosen] == [0, 1]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("qurey", "did you mean 'query'"),
        ("linear_q", "only outside the ESM-2 layers"),
        ("trunk.blocks.0.seq_attention.o_proj", "is in the model, but is not among"),
        ("layer.query", "matches no module"),
    ],
)
def test_an_unknown_target_is_an_error_that_names_valid_ones(fold, target, says):
    with pytest.raises(ConfigError, match=says) as caught:
        select(fold(), ["key", target])
    assert "attention.self.query" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_expressions_and_empty_targets_are_errors(esm):
    for targets, says in [
        ("query", "whole paths"),
        ("(", "not a regular"),
        ([], "empty"),
    ]:
        with pytest.raises(ConfigError, match=says):
            select(esm(), targets)


def test_modules_saved_in_full_are_not_adapted_too(esm):
    chosen = select(esm(), ["query"], modules_to_save=["layer.1"])
    assert [linear.layer for linear in chosen] == [0, 2]
    with pytest.raises(ConfigError, match="modules_to_save"):
        select(esm(), ["query"], modules_to_save=["encoder"])


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ConfigError, match=r"do not know the layers of Sequential.*ESM-2.*Llama"):
        find_maps(nn.Sequential(nn.Linear(2, 2)))


def test_a_head_split_that_contradicts_the_weights_is_refused(esm):
    model = esm()
    model.config.num_attention_heads = 4
    model.esm.encoder.layer[1].attention.self.query = nn.Linear(32, 30)
    with pytest.raises(ConfigError, match=r"layer\.1.*30 output features.*4 heads of width 8"):
        find_maps(model)


def test_a_module_that_is_not_linear_is_refused(esm):
    model = esm()
    model.esm.encoder.layer[1].attention.self.query = nn.Identity()
    with pytest.raises(ConfigError, match="is a Identity"):
        find_maps(model)


def test_a_site_survives_json(esm):
    for site in assign(select(esm(), "all-linear"), CPNetwork.group_of):
        assert Site.from_json(site.path, site.to_json()) == site


@pytest.mark.parametrize(
    "change", [{"row": "0"}, {"row": -1}, {"row": True}, {"extra": 1}, {"heads": {"axis": "output"}}, {"heads": 3}]
)
def test_a_damaged_layout_entry_is_named(esm, change):
    site = assign(select(esm(), ["query"]), CPNetwork.group_of)[0]
    with pytest.raises(CheckpointError, match=r"layer\.0\.attention\.self\.query"):
        Site.from_json(site.path, site.to_json() | change)


def test_fit_compares_depth_width_and_heads(esm):
    sites = assign(select(esm(), QKVO), CPNetwork.group_of)
    check_fit(esm(), sites, 3)
    for changes, says in [
        ({"num_hidden_layers": 4}, "3 layers; this one has 4"),
        ({"hidden_size": 64}, "32 x 32, 4 heads in the adapter and 64 x 64, 4 heads"),
        ({"num_attention_heads": 8}, "4 heads in the adapter and 32 x 32, 8 heads"),
    ]:
        with torch.device("meta"), pytest.raises(CheckpointError, match=says):
            check_fit(esm(**changes), sites, 3)

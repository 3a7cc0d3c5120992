"""Sites: which modules are found, named and refused, and where they sit along the tensor."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from protfold_peft.adapters.discovery import Targets, check_fit, find_maps, select
from protfold_peft.adapters.networks import CPNetwork
from protfold_peft.adapters.site_table import pack, unpack
from protfold_peft.adapters.sites import HeadSplit, RowBlocks, assign
from protfold_peft.errors import CheckpointError, ConfigError

QKVO = ["query", "key", "value", "attention.output.dense"]


def chosen(model, targets, **options):
    return select(model, Targets(targets), **options)


def laid_out(model, targets):
    return assign(chosen(model, targets), lambda linear: CPNetwork.group_of(linear, {}))


def test_rows_are_layers_and_columns_are_kinds(esm):
    sites = {site.path: site for site in laid_out(esm(), QKVO)}
    assert len(sites) == 12
    for layer in range(3):
        for column, name in enumerate(["self.query", "self.key", "self.value", "output.dense"]):
            site = sites[f"esm.encoder.layer.{layer}.attention.{name}"]
            assert (site.group, site.row, site.column) == ("attention", layer, column)
            assert site.heads == HeadSplit("input" if name == "output.dense" else "output", 4, 8)


def test_rows_and_columns_count_only_what_is_targeted(esm):
    targets = [f"esm.encoder.layer.{layer}.attention.self.{kind}" for layer in (0, 2) for kind in ("key", "value")]
    sites = laid_out(esm(), targets)
    assert [(site.layer, site.kind, site.row, site.column) for site in sites] == [
        (0, "key", 0, 0),
        (0, "value", 0, 1),
        (2, "key", 1, 0),
        (2, "value", 1, 1),
    ]


def test_maps_without_heads_group_by_shape(esm):
    groups = {site.path: site.group for site in laid_out(esm(), "all-linear")}
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
    sites = chosen(request.getfixturevalue(model)(), QKVO)
    assert {linear.path.split(".encoder.")[0] for linear in sites} == {"esm"}
    assert len(sites) == 12


def test_target_none_is_query_key_value_and_output(esm):
    assert chosen(esm(), None) == chosen(esm(), QKVO)


def test_a_regular_expression_matches_whole_paths(esm):
    found = chosen(esm(), r"esm\.encoder\.layer\.[01]\.attention\.self\.query")
    assert [linear.layer for linear in found] == [0, 1]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("qurey", "did you mean 'query'"),
        ("trunk.blocks.0.layernorm_1", "is in the model, but is no linear layer"),
        ("layer.query", "matches no module"),
    ],
)
def test_an_unknown_target_is_an_error_that_names_valid_ones(fold, target, says):
    with pytest.raises(ConfigError, match=says) as caught:
        chosen(fold(), ["key", target])
    assert "attention.self.query" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_expressions_and_empty_targets_are_errors(esm):
    for targets, says in [
        ("query", "whole paths"),
        ("(", "not a regular"),
        ([], "empty"),
    ]:
        with pytest.raises(ConfigError, match=says):
            chosen(esm(), targets)


def test_modules_saved_in_full_are_not_adapted_too(esm):
    found = chosen(esm(), ["query"], modules_to_save=["layer.1"])
    assert [linear.layer for linear in found] == [0, 2]
    with pytest.raises(ConfigError, match="modules_to_save"):
        chosen(esm(), ["query"], modules_to_save=["encoder"])


def test_an_unknown_architecture_is_read_by_shape():
    """Layer: the first number in the path; kind: the rest of it."""
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, 6)}) for _ in range(3))})
    model["head"] = nn.Linear(6, 4)
    architecture, maps = find_maps(model)
    assert architecture is None
    assert [(linear.path, linear.layer, linear.kind, linear.d_out, linear.d_in) for linear in maps] == [
        ("blocks.0.up", 0, "blocks_up", 6, 4),
        ("blocks.1.up", 1, "blocks_up", 6, 4),
        ("blocks.2.up", 2, "blocks_up", 6, 4),
        ("head", 0, "head", 4, 6),
    ]
    assert {(site.group, site.row) for site in laid_out(model, ["up"])} == {("linear_6x4", row) for row in range(3)}
    with pytest.raises(ConfigError, match="default target modules of ModuleDict are not known"):
        chosen(model, None)


def test_parts_of_fused_modules_take_their_rows():
    """Numbers in the order of GPT-2's `[q | k | v]` and of ESMFold's `(head, [q, k, v], j)`."""
    outputs = torch.arange(12)
    blocks = [RowBlocks(part * 4, 4, 12) for part in range(3)]
    assert [block.take(outputs).tolist() for block in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    heads = [RowBlocks(part * 2, 2, 6) for part in range(3)]
    assert [block.take(outputs).tolist() for block in heads] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    for split in (blocks, heads):
        assert torch.equal(sum(block.place(block.take(outputs), 12) for block in split), outputs)


def test_a_head_split_that_contradicts_the_weights_is_refused(esm):
    model = esm()
    model.config.num_attention_heads = 4
    model.esm.encoder.layer[1].attention.self.query = nn.Linear(32, 30)
    with pytest.raises(ConfigError, match=r"layer\.1.*30 output features.*4 heads of width 8"):
        find_maps(model)


@pytest.mark.parametrize("family", ["esm", "llama", "gpt2", "opt"])
@pytest.mark.parametrize("targets", ["all-linear", r".*\.[02]\..*(query|q_proj|c_attn|fc1|dense)"])
def test_sites_survive_their_table(make_model, family, targets):
    """Through JSON, with keys sorted as PEFT writes them."""
    sites = laid_out(make_model(family), targets)
    stored = json.loads(json.dumps(pack(sites), sort_keys=True))
    assert set(unpack(stored)) == set(sites)


def test_the_table_is_short_and_readable(esm):
    table = pack(laid_out(esm(num_hidden_layers=7), QKVO))
    assert table["attention"]["layers"] == "0-6"
    assert table["attention"]["kinds"][3] == {
        "kind": "attention_output",
        "path": "esm.encoder.layer.*.attention.output.dense",
        "d_out": 32,
        "d_in": 32,
        "heads": "input 4 x 8",
    }
    assert len(json.dumps(table)) < 800


def test_kinds_that_are_not_in_every_layer_name_theirs(esm):
    targets = [f"esm.encoder.layer.{layer}.attention.self.query" for layer in (0, 1, 3, 4)]
    sites = laid_out(esm(num_hidden_layers=5), [*targets, "esm.encoder.layer.3.attention.self.key"])
    table = pack(sites)["attention"]
    assert table["layers"] == "0-1,3-4"
    assert [entry.get("layers") for entry in table["kinds"]] == [None, "3"]
    assert set(unpack({"attention": table})) == set(sites)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": "x"},
        {"layers": "0-1,1"},
        {"layers": 3},
        {"kinds": 3},
        {"kinds": [{"kind": "query"}]},
        {"kinds.d_out": "32"},
        {"kinds.d_in": -1},
        {"kinds.heads": "sideways 4 x 8"},
        {"kinds.heads": "output 4 x 9"},
        {"kinds.extra": 1},
        {"kinds.layers": "9"},
        {"kinds.rows": {"start": 1, "block": 32, "stride": 32}},
    ],
)
def test_a_damaged_table_names_the_group(esm, change):
    table = pack(laid_out(esm(), ["query"]))
    for key, value in change.items():
        if key.startswith("kinds."):
            table["attention"]["kinds"][0][key.removeprefix("kinds.")] = value
        else:
            table["attention"][key] = value
    with pytest.raises(CheckpointError, match="group 'attention'"):
        unpack(table)


def test_fit_compares_depth_width_and_heads(esm):
    sites = laid_out(esm(), QKVO)
    check_fit(esm(), sites, 3)
    for changes, says in [
        ({"num_hidden_layers": 4}, "3 layers; this one has 4"),
        ({"hidden_size": 64}, "32 x 32, 4 heads in the adapter and 64 x 64, 4 heads"),
        ({"num_attention_heads": 8}, "4 heads in the adapter and 32 x 32, 8 heads"),
    ]:
        with torch.device("meta"), pytest.raises(CheckpointError, match=says):
            check_fit(esm(**changes), sites, 3)

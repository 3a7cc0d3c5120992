"""Methods as special cases of each other, which their definitions make exact."""

from __future__ import annotations

import pytest
import torch
from adapter_methods import make_config
from peft import LoraConfig, get_peft_model

TARGETS = ["query", "key", "value"]


def network(model, config):
    """The one network of an adapter, in float64."""
    torch.manual_seed(2)
    (group,) = get_peft_model(model.double(), config).base_model.networks("default").values()
    return group


def assert_same_updates(ours, theirs):
    for one, other in zip(ours.sites, theirs.sites, strict=True):
        assert one.key == other.key
        torch.testing.assert_close(ours.delta(one), theirs.delta(other), rtol=0, atol=1e-12)
        x = torch.randn(3, one.d_in, dtype=torch.float64)
        torch.testing.assert_close(ours(x, one), theirs(x, other), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["esm", "llama"])
@torch.no_grad()
def test_lorta_is_a_tucker_with_a_superdiagonal_core(request, family):
    """With the output projection and grouped-query heads too."""
    make = request.getfixturevalue(family)
    cp = network(make(), make_config("lorta", r=3))
    tucker = network(make(), make_config("tenslora", r=3))
    tucker.core.zero_()
    for k in range(3):
        tucker.core[(k,) * 5] = cp.scale
    for name, other in [("U_model", "A"), ("U_head_width", "B"), ("U_layers", "Cl"), ("U_kinds", "Cm")]:
        tucker.get_parameter(name).copy_(cp.get_parameter(other))
    for count, name in cp.head_factors.items():
        tucker.get_parameter(tucker.head_factors[count]).copy_(cp.get_parameter(name))
    assert_same_updates(tucker, cp)


@torch.no_grad()
def test_lotr_on_one_projection_is_depth_with_an_identity_layer_factor(esm):
    lotr = network(esm(), make_config("lotr", target_modules=["query"]))
    depth = network(esm(), make_config("tenslora_depth", target_modules=["query"]))
    depth.get_parameter("U_output").copy_(lotr.U)
    depth.get_parameter("U_input").copy_(lotr.V.T)
    depth.get_parameter("U_layers").copy_(torch.eye(3))
    for index, site in enumerate(lotr.sites):
        # scale 8 / 3 of LoTR against 0.5 of this Tucker
        depth.core[:, :, index] = lotr.G[lotr.place[site.key]] * (8 / 3) / 0.5
    assert_same_updates(depth, lotr)


@torch.no_grad()
def test_lora_is_a_tucker_2_for_each_site_with_an_identity_core(esm):
    """PEFT's own LoRA is the other side."""
    one = ["esm.encoder.layer.1.attention.self.value"]
    torch.manual_seed(5)
    lora = get_peft_model(esm().double(), LoraConfig(r=3, lora_alpha=6, target_modules=one, init_lora_weights=False))
    layer = lora.base_model.model.get_submodule(one[0])
    lotr = network(esm(), make_config("lotr", alpha=6, target_modules=one))
    lotr.U.copy_(layer.lora_B["default"].weight)
    lotr.V.copy_(layer.lora_A["default"].weight)
    lotr.G.copy_(torch.eye(3)[None])
    torch.testing.assert_close(lotr.delta(lotr.sites[0]), layer.get_delta_weight("default"), rtol=0, atol=1e-12)


@torch.no_grad()
def test_lorta_is_a_tensor_train_of_diagonal_cores(esm):
    cp = network(esm(), make_config("lorta", r=3))
    train = network(esm(), make_config("tensor_train_heads", r=3))
    train.G1.copy_(cp.B)
    train.G2.copy_(cp.A.T)
    for core, factor in [(train.Gh, cp.Ch), (train.Gl, cp.Cl), (train.Gm, cp.Cm)]:
        core.copy_(torch.diag_embed(factor))
    assert_same_updates(train, cp)


@torch.no_grad()
def test_plain_lora_equals_pefts(esm, tokens):
    torch.manual_seed(5)
    theirs = get_peft_model(
        esm().double(), LoraConfig(r=3, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False)
    ).eval()
    ours = get_peft_model(esm().double(), make_config("lora", target_modules=TARGETS))
    for group in ours.base_model.networks("default").values():
        layer = theirs.base_model.model.get_submodule(group.sites[0].path)
        group.A.copy_(layer.lora_A["default"].weight)
        group.B.copy_(layer.lora_B["default"].weight)
    torch.testing.assert_close(ours(input_ids=tokens).logits, theirs(input_ids=tokens).logits, rtol=0, atol=1e-12)
    assert ours.get_nb_trainable_parameters()[0] == theirs.get_nb_trainable_parameters()[0]

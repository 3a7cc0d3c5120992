"""LoRTA: the published parameter counts and initialisations."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import EsmConfig, EsmForMaskedLM, LlamaConfig, LlamaForCausalLM

from protfold_peft.adapters import LoRTAConfig
from protfold_peft.adapters.discovery import Targets, select
from protfold_peft.adapters.networks import CPNetwork
from protfold_peft.adapters.sites import assign
from protfold_peft.errors import ConfigError

ESM2 = {"35M": (480, 20, 12), "650M": (1280, 20, 33), "3B": (2560, 40, 36)}


def laid_out(model, targets):
    return assign(select(model, Targets(targets)), lambda linear: CPNetwork.group_of(linear, {}))


def lorta_count(width, head_width, heads, key_value_heads, layers, kinds, r):
    return r * (width + head_width + heads + (key_value_heads if key_value_heads != heads else 0) + layers + kinds)


@pytest.mark.parametrize("size", ESM2)
@pytest.mark.parametrize(("r", "counts"), [(1, (540, 1401, 2704)), (4, (2160, 5604, 10816)), (8, (4320, 11208, 21632))])
def test_published_parameter_counts_of_esm2(size, r, counts):
    width, heads, layers = ESM2[size]
    with torch.device("meta"):
        config = EsmConfig(
            vocab_size=33,
            hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            intermediate_size=4 * width,
            position_embedding_type="rotary",
            pad_token_id=1,
        )
        model = get_peft_model(EsmForMaskedLM(config), LoRTAConfig(r=r))
    assert model.get_nb_trainable_parameters()[0] == counts[list(ESM2).index(size)]
    assert model.get_nb_trainable_parameters()[0] == lorta_count(width, width // heads, heads, heads, layers, 4, r)


def test_published_parameter_counts_of_lora_come_out_of_peft():
    """The other column of the comparison, so that both are counted on the same sites."""
    with torch.device("meta"):
        config = EsmConfig(
            vocab_size=33,
            hidden_size=480,
            num_attention_heads=20,
            num_hidden_layers=12,
            intermediate_size=1920,
            position_embedding_type="rotary",
            pad_token_id=1,
        )
        model = EsmForMaskedLM(config)
        for sites, count in [(["query", "value"], 23040), (["query", "key", "value"], 34560)]:
            lora = get_peft_model(model, LoraConfig(r=1, target_modules=sites))
            assert lora.get_nb_trainable_parameters()[0] == count
            model = lora.unload()
        model.train()
        lorta = get_peft_model(model, LoRTAConfig(r=1, target_modules=["query", "key", "value"]))
    assert lorta.get_nb_trainable_parameters()[0] == 480 + 24 + 20 + 12 + 3


@pytest.mark.parametrize(
    ("width", "heads", "key_value_heads", "head_dim", "layers", "r", "count"),
    [(4096, 32, 32, None, 32, 1, 4292), (4096, 32, 32, None, 32, 8, 34336), (64, 8, 2, 16, 5, 7, None)],
)
def test_parameter_counts_of_llama(width, heads, key_value_heads, head_dim, layers, r, count):
    with torch.device("meta"):
        config = LlamaConfig(
            hidden_size=width,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            head_dim=head_dim,
            num_hidden_layers=layers,
            intermediate_size=2 * width,
            vocab_size=100,
        )
        model = get_peft_model(LlamaForCausalLM(config), LoRTAConfig(r=r))
    formula = lorta_count(width, head_dim or width // heads, heads, key_value_heads, layers, 4, r)
    assert model.get_nb_trainable_parameters()[0] == formula
    assert count in (None, formula)


def network_of(width, heads, layers, r, *, use_rslora=False, init="authors"):
    with torch.device("meta"):
        config = EsmConfig(
            vocab_size=33,
            hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            intermediate_size=width,
            pad_token_id=1,
        )
        sites = laid_out(EsmForMaskedLM(config), None)
    scale = 16.0 / (math.sqrt(r) if use_rslora else r)
    network = CPNetwork(sites, rank=r, scale=scale, alpha=16.0)
    network.reset_parameters(init)
    return network


def norms_after_one_adam_step(network):
    """Norm of each site's update after a step of Adam on a random linear loss."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-30)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (network.delta(site) * torch.randn(site.d_out, site.d_in, generator=generator)).sum() for site in network.sites
    )
    loss.backward()
    optimizer.step()
    return torch.stack([network.delta(site).norm() for site in network.sites]).detach()


@pytest.mark.parametrize("use_rslora", [False, True])
def test_rank_stable_first_step_does_not_depend_on_rank(use_rslora):
    torch.manual_seed(3)
    norms = [
        norms_after_one_adam_step(network_of(128, 4, 3, r, use_rslora=use_rslora, init="rank_stable"))
        for r in (1, 2, 8, 32, 64, 128)
    ]
    expected = 16.0 * 1e-3 * math.sqrt(128)
    for norm in norms:
        torch.testing.assert_close(norm, torch.full_like(norm, expected), rtol=0.2, atol=0)


def test_the_authors_first_step_shrinks_with_rank():
    """What `rank_stable` is for: under the authors' init, rank and size of the update are confounded."""
    torch.manual_seed(3)
    small, large = (norms_after_one_adam_step(network_of(128, 4, 3, r)).mean() for r in (1, 64))
    assert small / large > 500


def test_authors_init_has_their_bounds():
    torch.manual_seed(4)
    network = network_of(240, 20, 30, 9)
    assert network.A.abs().max() <= 1 / 3
    assert network.A.std().item() == pytest.approx(1 / 3 / math.sqrt(3), rel=0.05)
    for name in ("Ch", "Cl", "Cm"):
        factor = getattr(network, name)
        assert factor.abs().max() <= math.sqrt(6 / 9)
        assert factor.std().item() == pytest.approx(math.sqrt(6 / 9 / 3), rel=0.2)
    assert not network.B.any()


def test_orthogonal_init_is_orthonormal():
    network = network_of(48, 4, 6, 5, init="orthogonal")
    for name in ("A", "Cl"):
        factor = getattr(network, name)
        torch.testing.assert_close(factor.T @ factor, torch.eye(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(network.Cm @ network.Cm.T, torch.eye(4), rtol=0, atol=1e-5)


def test_sites_of_two_widths_do_not_share_one_attention_tensor(esm):
    wide, narrow = (laid_out(esm(**changes), ["query"]) for changes in ({}, {"hidden_size": 64}))
    with pytest.raises(ConfigError, match="choose target modules of one size"):
        CPNetwork([*wide, *narrow], rank=2, scale=1.0, alpha=2.0)

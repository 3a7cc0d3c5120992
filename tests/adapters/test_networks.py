"""Every network against its defining sum, with gradients, inside whole models and alone."""

from __future__ import annotations

import math

import pytest
import torch
from adapter_methods import FORMS, METHODS, make_config
from dense_updates import dense_update, module_update
from peft import get_peft_model
from torch.func import functional_call

from protfold_peft.adapters.discovery import innermost
from protfold_peft.adapters.networks import RandomTuckerNetwork
from protfold_peft.errors import ConfigError

FAMILIES = ["esm", "llama", "gpt2", "roberta", "opt", "esmc"]


def scale_of(form, options):
    """From the options alone: alpha / r, alpha / sqrt(r), or the direct one."""
    own = FORMS[form][1] | options
    if form.split("_")[0] in ("tenslora", "tera"):
        return own.get("scale", 1.0)
    return 8.0 / (math.sqrt(3) if own.get("use_rslora") else 3)


def tensors_of(network):
    """Parameters and buffers by name, in the format of the parameters: frozen tensors are kept in fp32."""
    buffers = {name: buffer.to(network.dtype) for name, buffer in network.named_buffers()}
    return dict(network.named_parameters()) | buffers


def expected_update(form, network, site, tensors=None):
    options = {"scale": scale_of(form, {}), "place": {each.key: i for i, each in enumerate(network.sites)}}
    return dense_update(FORMS[form][0].network, tensors or tensors_of(network), site, options)


def dense_weights(model, networks, form, tensors):
    """The base model's weights with every update added."""
    updates = {}
    for group, network in networks.items():
        for site in network.sites:
            module = innermost(model.get_submodule(site.path))
            total = module.weight.shape[1] if site.transposed else module.weight.shape[0]
            update = module_update(site, expected_update(form, network, site, tensors[group]), total)
            updates[site.path] = updates.get(site.path, 0) + (update.T if site.transposed else update)
    return {f"{path}.weight": model.get_submodule(path).weight + update for path, update in updates.items()}


@pytest.mark.parametrize(
    ("family", "form"), [(f, m) for f in FAMILIES for m in (FORMS if f in ("esm", "gpt2") else METHODS)]
)
def test_whole_model_equals_the_dense_update_with_gradients(make_model, tokens, family, form):
    twin = make_model(family).double()
    torch.manual_seed(2)
    model = get_peft_model(make_model(family).double(), make_config(form, target_modules="all-linear"))
    networks = model.base_model.networks("default")
    tensors = {
        group: {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors_of(network).items()}
        for group, network in networks.items()
    }
    n_sites = sum(len(network.sites) for network in networks.values())
    assert n_sites == 3 * (7 if family in ("llama", "esmc") else 6)

    expected = functional_call(twin, dense_weights(twin, networks, form, tensors), kwargs={"input_ids": tokens}).logits
    actual = model(input_ids=tokens).logits
    assert (actual - twin(input_ids=tokens).logits).abs().max() > 1e-4
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)

    (expected**2).sum().backward()
    (actual**2).sum().backward()
    for group, network in networks.items():
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.grad, tensors[group][name].grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_every_site_matches_the_sum_alone(make_model, family, form):
    torch.manual_seed(2)
    model = get_peft_model(make_model(family).double(), make_config(form, target_modules="all-linear"))
    for network in model.base_model.networks("default").values():
        for site in network.sites:
            expected = expected_update(form, network, site)
            torch.testing.assert_close(network.delta(site), expected, rtol=1e-12, atol=1e-13)
            x = torch.randn(2, 4, site.d_in, dtype=torch.float64)
            torch.testing.assert_close(network(x, site), x @ expected.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", ["authors_peft", "authors_litgpt"])
def test_the_authors_head_layouts(esm, layout):
    """One code base computes `x D^T`, the other `x D`, with `D (d, h j)` for every matrix, the output's too."""
    torch.manual_seed(2)
    model = get_peft_model(esm().double(), make_config("lorta", head_layout=layout))
    (network,) = model.base_model.networks("default").values()
    factors = dict(network.named_parameters())
    x = torch.randn(5, 32, dtype=torch.float64)
    for site in network.sites:
        D = (8 / 3) * torch.einsum(
            "ik,jk,hk,k,k->ihj",
            factors["A"],
            factors["B"],
            factors["Ch"],
            factors["Cl"][site.row],
            factors["Cm"][site.column],
        ).reshape(32, 32)
        expected = x @ D.T if layout == "authors_peft" else x @ D
        torch.testing.assert_close(network(x, site), expected, rtol=0, atol=1e-12)


def test_the_authors_layouts_need_square_matrices(llama):
    """Keys and values of grouped-query attention are not; nor do these layouts exist for other methods."""
    for layout in ("authors_peft", "authors_litgpt"):
        with pytest.raises(ConfigError, match=rf"head_layout='{layout}' needs square matrices, and 'model.layers.0"):
            get_peft_model(llama(), make_config("lorta", head_layout=layout))
    with pytest.raises(ConfigError, match="head_layout='authors_peft' is not known; use consistent"):
        make_config("lotr", head_layout="authors_peft")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("init", ["authors", "orthogonal", "rank_stable"])
def test_starts_without_an_update_and_with_a_gradient(esm, tokens, form, init):
    before = esm()(input_ids=tokens).logits
    model = get_peft_model(esm(), make_config(form, init=init, init_weights=True, target_modules="all-linear"))
    output = model(input_ids=tokens, labels=tokens)
    torch.testing.assert_close(output.logits, before, rtol=0, atol=0)
    output.loss.backward()
    for network in model.base_model.networks("default").values():
        moving = [name for name, factor in network.named_parameters() if factor.grad is not None and factor.grad.any()]
        assert len(moving) == 1  # the factor that is zero


@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("tera")])
def test_the_pair_of_a_low_rank_network_has_the_promised_rank(llama, form):
    """r for CP, LoTR and Tensor-Train; the smaller of the two sides for Tucker."""
    torch.manual_seed(2)
    model = get_peft_model(llama().double(), make_config(form, target_modules="all-linear"))
    for network in model.base_model.networks("default").values():
        ranks = network.ranks()
        if "model" in ranks:
            promised = min(ranks["model"], ranks["head_width"] * ranks["heads"])
        else:
            promised = min(value for mode, value in ranks.items() if mode in ("rank", "input", "output"))
        for site in network.sites:
            down, up = network.pair(site)
            assert down.shape == (promised, site.d_in)
            assert up.shape == (site.d_out, promised)


@pytest.mark.parametrize(("r", "axis_factors"), [(2, 2), (4, 2), (8, 2), (2, 3), (32, 1)])
def test_the_update_of_tera_reaches_its_rank_bound(esm, r, axis_factors):
    torch.manual_seed(2)
    config = make_config("tera", r=r, axis_factors=axis_factors, target_modules=["query", "intermediate.dense"])
    model = get_peft_model(esm().double(), config)
    for network in model.base_model.networks("default").values():
        assert isinstance(network, RandomTuckerNetwork)
        for site in network.sites:
            kept = [min(r, length) for length in network.factors]
            bound = min(
                site.d_out,
                site.d_in,
                math.prod(kept[: network.n_output]),
                math.prod(kept[network.n_output :]),
            )
            assert torch.linalg.matrix_rank(network.delta(site)) == bound


def first_step_norms(model, step=1e-3):
    """Norm of all updates after a step of Adam on a random linear loss of the updates."""
    networks = model.base_model.networks("default").values()
    parameters = [factor for network in networks for factor in network.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=step, eps=1e-30)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (network.delta(site) * torch.randn(site.d_out, site.d_in, generator=generator)).sum()
        for network in networks
        for site in network.sites
    )
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        return math.sqrt(
            sum(network.delta(site).square().sum().item() for network in networks for site in network.sites)
        )


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("tenslora_ranks",)])
def test_rank_stable_first_step_does_not_depend_on_rank(esm, form):
    """Within a fifth of `size * step * sqrt(sum of d_out)`, size being alpha or the scale."""
    largest = 8 if form == "tenslora" or form.startswith("tenslora_att_qkv") or form == "tenslora_interleaved" else 32
    own = FORMS[form][1]
    size = own.get("scale", 1.0) if form.startswith(("tenslora", "tera")) else 8.0
    for r in (1, 2, 8, 32):
        if r > largest:
            continue
        torch.manual_seed(3)
        model = get_peft_model(esm(), make_config(form, r=r, init="rank_stable", init_weights=True))
        sites = [site for network in model.base_model.networks("default").values() for site in network.sites]
        expected = size * 1e-3 * math.sqrt(sum(site.d_out for site in sites))
        assert first_step_norms(model) == pytest.approx(expected, rel=0.2), r

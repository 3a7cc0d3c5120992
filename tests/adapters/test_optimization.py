"""Learning rates by kind of factor, and the callback that stops dead runs."""

from __future__ import annotations

import pytest
import torch
from adapter_methods import METHODS, make_config
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from protfold_peft.adapters import DeadAdapterCallback, DeadAdapterError, adapter_param_groups
from protfold_peft.errors import ConfigError

ROLES = {
    "lorta": {"factor": {"A", "B", "Ch", "Cl", "Cm"}},
    "lotr": {"core": {"G"}, "factor": {"U", "V"}},
    "tenslora": {"core": {"core"}, "factor": {f"U_{m}" for m in ("model", "head_width", "heads", "kinds", "layers")}},
    "tera": {"vector": {"v1", "v2", "v3", "v4"}},
    "tensor_train": {"core": {"Gl", "Gm"}, "factor": {"G1", "G2"}},
    "lora": {"factor": {"A", "B"}},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_has_the_rate_of_its_role(esm, method):
    model = get_peft_model(esm(), make_config(method, modules_to_save=["lm_head"]))
    own = {f"{role}_lr": 0.1 * (1 + i) for i, role in enumerate(ROLES[method])}
    groups = adapter_param_groups(model, 0.01, **own, weight_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["name"]: {names[id(p)].rsplit(".", 1)[1] for p in group["params"]} for group in groups}
    assert found.pop("other") >= {"weight", "bias"}
    assert found == ROLES[method]
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates.pop("other") == 0.01
    assert rates == {role: own[f"{role}_lr"] for role in ROLES[method]}
    assert {group["weight_decay"] for group in groups} == {0.5}
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    torch.optim.AdamW(groups)


def test_rates_for_what_is_not_there_are_refused(esm):
    with pytest.raises(
        ConfigError, match=r"core_lr=0\.1 is given, but the model has no such parameters; it has factor"
    ):
        adapter_param_groups(get_peft_model(esm(), make_config("lorta")), 0.01, core_lr=0.1)
    frozen = get_peft_model(esm(), make_config("lorta")).requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter of the model is trainable"):
        adapter_param_groups(frozen, 0.01)


def run(model, tokens, folder):
    data = [{"input_ids": row, "labels": row} for row in tokens.repeat(4, 1)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        report_to=[],
        warmup_steps=4,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-2,
    )
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[DeadAdapterCallback(model)]).train()


@pytest.mark.parametrize("method", METHODS)
def test_a_living_run_is_left_alone_under_warm_up(esm, tokens, tmp_path, method):
    """The first learning rate is 0, and all factors but one start without a gradient."""
    model = get_peft_model(esm(), make_config(method, init_weights=True))
    factors = list(model.base_model.tensor_factors.named_parameters())
    zero = [name for name, factor in factors if not factor.any()]
    before = {name: factor.detach().clone() for name, factor in factors}
    run(model, tokens, tmp_path)
    moved = {name for name, factor in factors if not torch.equal(factor, before[name])}
    assert zero
    assert set(zero) < moved  # those that started at zero, and then others too


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_one_layer_cut_off_is_stopped(esm, tokens, tmp_path, method):
    model = get_peft_model(esm(), make_config(method, init_weights=True))
    layer = model.get_base_model().esm.encoder.layer[1].attention.self.key
    layer.register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(DeadAdapterError, match=r"1 of 12 .*layer\.1\.attention\.self\.key"):
        run(model, tokens, tmp_path)


def test_a_part_of_a_fused_module_that_is_cut_off_is_found(make_model, tokens, tmp_path):
    """GPT-2's keys, a third of `c_attn`."""
    model = get_peft_model(make_model("gpt2"), make_config("lorta", init_weights=True))
    layer = model.get_base_model().transformer.h[2].attn.c_attn

    def cut_keys(module, inputs, output):
        q, k, v = output.split(32, dim=-1)
        return torch.cat([q, k.detach(), v], dim=-1)

    layer.register_forward_hook(cut_keys)
    with pytest.raises(DeadAdapterError, match=r"1 of 12 .*h\.2\.attn\.c_attn\[key\]"):
        run(model, tokens, tmp_path)

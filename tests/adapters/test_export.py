"""Exported adapters: plain PEFT gives the same outputs from them, in a process that never saw this package."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch
from adapter_methods import FORMS, METHODS, make_config
from dense_updates import module_update
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import EsmConfig, EsmForMaskedLM, RobertaConfig, RobertaForSequenceClassification
from transformers.pytorch_utils import Conv1D

from protfold_peft.adapters import LoRTAConfig, TeRAConfig
from protfold_peft.adapters.discovery import innermost
from protfold_peft.adapters.folders.export import export_lora, module_pairs
from protfold_peft.adapters.folders.saved import SavedAdapter, read_adapter
from protfold_peft.adapters.layout import settle_layout
from protfold_peft.errors import CheckpointError, ConfigError, NonFiniteError

FAMILIES = ["esm", "gpt2", "llama", "roberta"]
EXACT = [form for form in FORMS if not form.startswith("tera")]


def saved(model, form, folder, **options):
    """A trained adapter in a folder, and the model that has it."""
    torch.manual_seed(2)
    adapted = get_peft_model(model, make_config(form, **({"target_modules": "all-linear"} | options))).eval()
    adapted.save_pretrained(folder)
    return adapted


def updates(model):
    """The dense update of every module of an adapted model, `(d_out, d_in)`, float64."""
    found: dict[str, torch.Tensor] = {}
    for network in model.base_model.networks("default").values():
        network.double()
        for site in network.sites:
            weight = innermost(model.base_model.model.get_submodule(site.path)).weight
            total = weight.shape[1] if site.transposed else weight.shape[0]
            with torch.no_grad():
                part = module_update(site, network.delta(site), total)
            found[site.path] = found.get(site.path, 0) + part
    return found


def exported_updates(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    paths = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        path.removeprefix("base_model.model."): tensors[f"{path}.lora_B.weight"].double()
        @ tensors[f"{path}.lora_A.weight"].double()
        for path in paths
    }


@pytest.mark.parametrize(
    ("family", "form"), [(f, m) for f in FAMILIES for m in (EXACT if f == "gpt2" else METHODS) if m != "tera"]
)
def test_plain_lora_gives_the_same_output(make_model, tokens, tmp_path, family, form):
    expected = saved(make_model(family).double(), form, tmp_path / "ours")(input_ids=tokens).logits
    base = make_model(family).double()(input_ids=tokens).logits
    report = export_lora(tmp_path / "ours", tmp_path / "lora")
    assert (report.residual, report.worst_module) == (0, None)
    model = PeftModel.from_pretrained(make_model(family).double(), tmp_path / "lora").eval()
    assert model.peft_config["default"].peft_type == "LORA"
    assert (expected - base).abs().max() > 1e-3
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=0, atol=1e-10)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(merged(input_ids=tokens).logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bias", ["all", "tensor_network_only"])
def test_trained_biases_go_along(make_model, tokens, tmp_path, bias):
    model = saved(make_model("esm").double(), "lorta", tmp_path / "first", bias=bias)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.endswith("bias"):
                parameter.add_(0.1)
    model.save_pretrained(tmp_path / "ours")
    export_lora(tmp_path / "ours", tmp_path / "lora")
    plain = PeftModel.from_pretrained(make_model("esm").double(), tmp_path / "lora").eval()
    expected = model(input_ids=tokens).logits
    torch.testing.assert_close(plain(input_ids=tokens).logits, expected, rtol=0, atol=1e-10)


def test_the_ranks_are_those_promised(make_model, tmp_path):
    saved(make_model("gpt2"), "lorta", tmp_path / "cp")
    # Query, key and value share A, so one pair of rank r serves the fused module.
    assert export_lora(tmp_path / "cp", tmp_path / "cp_lora").rank == 3
    saved(make_model("gpt2"), "lora", tmp_path / "lora")
    export_lora(tmp_path / "lora", tmp_path / "lora_lora")
    config = json.loads((tmp_path / "lora_lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 9
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert set(config["rank_pattern"].values()) == {3}
    assert len(config["rank_pattern"]) == 3 * 3
    assert config["fan_in_fan_out"] is True


def test_a_process_without_this_package_loads_it(esm, make_model, tokens, tmp_path):
    expected = {}
    for method in METHODS:
        adapted = saved(esm(), method, tmp_path / method)
        export_lora(tmp_path / method, tmp_path / f"{method}_lora", rank=32 if method == "tera" else None)
        expected[method] = adapted(input_ids=tokens).logits
    esm().save_pretrained(tmp_path / "base")
    torch.save({"tokens": tokens, "expected": expected}, tmp_path / "expected.pt")
    code = """
import sys, torch
from peft import PeftModel
from transformers import EsmForMaskedLM
stored = torch.load("expected.pt", weights_only=True)
for method, expected in stored["expected"].items():
    base = EsmForMaskedLM.from_pretrained("base")
    model = PeftModel.from_pretrained(base, f"{method}_lora")
    print(method, (model.eval()(input_ids=stored["tokens"]).logits - expected).abs().max().item())
assert "protfold_peft" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    differences = dict(line.split() for line in done.stdout.splitlines())
    assert set(differences) == set(METHODS)
    assert max(map(float, differences.values())) < 5e-6
    assert "Found missing adapter keys" not in done.stderr


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("form", ["tera", "tera_one_factor", "tera_three_factors", "tensor_train", "lora"])
@pytest.mark.parametrize("rank", [1, 5])
def test_a_chosen_rank_is_the_best_approximation(make_model, tmp_path, family, form, rank):
    """Against the singular values of the dense updates (Eckart and Young)."""
    adapted = saved(make_model(family), form, tmp_path / "ours", r=4)
    report = export_lora(tmp_path / "ours", tmp_path / "lora", rank=rank)
    written = exported_updates(tmp_path / "lora")
    total = lost = worst = 0.0
    for path, dense in updates(adapted).items():
        singular = torch.linalg.svdvals(dense)
        best = singular[rank:].square().sum().item()
        assert (written[path] - dense).square().sum().sqrt().item() == pytest.approx(best**0.5, abs=2e-5, rel=1e-4)
        total, lost = total + singular.square().sum().item(), lost + best
        worst = max(worst, (best / singular.square().sum().item()) ** 0.5)
    assert report.residual == pytest.approx((lost / total) ** 0.5, abs=1e-6)
    assert report.worst_residual == pytest.approx(worst, abs=1e-6)
    assert report.rank <= rank


def test_tera_needs_a_rank_and_is_exact_at_its_own(esm, tokens, tmp_path):
    adapted = saved(esm(), "tera", tmp_path / "ours", target_modules=["query"])
    with pytest.raises(ConfigError, match=r"--rank \(9 loses nothing there\)"):
        export_lora(tmp_path / "ours", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    assert export_lora(tmp_path / "ours", tmp_path / "lora", rank=9).residual == 0
    model = PeftModel.from_pretrained(esm(), tmp_path / "lora").eval()
    torch.testing.assert_close(model(input_ids=tokens).logits, adapted(input_ids=tokens).logits, rtol=1e-5, atol=2e-6)


def make_classifier():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = RobertaConfig(vocab_size=40, max_position_embeddings=32, num_labels=3, **sizes)
    return RobertaForSequenceClassification(config).eval().double()


def test_a_classification_head_survives(tokens, tmp_path):
    """Both layers of RoBERTa's classifier, which peft.convert_to_lora makes one broken key of."""
    adapted = saved(make_classifier(), "lorta", tmp_path / "ours", task_type="SEQ_CLS")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(4))
    adapted.save_pretrained(tmp_path / "ours")
    expected = adapted(input_ids=tokens).logits
    report = export_lora(tmp_path / "ours", tmp_path / "lora")
    assert "classifier" in report.modules_to_save
    config = LoraConfig.from_pretrained(tmp_path / "lora")
    assert config.task_type == "SEQ_CLS"
    model = PeftModel.from_pretrained(make_classifier(), tmp_path / "lora").eval()
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=0, atol=1e-10)
    assert (make_classifier()(input_ids=tokens).logits - expected).abs().max() > 0.1


def test_what_the_configuration_says_is_kept(esm, tmp_path):
    options = {"dropout": 0.25, "revision": "abc", "base_model_name_or_path": "someone/model", "task_type": "TOKEN_CLS"}
    saved(esm(), "lotr", tmp_path / "ours", **options)
    text = (tmp_path / "ours" / "adapter_config.json").read_text()
    changed = json.loads(text) | {"base_model_name_or_path": "someone/model", "revision": "abc"}
    (tmp_path / "ours" / "adapter_config.json").write_text(json.dumps(changed))
    export_lora(tmp_path / "ours", tmp_path / "lora")
    config = LoraConfig.from_pretrained(tmp_path / "lora")
    assert (config.lora_dropout, config.revision, config.task_type) == (0.25, "abc", "TOKEN_CLS")
    assert config.base_model_name_or_path == "someone/model"
    assert config.inference_mode is True
    assert 'base_model: "someone/model"' in (tmp_path / "lora" / "README.md").read_text()


class Suffixes(torch.nn.Module):
    """`fc` is also the end of `block.fc`, and both have their own size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = torch.nn.Linear(6, 8)
        self.block = torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 8), "other": torch.nn.Identity()})
        self.fc_pool = torch.nn.ModuleDict({"fc": torch.nn.Identity()})

    def forward(self, x):
        return self.fc_pool["fc"](self.block["fc"](self.fc(x)))


@pytest.mark.parametrize("targets", ["fc", r"fc|block\.fc"])
def test_a_path_that_ends_others_matches_itself_alone(tmp_path, targets):
    x = torch.randn(4, 6)
    torch.manual_seed(2)
    adapted = get_peft_model(Suffixes(), LoRTAConfig(r=2, target_modules=targets, init_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "ours")
    export_lora(tmp_path / "ours", tmp_path / "lora")
    model = PeftModel.from_pretrained(Suffixes(), tmp_path / "lora").eval()
    torch.testing.assert_close(model(x), adapted(x))
    assert hasattr(model.base_model.model.block["fc"], "lora_A") == ("block" in targets)


class Mixed(torch.nn.Module):
    """A Conv1D, whose weight is kept transposed, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = torch.nn.Linear(6, 8), Conv1D(5, 8), torch.nn.Linear(5, 7)

    def forward(self, x):
        return self.third(self.second(self.first(x)))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "tera"])
def test_transposed_and_plain_layers_in_one_adapter(tmp_path, method):
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.manual_seed(2)
    config = make_config(method, target_modules=["first", "second", "third"])
    adapted = get_peft_model(Mixed().double(), config).eval()
    adapted.save_pretrained(tmp_path / "ours")
    expected = adapted(x)
    export_lora(tmp_path / "ours", tmp_path / "lora")
    model = PeftModel.from_pretrained(Mixed().double(), tmp_path / "lora").eval()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.merge_and_unload()(x), expected, rtol=0, atol=1e-10)


def test_half_precision_factors_stay_so(esm, tmp_path):
    torch.manual_seed(2)
    model = get_peft_model(esm().bfloat16(), make_config("lorta"), autocast_adapter_dtype=False)
    model.save_pretrained(tmp_path / "ours")
    export_lora(tmp_path / "ours", tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_refusals(esm, tmp_path):
    folder = tmp_path / "ours"
    saved(esm(), "lorta", folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty"):
        export_lora(folder, tmp_path / "full")
    with pytest.raises(ConfigError, match="more than a saved adapter"):
        export_lora(folder, tmp_path / "full", overwrite=True)
    for out in (folder, tmp_path):
        with pytest.raises(ConfigError, match="is, or holds, the input"):
            export_lora(folder, out, overwrite=True)
    with pytest.raises(CheckpointError, match="is not a folder"):
        export_lora(tmp_path / "gone", tmp_path / "lora")
    export_lora(folder, tmp_path / "lora")
    with pytest.raises(CheckpointError, match="PEFT's own type LORA"):
        export_lora(tmp_path / "lora", tmp_path / "again")
    export_lora(folder, tmp_path / "lora", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "lora", "ours"]

    broken = saved(esm(), "lorta", folder)
    with torch.no_grad():
        broken.base_model.networks("default")["attention"].A[0, 0] = torch.nan
    broken.save_pretrained(folder)
    with pytest.raises(NonFiniteError, match="NaN"):
        export_lora(folder, tmp_path / "lora", overwrite=True)
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()


def esm2_3b(config):
    """An adapter of ESM-2 3B, from the model's structure alone."""
    sizes = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 40, "intermediate_size": 10240}
    with torch.device("meta"):
        model = EsmForMaskedLM(EsmConfig(vocab_size=33, position_embedding_type="rotary", pad_token_id=1, **sizes))
    config.layout = settle_layout(config, model)
    torch.manual_seed(0)
    networks = dict(config.build().items())
    for network in networks.values():
        network.draw_frozen()
        network.reset_parameters(config.init, zero_start=False)
    return SavedAdapter(config, networks, {})


@pytest.mark.parametrize("config", [LoRTAConfig(r=8), TeRAConfig(r=8)])
def test_the_size_of_esm2_3b_takes_seconds(config):
    adapter = esm2_3b(config)
    start = time.perf_counter()
    pairs = list(module_pairs(adapter, 16))
    assert time.perf_counter() - start < 120
    assert len(pairs) == 36 * 4
    assert all(pair.up.shape[0] == pair.down.shape[1] == 2560 for pair in pairs)


def test_large_cores_are_cut_close_to_the_best(tmp_path):
    """The randomised singular vectors lose at most a hundredth more than the exact ones."""
    torch.manual_seed(0)
    core = torch.randn(600, 700, dtype=torch.float64) @ torch.diag(torch.linspace(1, 0.1, 700).double())
    from protfold_peft.adapters.folders.pairs import _cut

    identity = [torch.eye(n, dtype=torch.float64) for n in core.shape]
    down, up, norm, lost = _cut(identity[0], core, identity[1], 16)
    best = torch.linalg.svdvals(core)[16:].norm().item()
    assert norm == pytest.approx(torch.linalg.norm(core).item())
    assert lost == pytest.approx(torch.linalg.norm(core - up @ down).item())
    assert best <= lost <= 1.01 * best


def test_reading_gives_back_what_was_saved(esm, tmp_path):
    for method in METHODS:
        adapted = saved(esm(), method, tmp_path / method)
        read = read_adapter(tmp_path / method)
        for group, network in adapted.base_model.networks("default").items():
            for name, factor in network.named_parameters():
                assert torch.equal(read.networks[group].get_parameter(name), factor)

"""`protfold adapter` as a user meets it: tables, files that others load, errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from adapter_methods import METHODS, make_config
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import randomise, tiny_config
from transformers import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForProteinFolding,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)
from typer.testing import CliRunner

from protfold_peft.adapters import load_adapter
from protfold_peft.cli.adapter import parse_weight
from protfold_peft.cli.main import app
from protfold_peft.errors import ConfigError

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def protfold(*arguments):
    return CliRunner().invoke(app, ["adapter", *(str(argument) for argument in arguments)], env={"COLUMNS": "140"})


def make_base(family, folder):
    """A model's folder, and a function that loads it."""
    torch.manual_seed(0)
    if family == "esm":
        config = EsmConfig(
            vocab_size=33, position_embedding_type="rotary", pad_token_id=1, token_dropout=False, **SIZES
        )
        model = EsmForMaskedLM(config)
    elif family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=3, n_head=4, n_inner=48, n_positions=32))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, head_dim=12, **SIZES))
    else:
        model = RobertaForMaskedLM(RobertaConfig(vocab_size=40, max_position_embeddings=32, **SIZES))
    model.save_pretrained(folder)
    kind = RobertaForSequenceClassification if family == "classifier" else type(model)
    labels = {"num_labels": 3} if family == "classifier" else {}
    return lambda: kind.from_pretrained(folder, **labels).eval()


def make_adapter(load, method, folder, seed=2, **options):
    torch.manual_seed(seed)
    adapted = get_peft_model(load(), make_config(method, **options)).eval()
    adapted.save_pretrained(folder)
    return adapted


@pytest.fixture
def tokens():
    return torch.randint(4, 24, (2, 9), generator=torch.Generator().manual_seed(1))


def test_info_counts_what_is_in_the_folder(tmp_path):
    load = make_base("esm", tmp_path / "base")
    adapted = make_adapter(load, "lorta", tmp_path / "ours", r=4)
    result = protfold("info", tmp_path / "ours")
    assert result.exit_code == 0, result.stderr
    for words in ("LoRTA", "A (32, 4)", "Ch (4, 4)", "heads 4", "query, key, value", "rank 4", "name base"):
        assert words in result.stdout
    found = json.loads(protfold("info", tmp_path / "ours", "--json").stdout)
    (network,) = adapted.base_model.networks("default").values()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert found["parameters"] == found["groups"][0]["parameters"] == count == 4 * (32 + 8 + 4 + 3 + 4)
    assert found["file_bytes"] == (tmp_path / "ours" / "adapter_model.safetensors").stat().st_size
    everything = sum(parameter.numel() for parameter in load().parameters())
    assert found["share"] == pytest.approx(count / everything)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    assert json.loads(protfold("info", tmp_path / "ours", "--json").stdout)["share"] is None


@pytest.mark.parametrize("method", METHODS)
def test_info_of_every_method_and_a_head(tmp_path, method):
    load = make_base("classifier", tmp_path / "base")
    make_adapter(load, method, tmp_path / "ours", task_type="SEQ_CLS")
    result = protfold("info", tmp_path / "ours")
    assert result.exit_code == 0, result.stderr
    assert "classifier, score (1,155 parameters)" in result.stdout
    found = json.loads(protfold("info", tmp_path / "ours", "--json").stdout)
    saved = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert found["parameters"] + found["saved_in_full_parameters"] == sum(tensor.numel() for tensor in saved.values())
    assert found["method"].lower().replace("-", "_") == method


def test_info_of_a_lora_of_pefts(tmp_path):
    load = make_base("esm", tmp_path / "base")
    get_peft_model(load(), LoraConfig(r=4, target_modules=["query"])).save_pretrained(tmp_path / "lora")
    found = json.loads(protfold("info", tmp_path / "lora", "--json").stdout)
    assert (found["method"], found["rank"], found["modules"], found["parameters"]) == ("LORA", 4, 3, 3 * 4 * 64)


@pytest.mark.parametrize(("family", "method"), [("esm", m) for m in METHODS] + [("gpt2", "tera"), ("llama", "lorta")])
def test_merge_gives_a_model_that_transformers_loads(tmp_path, tokens, family, method):
    load = make_base(family, tmp_path / "base")
    expected = make_adapter(load, method, tmp_path / "ours")(input_ids=tokens).logits
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    result = protfold("merge", tmp_path / "base", tmp_path / "ours", tmp_path / "merged")
    assert result.exit_code == 0, result.stderr
    assert "with its tokenizer" in result.stdout
    assert (tmp_path / "merged" / "tokenizer.json").read_text() == "{}"
    model = type(load()).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-5)
    assert (load()(input_ids=tokens).logits - expected).abs().max() > 1e-3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["tensor", "lora"])
def test_merge_takes_the_class_and_the_labels_from_the_adapter(tmp_path, tokens, kind):
    """The base folder says RobertaForMaskedLM; the adapter is of a classifier with a head of its own."""
    load = make_base("classifier", tmp_path / "base")
    if kind == "tensor":
        adapted = make_adapter(load, "lorta", tmp_path / "ours", task_type="SEQ_CLS")
    else:
        settings = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
        adapted = get_peft_model(load(), settings).eval()
        adapted.save_pretrained(tmp_path / "ours")
    result = protfold("merge", tmp_path / "base", tmp_path / "ours", tmp_path / "merged")
    assert result.exit_code == 0, result.stderr
    assert "RobertaForSequenceClassification" in result.stdout
    model = RobertaForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(model(input_ids=tokens).logits, adapted(input_ids=tokens).logits, rtol=1e-4, atol=1e-5)


def test_merge_into_a_folding_model(tmp_path):
    torch.manual_seed(0)
    model = EsmForProteinFolding(tiny_config()).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "base")

    def load():
        return EsmForProteinFolding.from_pretrained(tmp_path / "base").eval()

    adapted = make_adapter(load, "lorta", tmp_path / "ours")
    tokens = torch.randint(0, 20, (1, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = adapted(input_ids=tokens).positions
        before = load()(input_ids=tokens).positions
    result = protfold("merge", tmp_path / "base", tmp_path / "ours", tmp_path / "merged")
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == ["EsmForProteinFolding"]
    with torch.no_grad():
        actual = EsmForProteinFolding.from_pretrained(tmp_path / "merged").eval()(input_ids=tokens).positions
    assert (before - expected).abs().max() > 1e-2
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_to_lora_and_from_lora(tmp_path, tokens):
    load = make_base("llama", tmp_path / "base")
    expected = make_adapter(load, "lorta", tmp_path / "ours")(input_ids=tokens).logits
    result = protfold("to-lora", tmp_path / "ours", tmp_path / "lora")
    assert result.exit_code == 0, result.stderr
    assert "exact" in result.stdout
    theirs = PeftModel.from_pretrained(load(), tmp_path / "lora").eval()(input_ids=tokens).logits
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5)
    result = protfold("from-lora", tmp_path / "lora", tmp_path / "again", "--rank", 3)
    assert result.exit_code == 0, result.stderr
    assert float(result.stdout.split("relative error ")[1].split()[0]) < 1e-5
    ours = load_adapter(load(), tmp_path / "again").eval()(input_ids=tokens).logits
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_to_lora_of_tera_tells_the_error(tmp_path):
    load = make_base("esm", tmp_path / "base")
    make_adapter(load, "tera", tmp_path / "ours")
    result = protfold("to-lora", tmp_path / "ours", tmp_path / "lora", "--rank", 2)
    assert result.exit_code == 0, result.stderr
    assert 0 < float(result.stdout.split("relative error ")[1].split()[0]) < 1


@pytest.mark.parametrize("method", [method for method in METHODS if method != "tera"])
def test_combine_is_the_weighted_sum_of_updates(tmp_path, method):
    load = make_base("gpt2", tmp_path / "base")
    parts = [make_adapter(load, method, tmp_path / name, seed, r=r) for name, seed, r in (("a", 2, 3), ("b", 3, 2))]
    result = protfold("combine", tmp_path / "sum", f"{tmp_path / 'a'}=0.25", f"{tmp_path / 'b'}=-2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("rank 5, ")
    found = load_adapter(load(), tmp_path / "sum")
    for path, module in found.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            a, b = (part.base_model.model.get_submodule(path).get_delta_weight("default") for part in parts)
            torch.testing.assert_close(module.get_delta_weight("default"), 0.25 * a - 2 * b, rtol=1e-4, atol=1e-5)


def test_combine_keeps_a_head_that_all_agree_on(tmp_path):
    load = make_base("classifier", tmp_path / "base")
    make_adapter(load, "lorta", tmp_path / "a", task_type="SEQ_CLS")
    make_adapter(load, "lorta", tmp_path / "b", 3, task_type="SEQ_CLS")
    arguments = ("combine", tmp_path / "sum", tmp_path / "a", tmp_path / "b")
    result = protfold(*arguments)
    assert result.exit_code == 2
    assert "have no sum; leave them out with --drop-modules" in result.stderr
    assert protfold(*arguments, "--drop-modules").exit_code == 0
    assert all("tensor_factors" in name for name in load_file(tmp_path / "sum" / "adapter_model.safetensors"))
    result = protfold("combine", tmp_path / "twice", f"{tmp_path / 'a'}=0.5", f"{tmp_path / 'a'}=0.5")
    assert result.exit_code == 0, result.stderr
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "twice"))
    name = "base_model.model.classifier.out_proj.weight"
    assert torch.equal(one[name], two[name])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "nowhere"], "nowhere is not a folder"),
        (["info", "base"], "holds no adapter_config.json"),
        (["to-lora", "nowhere", "out"], "nowhere is not a folder"),
        (["to-lora", "tera", "out"], "--rank (9 loses nothing there)"),
        (["to-lora", "lora", "out"], "PEFT's own type LORA"),
        (["to-lora", "lorta", "base"], "is not empty"),
        (["to-lora", "lorta", "lorta", "--overwrite"], "is, or holds, the input"),
        (["from-lora", "lorta", "out"], "not a LoRA"),
        (["from-lora", "lora", "out", "--method", "lrota"], "method 'lrota' is not known"),
        (["from-lora", "lora", "out", "--base", "./nowhere"], "./nowhere does not exist"),
        (["combine", "out", "lorta=x"], "'x' is no number"),
        (["combine", "out", "lorta=nan"], "finite"),
        (["combine", "out", "lorta", "lotr"], "they have no common tensor"),
        (["combine", "out", "tera", "tera"], "to-lora"),
        (["merge", "base", "nowhere", "out"], "nowhere is not a folder"),
        (["merge", "lorta", "lorta", "out"], "it is an adapter, not a model"),
        (["merge", "./nowhere", "lorta", "out"], "./nowhere does not exist"),
        (["merge", "protfold-mini-untrained", "lorta", "out"], "has random weights"),
        (["merge", "llama", "lorta", "out"], "has no module 'esm.encoder"),
        (["merge", "base", "broken", "out"], "not finite"),
    ],
)
def test_errors_are_one_line_and_status_2(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    load = make_base("esm", tmp_path / "base")
    make_base("llama", tmp_path / "llama")
    for method in ("lorta", "lotr", "tera"):
        make_adapter(load, method, tmp_path / method, target_modules=["query"])
    get_peft_model(load(), LoraConfig(r=4, target_modules=["query"])).save_pretrained(tmp_path / "lora")
    broken = make_adapter(load, "lorta", tmp_path / "broken")
    with torch.no_grad():
        broken.base_model.networks("default")["attention"].A.fill_(torch.inf)
    broken.save_pretrained(tmp_path / "broken")
    result = protfold(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    shown = protfold(*arguments, "--debug")
    assert type(shown.exception).__name__ in ("CheckpointError", "ConfigError", "BrokenAdapterError")


def test_weights_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert [(str(folder), weight) for folder, weight in map(parse_weight, ("a/b=0.5", "a=-1e-3", "a", "lr=0.1"))] == [
        ("a/b", 0.5),
        ("a", -1e-3),
        ("a", 1.0),
        ("lr=0.1", 1.0),
    ]
    assert parse_weight("lr=0.1=2")[1] == 2
    for text in ("a=half", "=1"):
        with pytest.raises(ConfigError):
            parse_weight(text)


@pytest.mark.parametrize("command", ["info", "merge", "to-lora", "from-lora", "combine"])
def test_help_has_an_example(command):
    result = protfold(command, "--help")
    assert result.exit_code == 0
    assert f"protfold adapter {command}" in " ".join(result.output.replace("│", " ").split()).split("Example")[1]


def test_help_of_the_group_imports_no_torch():
    code = (
        "import sys; sys.argv = ['protfold', 'adapter', '--help']\n"
        "from protfold_peft.cli.main import app\n"
        "app(standalone_mode=False)\n"
        "print('HEAVY', [name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout

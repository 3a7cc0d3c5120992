"""Bad adapter folders: each way of being bad gives one clear error, and nothing runs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from protfold_peft.adapters import LoRTAConfig, TensorAdapterConfig, load_adapter
from protfold_peft.errors import CheckpointError, ConfigError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture
def folder(esm, adapted, tmp_path) -> Path:
    adapted(esm()).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder, **keys):
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(content | keys))


def assert_refused(load, error, says):
    with pytest.raises(error, match=says) as caught:
        load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights(esm, folder, keep):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    for load in (load_adapter, PeftModel.from_pretrained):
        assert_refused(lambda load=load: load(esm(), folder), CheckpointError, "truncated or not a safetensors file")


@pytest.mark.parametrize("name", ["adapter_model.bin", WEIGHTS])
def test_a_pickle_is_refused_and_never_runs(esm, folder, tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    for load in (load_adapter, PeftModel.from_pretrained):
        assert_refused(lambda load=load: load(esm(), folder), CheckpointError, "pickle|not a safetensors file")
    assert not (tmp_path / "exploded").exists()


def test_truncated_or_foreign_configuration(esm, folder):
    text = (folder / CONFIG).read_text()
    for content, says in [(text[:200], "truncated or not JSON"), ("", "truncated"), ("[]", "no 'peft_type'")]:
        (folder / CONFIG).write_text(content)
        assert_refused(lambda: load_adapter(esm(), folder), CheckpointError, says)


def test_missing_files(esm, folder, tmp_path):
    assert_refused(lambda: load_adapter(esm(), tmp_path / "nowhere"), CheckpointError, "is not a folder")
    assert_refused(lambda: load_adapter(esm(), tmp_path), CheckpointError, f"holds no {CONFIG}")
    (folder / WEIGHTS).unlink()
    assert_refused(lambda: load_adapter(esm(), folder), CheckpointError, f"holds no {WEIGHTS}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 4}, "3 layers; this one has 4"),
        ({"hidden_size": 64}, "32 x 32, 4 heads in the adapter and 64 x 64"),
        ({"num_attention_heads": 8}, "8 heads in this model"),
    ],
)
def test_an_adapter_of_another_model(esm, folder, changes, says):
    for load in (load_adapter, PeftModel.from_pretrained):
        assert_refused(lambda load=load: load(esm(**changes), folder), CheckpointError, says)


def test_an_adapter_of_another_architecture(llama, folder):
    assert_refused(lambda: load_adapter(llama(), folder), CheckpointError, "no module 'esm.encoder.layer.0")


def test_weights_of_another_rank(esm, folder):
    change(folder, r=4)
    for load in (load_adapter, PeftModel.from_pretrained):
        assert_refused(lambda load=load: load(esm(), folder), CheckpointError, r"shape \(32, 3\).*rank 4.*\(32, 4\)")


def test_a_missing_or_extra_factor(esm, folder):
    saved = load_file(folder / WEIGHTS)
    save_file(saved | {"base_model.tensor_factors.attention.D": torch.zeros(2)}, folder / WEIGHTS)
    assert_refused(lambda: load_adapter(esm(), folder), CheckpointError, "attention.D' is not in the configuration")
    del saved["base_model.tensor_factors.attention.Cl"]
    save_file(saved, folder / WEIGHTS)
    assert_refused(lambda: load_adapter(esm(), folder), CheckpointError, "attention.Cl' is missing")


def test_an_unknown_key_is_an_error_not_a_warning(esm, folder):
    change(folder, rank=[3])
    assert_refused(lambda: load_adapter(esm(), folder), ConfigError, "no key 'rank'")
    assert_refused(lambda: PeftModel.from_pretrained(esm(), folder), ConfigError, "no key 'rank'")


def test_a_damaged_layout(esm, folder):
    for layout, says in [
        (None, "no layout"),
        ([], "no layout"),
        ({"layers": 3, "sites": {}}, r"version None, this protfold-peft reads 3"),
        ({"version": 9}, r"version 9, this protfold-peft reads 3"),
        ({"version": 3}, "no layout"),
        ({"version": 3, "groups": {"x": {}}}, "group 'x'"),
        ({"version": 3, "groups": {"x": 3}}, "group 'x'"),
    ]:
        change(folder, layout=layout)
        assert_refused(lambda: load_adapter(esm(), folder), CheckpointError, says)


def test_an_adapter_of_another_method_is_loaded_by_peft(esm, tmp_path, tokens):
    trained = get_peft_model(esm(), LoraConfig(r=1, target_modules=["query"], init_lora_weights=False)).eval()
    trained.save_pretrained(tmp_path)
    expected = trained(input_ids=tokens).logits
    assert torch.equal(load_adapter(esm(), tmp_path).eval()(input_ids=tokens).logits, expected)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert_refused(lambda: load_adapter(esm(), tmp_path), CheckpointError, "truncated")


def test_loading_fails_before_the_model_is_touched(esm, folder, tokens):
    change(folder, r=4)
    model = esm()
    with pytest.raises(CheckpointError):
        PeftModel.from_pretrained(model, folder)
    assert set(model.state_dict()) == set(esm().state_dict())


def test_a_configuration_alone_can_be_read(tmp_path):
    LoRTAConfig(r=4, use_rslora=True).save_pretrained(tmp_path)
    config = TensorAdapterConfig.from_pretrained(tmp_path)
    assert type(config) is LoRTAConfig
    assert (config.r, config.scaling) == (4, 4.0)

"""TeRA's frozen tensors: the same on every base, in every process, and refused where they are not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from adapter_methods import make_config
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from protfold_peft.adapters import load_adapter
from protfold_peft.errors import CheckpointError


def buffers(model):
    return {
        f"{group}.{name}": buffer
        for group, network in model.base_model.networks("default").items()
        for name, buffer in network.named_buffers()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_same_whatever_the_bases_format(esm, dtype):
    reference = buffers(get_peft_model(esm(), make_config("tera")))
    torch.manual_seed(99)  # the global generator has no part in it
    found = buffers(get_peft_model(esm().to(dtype), make_config("tera")))
    assert {name: buffer.dtype for name, buffer in found.items()} == dict.fromkeys(found, torch.float32)
    assert all(torch.equal(found[name], reference[name]) for name in reference)


def test_the_seed_and_the_group_decide(esm):
    first = buffers(get_peft_model(esm(), make_config("tera", target_modules="all-linear")))
    other = buffers(get_peft_model(esm(), make_config("tera", target_modules="all-linear", seed=1)))
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["linear_48x32.G"], first["linear_32x48.G"])
    # A group is drawn alike whether or not there are others.
    alone = buffers(get_peft_model(esm(), make_config("tera", target_modules=["intermediate.dense"])))
    assert all(torch.equal(alone[name], first[name]) for name in alone)


def test_the_same_in_another_process(esm, tmp_path):
    get_peft_model(esm(), make_config("tera")).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())["layout"]["frozen_sha256"]
    script = (
        "import torch; from torch import nn; from peft import get_peft_model; from protfold_peft import TeRAConfig\n"
        "class Model(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.query = nn.Linear(32, 32)\n"
        "model = get_peft_model(Model(), TeRAConfig(r=3, target_modules=['query']))\n"
        "print(model.peft_config['default'].layout['frozen_sha256'])\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(stored)


@pytest.mark.parametrize("init", ["authors", "orthogonal", "rank_stable"])
def test_known_checksums(esm, init):
    """Stored once: whoever changes the draw breaks every adapter that is out there."""
    model = get_peft_model(esm(), make_config("tera", init=init))
    assert (
        model.peft_config["default"].layout["frozen_sha256"]["linear_32x32"][:16]
        == {
            "authors": "fb6eddc7f3121377",
            "orthogonal": "aae05c99677ed207",
            "rank_stable": "1bb8f2f0a1024841",
        }[init]
    )


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("save_frozen", [False, True])
def test_save_and_load(esm, tokens, tmp_path, save_frozen, low_cpu_mem_usage):
    torch.manual_seed(2)
    model = get_peft_model(esm(), make_config("tera", save_frozen=save_frozen)).eval()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.rsplit(".", 1)[1] for name in saved} == {f"v{n}" for n in range(1, 5)} | (
        {"G", "U1", "U2", "U3", "U4"} if save_frozen else set()
    )
    loaded = PeftModel.from_pretrained(esm(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_other_frozen_tensors_are_refused(esm, tmp_path):
    """As if the draw differed on the machine that loads it."""
    get_peft_model(esm(), make_config("tera")).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    config["layout"]["frozen_sha256"]["linear_32x32"] = "0" * 64
    path.write_text(json.dumps(config))
    for load in (load_adapter, PeftModel.from_pretrained):
        with pytest.raises(CheckpointError, match=r"frozen tensors of group 'linear_32x32'.*save_frozen=True"):
            load(esm(), tmp_path)

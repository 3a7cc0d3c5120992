"""An adapter that was trained under ESM-2's masked-LM head goes into an ESMFold around the same ESM-2."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from tiny_models import randomise, save_tiny_esm, tiny_config
from transformers import EsmForMaskedLM
from typer.testing import CliRunner

from protfold_peft.adapters import METHODS
from protfold_peft.adapters.transfer import load_fitting_adapter
from protfold_peft.cli.main import app
from protfold_peft.errors import CheckpointError
from protfold_peft.folding.model import EsmFold
from protfold_peft.runtime import LOGGER

SEQUENCES = ["MKTAYIAKQRLEDVW", "NLYIQWLKDGGPSSGRPPPS", "GGSSKLVEDAAWY"]
OURS_AND_LORA = [*METHODS, "peft_lora"]


@pytest.fixture
def fasta(write):
    return write("chains.fasta", "".join(f">c{n}\n{sequence}\n" for n, sequence in enumerate(SEQUENCES)))


@pytest.fixture
def adapt(lm, fasta, tmp_path):
    """A function that trains an adapter of an ESM-2 by the command line."""

    def make(esm, method="lorta", name="adapter"):
        config = {
            "model": {"name": str(esm), "device": "cpu"},
            "adapter": {"method": method, "rank": 2},
            "data": {"train": str(fasta)},
            "training": {"steps": 4, "batch_size": 3, "learning_rate": 0.05},
        }
        result = lm("mlm", config, "--out", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        return tmp_path / name

    return make


def esmfold_around(esm):
    """A folding model whose language model has the weights of the given ESM-2."""
    model = EsmFold(tiny_config()).eval()
    randomise(model)
    trained = EsmForMaskedLM.from_pretrained(esm)
    missing, unexpected = model.esm.load_state_dict(trained.esm.state_dict(), strict=False)
    assert not [name for name in missing if "contact_head" not in name]
    assert not unexpected
    return model


@pytest.mark.parametrize("method", OURS_AND_LORA)
def test_the_language_model_inside_esmfold_computes_what_the_adapted_one_does(esm, adapt, method):
    """The hidden states of the two, layer by layer, with the adapter on, and off again."""
    folder = adapt(esm, method)
    alone = PeftModel.from_pretrained(EsmForMaskedLM.from_pretrained(esm), folder).eval()
    folding = load_fitting_adapter(esmfold_around(esm), folder).eval()
    tokens = torch.tensor([[0, 20, 15, 11, 5, 19, 12, 5, 15, 2]])

    def states(encoder):
        with torch.no_grad():
            return encoder(input_ids=tokens, output_hidden_states=True).hidden_states

    one = states(alone.get_base_model().esm)
    other = states(folding.get_base_model().esm)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with folding.disable_adapter():
        plain = states(folding.get_base_model().esm)
    assert (plain[-1] - other[-1]).abs().max() > 1e-3


def test_protfold_predict_takes_it_and_the_structure_changes(esm, adapt, fasta, tmp_path):
    esmfold_around(esm).save_pretrained(tmp_path / "esmfold")
    folder = adapt(esm)

    def predict(name, *more):
        arguments = ["predict", fasta, "--model", tmp_path / "esmfold", "--out", tmp_path / name, "--recycles", 0]
        arguments += ["--no-plots", "--no-report", "--device", "cpu", *more]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        LOGGER.handlers.clear()
        return result

    assert predict("base").exit_code == 0
    adapted = predict("adapted", "--adapter", folder)
    assert adapted.exit_code == 0, adapted.stderr
    assert (tmp_path / "base" / "c0.pdb").read_text() != (tmp_path / "adapted" / "c0.pdb").read_text()
    scores = json.loads((tmp_path / "adapted" / "c0_scores.json").read_text())
    assert scores["provenance"]["adapter"] != "none"


@pytest.mark.parametrize("method", ["lorta", "tera", "peft_lora"])
@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"num_hidden_layers": 2}, ("2 layers", "3 layers")),
        ({"hidden_size": 48}, ("width 48", "width 32")),
        ({"hidden_size": 64, "num_hidden_layers": 4}, ("4 layers", "3 layers")),
    ],
)
def test_an_adapter_of_another_size_is_refused_naming_both(adapt, fasta, tmp_path, method, changes, sizes):
    other = save_tiny_esm(tmp_path / "other", **changes)
    folder = adapt(other, method)
    with pytest.raises(CheckpointError) as caught:
        load_fitting_adapter(EsmFold(tiny_config()), folder)
    message = str(caught.value)
    assert "\n" not in message
    for size in sizes:
        assert size in message or (method == "peft_lora" and size.startswith("width 48") and "48" in message)


def test_protfold_predict_says_so(adapt, fasta, tmp_path, esm):
    esmfold_around(esm).save_pretrained(tmp_path / "esmfold")
    folder = adapt(save_tiny_esm(tmp_path / "other", num_hidden_layers=2), "peft_lora")
    arguments = ["predict", fasta, "--model", tmp_path / "esmfold", "--out", tmp_path / "out", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--adapter", folder]])
    LOGGER.handlers.clear()
    assert result.exit_code == 2
    assert "2 layers" in result.stderr
    assert "3 layers" in result.stderr


def test_an_adapter_of_esm_c_is_trained_too(lm, fasta, tmp_path):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "EsmcForMaskedLM"):
        pytest.skip("this transformers has no ESM C")
    folder = tmp_path / "esmc"
    torch.manual_seed(0)
    config = transformers.EsmcConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=48
    )
    transformers.EsmcForMaskedLM(config).save_pretrained(folder)
    transformers.EsmcTokenizer().save_pretrained(folder)
    settings = {
        "model": {"name": str(folder), "device": "cpu"},
        "adapter": {"rank": 2},
        "data": {"train": str(fasta), "validation": str(fasta)},
        "training": {"steps": 30, "batch_size": 3, "learning_rate": 0.1},
    }
    result = lm("mlm", settings, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["adapted"]["loss"] < results["base"]["loss"]

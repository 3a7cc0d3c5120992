"""Loading models and adapters, and what a prediction holds."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.esm.modeling_esmfold import EsmForProteinFolding

from protfold_peft.errors import CheckpointError, ConfigError, NonFiniteError
from protfold_peft.folding.load import load_model, parse_precision
from protfold_peft.folding.mini import build_mini
from protfold_peft.folding.predict import chain_id, predict, predict_batch
from protfold_peft.folding.types import Record

UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"


@pytest.fixture(scope="module")
def mini():
    return load_model("protfold-mini-untrained", device="cpu")


def test_the_untrained_model_is_the_same_everywhere_and_says_what_it_is(mini) -> None:
    # Values of NumPy's frozen RandomState; they must never change, or adapters trained on the model stop fitting.
    weight = build_mini().esm.encoder.layer[3].attention.self.query.weight
    expected = mini.network.state_dict()["esm.encoder.layer.3.attention.self.query.weight"]
    assert torch.equal(weight, expected)
    assert float(weight[0, 0]) == pytest.approx(0.09929904, abs=1e-7)
    assert 3e6 < sum(p.numel() for p in mini.network.parameters()) < 8e6
    assert mini.untrained
    assert "UNTRAINED" in predict(mini, "MKV", recycles=0).provenance["warning"]


def test_prediction_of_a_complex(mini) -> None:
    sequence = "GIVEQCCTSICSLYQLENYCN:FVNQHLCGSHLVEALYLVCGERGFFYTPKT"
    prediction = predict(mini, sequence, name="insulin", recycles=1)
    first, second = prediction.structure.chains
    assert (first.id, second.id) == ("A", "B")
    assert f"{first.sequence}:{second.sequence}" == sequence
    assert second.residue_numbers.tolist() == list(range(1, 31))
    assert prediction.plddt.shape == (51,)
    assert prediction.pae.shape == (51, 51)
    assert prediction.chain_pair_iptm.shape == (2, 2)
    assert 0 < prediction.iptm < 1
    assert second.b_factors[0, 1] == prediction.plddt[21]
    assert prediction.max_pae == pytest.approx(31.75)
    assert prediction.mean_plddt == pytest.approx(prediction.plddt.mean())


def test_atoms_are_the_models_own(mini) -> None:
    """Against stock transformers' own conversion to a PDB file."""
    prediction = predict(mini, UBIQUITIN, recycles=0)
    network = mini.network
    ids = torch.tensor([["ARNDCQEGHILKMFPSTWYV".index(letter) for letter in UBIQUITIN]])
    with torch.no_grad():
        lines = EsmForProteinFolding.output_to_pdb(dict(network(ids, recycles=0)))[0].splitlines()
    chain = prediction.structure.chains[0]
    from protfold_peft.structure.residues import ATOM_TYPES

    atoms = [line for line in lines if line.startswith("ATOM")]
    assert len(atoms) == chain.atom_mask.sum()
    for line in atoms:
        residue, atom = int(line[22:26]) - 1, list(ATOM_TYPES).index(line[12:16].strip())
        xyz = [float(line[i : i + 8]) for i in (30, 38, 46)]
        assert chain.atom_mask[residue, atom]
        assert np.abs(chain.atom_positions[residue, atom] - xyz).max() < 6e-4


def test_unknown_residues_stay_in_place(mini) -> None:
    chain = predict(mini, "AXCUO", recycles=0).structure.chains[0]
    assert chain.residue_names == ("ALA", "UNK", "CYS", "SEC", "PYL")
    assert chain.residue_numbers.tolist() == [1, 2, 3, 4, 5]
    assert chain.atom_mask[1].sum() == 4


def test_padding_does_not_change_a_prediction(mini) -> None:
    short, long = Record("short", "MKTAYIAKQRQISFVK"), Record("long", UBIQUITIN)
    together = predict_batch(mini, [short, long], recycles=1)[0]
    alone = predict_batch(mini, [short], recycles=1)[0]
    # The random network magnifies rounding; its structure spans some 30 angstrom.
    assert np.abs(together.structure.chains[0].atom_positions - alone.structure.chains[0].atom_positions).max() < 0.01
    assert together.ptm == pytest.approx(alone.ptm, abs=1e-4)


def test_a_model_that_gives_nan_is_reported(mini) -> None:
    broken = load_model(device="cpu")
    broken.network.trunk.trunk2sm_s.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match="protein: the model's coordinates"):
        predict(broken, "MKVLA", recycles=0)


def test_chain_ids() -> None:
    assert [chain_id(i) for i in (0, 25, 26, 51, 52, 61, 62)] == ["A", "Z", "a", "z", "0", "9", "AA"]
    assert len({chain_id(i) for i in range(4000)}) == 4000


def test_precision_names() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert parse_precision("auto", cpu)[2] == "fp32/fp32"
    assert parse_precision("auto", gpu)[2] == "fp16/bf16"
    assert parse_precision("bf16/fp32", cpu) == (torch.bfloat16, torch.float32, "bf16/fp32")
    with pytest.raises(ConfigError, match="overflows"):
        parse_precision("fp16", gpu)
    for name in ("fp64", "bf16/", "fp32/fp32/fp32"):
        with pytest.raises(ConfigError, match="unknown dtype"):
            parse_precision(name, cpu)


@pytest.fixture
def folder(tiny, tmp_path):
    path = tmp_path / "model"
    tiny.save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_local_folder_keeps_all_but_the_language_model_in_fp32(folder, tiny, dtype) -> None:
    name = {torch.float32: "fp32", torch.bfloat16: "bf16/fp32", torch.float16: "fp16/fp32"}[dtype]
    loaded = load_model(folder, device="cpu", dtype=name)
    wrong = {n: t.dtype for n, t in loaded.network.named_parameters() if n.startswith("esm.") and t.dtype != dtype}
    wrong |= {n: t.dtype for n, t in loaded.network.named_parameters() if n[:4] != "esm." and t.dtype != torch.float32}
    assert not wrong
    assert torch.equal(loaded.network.esm.rotary_embeddings.inv_freq, tiny.esm.rotary_embeddings.inv_freq)


def test_checkpoints_with_a_frequency_table_in_every_layer_load_rightly(folder, tiny, batch) -> None:
    """The published hub checkpoints are in this older form, with frequencies rounded to fp16."""
    weights = load_file(folder / "model.safetensors")
    rounded = weights.pop("esm.rotary_embeddings.inv_freq").half()
    for layer in range(3):
        weights[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = rounded.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(folder, device="cpu")
    assert torch.equal(loaded.network.esm.rotary_embeddings.inv_freq, rounded.float())


def test_bad_model_folders_get_one_clear_line(folder, tmp_path) -> None:
    def problem(model: object) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_model(model, device="cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "does not exist" in problem(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in problem(empty)
    (tmp_path / "model.pt").touch()
    assert "protfold convert" in problem(tmp_path / "model.pt")

    cut = shutil.copytree(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    assert "could not be loaded" in problem(cut)

    partial = shutil.copytree(folder, tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    del weights["trunk.trunk2sm_z.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    assert "trunk.trunk2sm_z.weight" in problem(partial)

    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"is_folding_model": False}))
    assert "no ESMFold" in problem(other)
    (other / "config.json").write_text("{")
    assert "cannot be read" in problem(other)


def test_offloading_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        load_model(device="cpu", cpu_offload=True)

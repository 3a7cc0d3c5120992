"""fair-esm checkpoints, written here in their own format, convert to models that give fair-esm's numbers."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import esm
import pytest
import torch
from omegaconf import OmegaConf
from tiny_models import randomise, tiny_config
from transformers import AutoTokenizer, EsmForMaskedLM
from transformers.models.esm.modeling_esmfold import EsmForProteinFolding

from protfold_peft.errors import CheckpointError
from protfold_peft.folding.convert import convert_checkpoint
from protfold_peft.folding.fair_esm import read_checkpoint
from protfold_peft.folding.load import load_model
from protfold_peft.folding.model import EsmFold

SEQUENCES = ["MKTAYIAKQRQISFVK", "GIVEQCCTS"]


def write_esm2(folder: Path, name: str = "esm2_t3_tiny.pt", **sizes: int) -> tuple[Path, esm.model.esm2.ESM2]:
    """A small ESM-2 as fair-esm's training code saved it: prefixed names, a Namespace, frequencies rounded to fp16."""
    sizes = {"num_layers": 3, "embed_dim": 32, "attention_heads": 4} | sizes
    model = esm.ESM2(**sizes, alphabet="ESM-1b").eval()
    randomise(model, seed=4)
    for layer in model.layers:
        frequencies = layer.self_attn.rot_emb.inv_freq
        frequencies.copy_(frequencies.half().float())
    state: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        if key.startswith("contact_head."):
            continue
        prefix = "encoder." if key.startswith("lm_head.") else "encoder.sentence_encoder."
        state[prefix + key] = value.half() if "inv_freq" in key else value
    options = argparse.Namespace(
        encoder_layers=sizes["num_layers"],
        encoder_embed_dim=sizes["embed_dim"],
        encoder_attention_heads=sizes["attention_heads"],
        token_dropout=True,
        arch="roberta_large",
    )
    torch.save({"args": options, "cfg": {"model": options}, "model": state}, folder / name)
    head = {f"contact_head.{key}": value for key, value in model.contact_head.state_dict().items()}
    torch.save({"model": head}, folder / f"{Path(name).stem}-contact-regression.pt")
    return folder / name, model


def write_esmfold(folder: Path, **trunk: Any) -> tuple[Path, EsmFold]:
    """Trunk and heads of a small ESMFold under the same names, with the omegaconf configuration of the original."""
    config = tiny_config(**trunk)
    model = EsmFold(config).eval()
    randomise(model, seed=5)
    sizes = config.esmfold_config.trunk
    module = sizes.structure_module
    cfg = {
        "esm_type": "esm2_tiny",
        "fp16_esm": True,
        "use_esm_attn_map": False,
        "lddt_head_hid_dim": 16,
        "trunk": {
            "_name": "FoldingTrunkConfig",
            **{key: getattr(sizes, key) for key in ("num_blocks", "sequence_state_dim", "pairwise_state_dim")},
            **{key: getattr(sizes, key) for key in ("sequence_head_width", "pairwise_head_width", "position_bins")},
            "dropout": 0,
            "layer_drop": 0,
            "cpu_grad_checkpoint": False,
            "max_recycles": sizes.max_recycles,
            "chunk_size": None,
            "structure_module": {
                "c_s": module.sequence_dim,
                "c_z": module.pairwise_dim,
                "c_ipa": module.ipa_dim,
                "c_resnet": module.resnet_dim,
                "no_heads_ipa": module.num_heads_ipa,
                "no_qk_points": module.num_qk_points,
                "no_v_points": module.num_v_points,
                "dropout_rate": 0.0,
                "no_blocks": module.num_blocks,
                "no_transition_layers": 1,
                "no_resnet_blocks": module.num_resnet_blocks,
                "no_angles": 7,
                "trans_scale_factor": 10,
                "epsilon": 1e-8,
                "inf": 100000.0,
            },
        },
    }
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("esm.")}
    path = folder / "esmfold_tiny.pt"
    torch.save({"cfg": {"model": OmegaConf.create(cfg)}, "model": state}, path)
    return path, model


def tokens(alphabet: esm.data.Alphabet) -> torch.Tensor:
    return alphabet.get_batch_converter()([(str(i), s) for i, s in enumerate(SEQUENCES)])[2]


def test_esm2_gives_fair_esms_hidden_states_logits_and_contacts(tmp_path) -> None:
    path, original = write_esm2(tmp_path)
    convert_checkpoint(path, tmp_path / "out")
    model = EsmForMaskedLM.from_pretrained(tmp_path / "out").eval()
    ids = tokens(original.alphabet)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert torch.equal(tokenizer(SEQUENCES, padding=True, return_tensors="pt").input_ids, ids)
    with torch.no_grad():
        expected = original(ids, repr_layers=range(4))
        actual = model(ids, attention_mask=ids != 1, output_hidden_states=True)
        contacts = model.set_attn_implementation("eager") or model.predict_contacts(ids, (ids != 1).long())
    real = ids != 1
    for layer in range(4):
        difference = (actual.hidden_states[layer] - expected["representations"][layer])[real].abs().max()
        assert difference < 2e-5, layer
    assert (actual.logits - expected["logits"])[real].abs().max() < 2e-5
    with torch.no_grad():
        wanted = original.predict_contacts(ids)
    assert (contacts - wanted)[0].abs().max() < 1e-5


def test_rotary_frequencies_are_copied_not_recomputed(tmp_path) -> None:
    path, original = write_esm2(tmp_path)
    convert_checkpoint(path, tmp_path / "out")
    model = EsmForMaskedLM.from_pretrained(tmp_path / "out")
    rounded = original.layers[0].self_attn.rot_emb.inv_freq
    exact = 1 / 10000 ** (torch.arange(0, 8, 2) / 8)
    assert torch.equal(model.esm.rotary_embeddings.inv_freq, rounded)
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("blocks", [2, 0], ids=["esmfold", "structure-module-only"])
def test_esmfold_with_its_language_model_beside_it(tmp_path, batch, blocks) -> None:
    language_path, language = write_esm2(tmp_path)
    path, trunk = write_esmfold(tmp_path, num_blocks=blocks)
    convert_checkpoint(path, tmp_path / "out", esm2=language_path)
    loaded = load_model(tmp_path / "out", device="cpu")
    # Independent of the conversion: fair-esm's own features, mixed as Meta's code mixes them, through stock modules.
    stock = EsmForProteinFolding(tiny_config(num_blocks=blocks)).eval()
    state = trunk.state_dict()
    stock.load_state_dict(state)

    def features(esmaa: torch.Tensor) -> torch.Tensor:
        n = esmaa.shape[0]
        ids = torch.cat([esmaa.new_full((n, 1), 0), esmaa, esmaa.new_full((n, 1), 1)], dim=1)
        ids[torch.arange(n), (ids != 1).sum(1)] = 2
        states = language(ids, repr_layers=range(4))["representations"]
        return torch.stack([states[i] for i in range(4)], dim=2)[:, 1:-1]

    stock.compute_language_model_representations = features
    with torch.no_grad():
        expected = stock(**batch)
        actual = loaded.network(**batch)
    real = batch["attention_mask"].bool()
    assert (actual.positions - expected.positions)[:, real].abs().max() < 1e-3
    assert (actual.lddt_head - expected.lddt_head)[:, real].abs().max() < 1e-4


def test_esmfold_without_its_language_model_says_which_one(tmp_path) -> None:
    path, _ = write_esmfold(tmp_path)
    with pytest.raises(CheckpointError, match=r"esm2_tiny.*--esm2"):
        convert_checkpoint(path, tmp_path / "out")


def test_another_size_of_language_model_is_refused(tmp_path) -> None:
    language, _ = write_esm2(tmp_path, num_layers=2)
    path, _ = write_esmfold(tmp_path)
    with pytest.raises(CheckpointError, match="3 language-model layers"):
        convert_checkpoint(path, tmp_path / "out", esm2=language)


def test_the_original_configuration_is_read_without_omegaconf_objects(tmp_path) -> None:
    path, _ = write_esmfold(tmp_path)
    config = read_checkpoint(path).config
    assert type(config) is dict
    assert config["trunk"]["structure_module"]["no_blocks"] == 3
    assert config["trunk"]["chunk_size"] is None


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"cfg": {"model": Bomb()}, "model": {}}, "bomb.pt")
    with pytest.raises(CheckpointError, match="not loaded"):
        convert_checkpoint("bomb.pt", "out")
    Path("old.pt").write_bytes(pickle.dumps({"model": Bomb()}))
    with pytest.raises(CheckpointError):
        convert_checkpoint("old.pt", "out")
    assert not Path("exploded").exists()
    assert not Path("out").exists()


@pytest.mark.parametrize("cut", [0, 100, -200])
def test_a_damaged_file_is_one_clear_error_and_leaves_nothing(tmp_path, cut) -> None:
    path, _ = write_esm2(tmp_path)
    path.write_bytes(path.read_bytes()[:cut] if cut else b"")
    with pytest.raises(CheckpointError, match=path.name) as caught:
        convert_checkpoint(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_weights_and_occupied_output(tmp_path) -> None:
    path, _ = write_esm2(tmp_path)
    data = torch.load(path, weights_only=False)
    del data["model"]["encoder.sentence_encoder.layers.1.fc1.bias"]
    torch.save(data, path)
    with pytest.raises(CheckpointError, match=r"lacks esm\.encoder\.layer\.1\.intermediate\.dense\.bias"):
        convert_checkpoint(path, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        convert_checkpoint(path, tmp_path / "out")

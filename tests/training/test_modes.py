"""What is trained and from what: modes, quantised models, sequences alone, terms that need more than a forward pass."""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from protfold_peft import load_model
from protfold_peft.errors import ConfigError, StructureError
from protfold_peft.folding.masked_lm import HEAD_FILE
from protfold_peft.folding.mini import build_mini
from protfold_peft.training import dry_run, finetune, output
from protfold_peft.training.evaluate import SCORES

FEW = {"steps": 3, "warmup_steps": 0}


def test_trunk_mode_adapts_the_trunk_too(settings, tmp_path: Path) -> None:
    result = finetune(settings(tmp_path / "out", mode="trunk", training=FEW))
    weights = load_file(result.out / "adapter_model.safetensors")
    groups = {name.split("tensor_factors.default.")[-1].rpartition(".")[0] for name in weights}
    assert len(groups) > 1
    # 24 maps of the language model's attention; of both trunk blocks the fused q, k and v, and the output.
    described = dry_run(settings(tmp_path / "dry", mode="trunk"))
    paths = [path for sites in described.sites.values() for path in sites]
    assert sum("trunk.blocks" in path for path in paths) == 2 * 4
    assert sum("esm.encoder" in path for path in paths) == 4 * 6
    assert described.trainable_parameters == result.trainable_parameters == sum(w.numel() for w in weights.values())
    assert described.model_parameters == sum(p.numel() for p in build_mini().parameters())
    assert not (tmp_path / "dry").exists()


def test_full_mode_gives_a_model(settings, tmp_path: Path) -> None:
    """All weights that a loss reaches move, the others do not; the folder is a model that predicts as it was judged."""
    training = {**FEW, "steps": 8, "learning_rate": 3e-4, "language_model_learning_rate": 1e-4}
    model = {"masked_lm_head": "new"}
    changes: dict[str, Any] = {"mode": "full", "training": training, "model": model, "loss": {"masked_lm": 0.1}}
    result = finetune(settings(tmp_path / "out", **changes))
    before, after = build_mini().state_dict(), load_file(result.out / "model.safetensors")
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    still = {name.split(".")[0] for name in set(after) - moved}
    assert any(name.startswith("esm.encoder.layer.0") for name in moved)
    assert any(name.startswith("trunk.structure_module") for name in moved)
    # No term here reaches these heads.
    assert {"lddt_head", "ptm_head", "distogram_head", "lm_head"} <= still
    assert not any(name.split(".")[0] in {"lddt_head", "ptm_head", "distogram_head", "lm_head"} for name in moved)
    assert (result.out / HEAD_FILE).is_file()
    losses = [float(row.split(",")[1]) for row in (result.out / output.METRICS).read_text().splitlines()[1:]]
    assert losses[-1] < 0.97 * losses[0]

    network = load_model(result.out, device="cpu").network
    again = finetune(settings(tmp_path / "on", model={"name": str(result.out)}, training={"steps": 1}))
    assert again.base["lddt_ca"] == pytest.approx(result.adapted["lddt_ca"], abs=1e-6)
    assert not network.training


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_adapters_train_on_a_quantised_language_model(settings, tmp_path: Path, bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    plain = finetune(settings(tmp_path / "plain", training=FEW))
    quantised = finetune(settings(tmp_path / "out", model={"quantize": bits}, training=FEW))
    assert quantised.trainable_parameters == plain.trainable_parameters
    assert quantised.final_loss == pytest.approx(plain.final_loss, rel=0.2)
    assert quantised.final_loss != plain.final_loss
    with pytest.raises(ConfigError, match=r"model.quantize holds frozen weights"):
        finetune(settings(tmp_path / "full", mode="full", model={"quantize": bits}))


def test_sequences_alone_are_learnt_by_masked_language_modelling(settings, tmp_path: Path, two_stretches: Path) -> None:
    fasta = tmp_path / "own.fasta"
    fasta.write_text(">one\nMKTAYIAKQRQISFVKSHFSRQ\n>two words\nGIVEQCCTSICSLYQLENYCN\n>bad\nMK1\n")
    trained = finetune(
        settings(
            tmp_path / "model", mode="full", model={"masked_lm_head": "new"}, loss={"masked_lm": 1.0}, training=FEW
        )
    )
    config = settings(
        tmp_path / "out",
        model={"name": str(trained.out)},
        data={"folder": None, "sequences": str(fasta), "validation": {"folder": str(two_stretches)}},
        loss={"fape": 0.0, "masked_lm": 1.0},
        training={**FEW, "steps": 30, "warmup_steps": 0},
    )
    result = finetune(config)
    rows = (result.out / output.METRICS).read_text().splitlines()
    assert rows[0].split(",")[5] == "masked_lm"
    values = [float(row.split(",")[5]) for row in rows[1:]]
    assert sum(values[-5:]) < 0.9 * sum(values[:5])
    assert any("bad" in reason and "line 5" in reason for reason in result.skipped)
    without = config.model_copy(
        update={"out": str(tmp_path / "no"), "loss": config.loss.model_copy(update={"masked_lm": 0.0, "fape": 1.0})}
    )
    with pytest.raises(ConfigError, match=r"data.sequences is learnt by masked language modelling"):
        finetune(without)
    with pytest.raises(ConfigError, match=r"model.masked_lm_head=new: an untrained head"):
        finetune(settings(tmp_path / "no", model={"masked_lm_head": "new"}, loss={"masked_lm": 1.0}))


def test_holding_on_to_the_base_model_holds(settings, tmp_path: Path) -> None:
    """The same run with the term changes predictions less; its first value is that of no change."""
    changes: dict[str, Any] = {"training": {"steps": 12, "warmup_steps": 0}}
    free = finetune(settings(tmp_path / "free", loss={"base_distance": 1e-9}, **changes))
    held = finetune(settings(tmp_path / "held", loss={"base_distance": 3.0}, **changes))

    def moved(out: Path) -> list[float]:
        rows = (out / output.METRICS).read_text().splitlines()
        place = rows[0].split(",").index("base_distance")
        return [float(row.split(",")[place]) for row in rows[1:]]

    assert moved(free.out)[0] == pytest.approx(0.01, abs=1e-4)  # the root of epsilon: nothing has changed
    assert moved(held.out)[-1] < 0.8 * moved(free.out)[-1]


def test_chains_outside_are_judged_before_and_after(settings, tmp_path: Path, structures: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1AS5_A.pdb").write_text((structures / "1AS5_A.pdb").read_text())
    result = finetune(settings(tmp_path / "out", data={"outside": {"folder": str(outside)}}, training={"steps": 12}))
    assert result.outside is not None
    assert set(result.outside) == {"base", "adapted"}
    assert set(result.outside["base"]) == set(SCORES)
    assert result.outside["base"] != result.outside["adapted"]
    assert "1AS5_A" not in result.per_target
    assert set(result.confidence["base"]) == {"pearson", "spearman", "error", "bias"}


def test_rows_of_a_table_choose_the_chains(settings, tmp_path: Path, two_stretches: Path) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("name\tpart\n1LCD_A\ttrain\n1A7G_E\ttest\n9XYZ_A\ttest\n")
    where = {"folder": str(two_stretches), "table": str(table)}
    data = {**where, "where": {"part": "train"}, "validation": {**where, "where": {"part": "test"}}}
    result = finetune(settings(tmp_path / "out", data=data))
    assert set(result.per_target) == {"1A7G_E"}
    assert result.judged_on == "validation chains"
    for where, error, says in [
        ({"part": "tests"}, ConfigError, "table.tsv: no row has part=tests"),
        ({"role": "x"}, ConfigError, r"there is no column 'role'; it has name, part"),
    ]:
        with pytest.raises(error, match=says):
            finetune(settings(tmp_path / "bad", data={**data, "where": where}))
    table.write_text("name\tpart\n9XYZ_A\ttrain\n")
    with pytest.raises(StructureError, match=r"none of the 1 files that .* names is there"):
        finetune(settings(tmp_path / "bad", data={**data, "validation": None}))


def test_a_saved_adapter_is_trained_on(settings, tmp_path: Path) -> None:
    first = finetune(settings(tmp_path / "first", training=FEW))
    second = finetune(settings(tmp_path / "second", adapter={"start_from": str(first.out)}, training=FEW))
    losses = [float(row.split(",")[1]) for row in (first.out / output.METRICS).read_text().splitlines()[1:]]
    more = [float(row.split(",")[1]) for row in (second.out / output.METRICS).read_text().splitlines()[1:]]
    assert more[0] < losses[0]
    assert json.loads((second.out / "adapter_config.json").read_text())["r"] == 64


def test_tensorboard_gets_every_term(settings, tmp_path: Path) -> None:
    """The event file is read as its format is defined: length, checksum, protocol buffer, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    training = {**FEW, "evaluate_every": 2}
    result = finetune(settings(tmp_path / "out", loss={"fape": 1.0, "torsion": 0.1}, training=training))
    (file,) = (result.out / output.TENSORBOARD).rglob("*tfevents*")
    data, found = file.read_bytes(), set()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found |= {(value.tag, event.step) for value in event.summary.value}
        data = data[16 + length :]
    for step in (1, 2, 3):
        assert {("train/loss", step), ("train/fape", step), ("train/torsion", step)} <= found
    assert ("train/validation/lddt_ca", 2) in found


@pytest.mark.parametrize(
    ("adapter", "parameters"),
    [
        # By hand: 24 square maps of width 256, of rank 2.
        ({"method": "peft_lora", "rank": 2}, 24 * 2 * (256 + 256)),
        ({"method": "dora", "rank": 2}, 24 * (2 * (256 + 256) + 256)),
        # Two vectors of each map: one of the rank, one of the width.
        ({"method": "vera", "rank": 4, "options": {"d_initial": 0.5}}, 24 * (4 + 256)),
    ],
)
def test_methods_of_peft_train_by_their_names(settings, tmp_path: Path, adapter: dict[str, Any], parameters) -> None:
    """The saved adapter loads again, and folds as the run says it did."""
    training = {**FEW, "learning_rate": 1e-2}
    result = finetune(settings(tmp_path / "out", adapter={"init": "authors", **adapter}, training=training))
    assert result.trainable_parameters == parameters
    assert result.adapted["lddt_ca"] != result.base["lddt_ca"]
    on = {"init": "authors", "start_from": str(result.out), **adapter}
    again = finetune(settings(tmp_path / "on", adapter=on, training={**FEW, "steps": 1, "learning_rate": 1e-12}))
    assert again.adapted["lddt_ca"] == pytest.approx(result.adapted["lddt_ca"], abs=1e-4)


def test_an_unknown_method_is_told_before_anything_is_computed(settings, tmp_path: Path, monkeypatch) -> None:
    module = importlib.import_module("protfold_peft.training.finetune")
    monkeypatch.setattr(module, "load_base", lambda *_: pytest.fail("the model was loaded"))
    for adapter, words in (
        ({"method": "lotra"}, "adapter.method='lotra' is not known; did you mean 'lotr'"),
        ({"method": "full"}, "set mode=full"),
        ({"method": "ia3"}, "adapter.rank: ia3 has no such setting; set it to null"),
        ({"method": "lorta", "rank": None}, "adapter.rank: lorta needs one"),
    ):
        with pytest.raises(ConfigError, match=words):
            finetune(settings(tmp_path / "out", adapter={"init": "authors", **adapter}))


def test_full_mode_can_be_kept_to_the_language_model(settings, tmp_path: Path) -> None:
    training = {**FEW, "learning_rate": 1e-4, "full_parts": ["esm"]}
    result = finetune(settings(tmp_path / "out", mode="full", training=training))
    before, after = build_mini().state_dict(), load_file(result.out / "model.safetensors")
    moved = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"esm"}
    with pytest.raises(ConfigError, match="the model has no part 'esn'"):
        finetune(settings(tmp_path / "other", mode="full", training={**FEW, "full_parts": ["esn"]}))


@pytest.mark.parametrize("dtype", ["bf16", "bf16/fp32"])
def test_half_precision_gives_nearly_the_same_loss(settings, tmp_path: Path, dtype: str) -> None:
    """bf16 has three digits; the factors stay fp32."""
    plain = finetune(settings(tmp_path / "plain", training=FEW))
    half = finetune(settings(tmp_path / "half", model={"dtype": dtype}, training=FEW))
    assert half.final_loss == pytest.approx(plain.final_loss, rel=0.05)
    assert half.final_loss != plain.final_loss
    assert all(w.dtype == torch.float32 for w in load_file(half.out / "adapter_model.safetensors").values())

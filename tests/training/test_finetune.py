"""A run from structures to an adapter, on the built-in model, judged by what others make of its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from protfold_peft import load_model, predict
from protfold_peft.adapters import METHODS, load_adapter
from protfold_peft.adapters.checks import DeadAdapterError
from protfold_peft.data import MODEL_INPUTS, CropDataset, PartDataset, collate_crops, collate_parts, read_chains
from protfold_peft.errors import ConfigError, NonFiniteError, StructureError
from protfold_peft.folding.mini import build_mini
from protfold_peft.losses import TotalLoss
from protfold_peft.training import FinetuneResult, finetune, output, read_config, setup, trainer
from protfold_peft.training.evaluate import SCORES, mean_scores
from protfold_peft.training.finetune import training_arguments
from protfold_peft.training.objective import structure_loss

STEPS = 45


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """The one real training run of this file."""
    out = tmp_path_factory.mktemp("runs") / "adapter"
    return finetune(settings(out, training={"steps": STEPS}))


@pytest.fixture(scope="module")
def results(run: FinetuneResult) -> dict[str, Any]:
    return json.loads((run.out / "results.json").read_text())


def test_it_learns_the_training_chains(results) -> None:
    """Only the adapter's 19,584 numbers move, in the language model of a random network."""
    assert results["trainable_parameters"] == 64 * (256 + 32 + 8 + 6 + 4)
    assert results["adapted"]["lddt_ca"] > results["base"]["lddt_ca"] + 0.1
    for target in results["per_target"].values():
        assert target["adapted"]["lddt_ca"] > target["base"]["lddt_ca"] + 0.05


def test_results_say_how_it_went(run: FinetuneResult, results) -> None:
    assert results["per_target"].keys() == {"1A7G_E", "1LCD_A"}
    for which in ("base", "adapted"):
        for name in SCORES:
            scores = [target[which][name] for target in results["per_target"].values()]
            assert results[which][name] == pytest.approx(np.mean(scores))
    assert {target["residues"] for target in results["per_target"].values()} == {16}
    assert (results["model"], results["untrained"], results["steps"], results["seed"]) == (
        "protfold-mini-untrained",
        True,
        STEPS,
        0,
    )
    assert 0 < results["seconds"] < 600
    assert results["peak_memory_bytes"] > 10**8
    assert results["skipped"] == []
    assert results["judged_on"].startswith("the training chains")
    assert any("set data.validation" in warning for warning in results["warnings"])
    assert results["base"] == run.base


def test_results_agree_with_prediction_and_biotite(run: FinetuneResult, results, two_stretches: Path) -> None:
    """Folding the sequences with the saved adapter, and scoring with another program, gives the same lDDT."""
    biotite = pytest.importorskip("biotite.structure")
    structure_io = pytest.importorskip("biotite.structure.io")
    for which, adapter in (("base", None), ("adapted", run.out)):
        model = load_model("protfold-mini-untrained", adapter=adapter, device="cpu")
        for chain in read_chains(two_stretches).chains:
            reference = structure_io.load_structure(two_stretches / f"{chain.name}.pdb", model=1)
            reference = reference[reference.atom_name == "CA"]
            subject = reference.copy()
            # As in a file: of some hundred distances one on an edge would count.
            subject.coord = predict(model, chain.sequence, recycles=0).structure.chains[0].atom_positions[:, 1].round(3)
            expected = results["per_target"][chain.name][which]["lddt_ca"]
            assert float(biotite.lddt(reference, subject)) == pytest.approx(expected, abs=2e-3), (which, chain.name)


def test_every_factor_and_site_gets_a_gradient_from_the_structure_loss(
    run: FinetuneResult, two_stretches: Path
) -> None:
    model = load_adapter(build_mini(), run.out, is_trainable=True)
    samples = CropDataset(read_chains(two_stretches).chains, crop_size=16, batch_size=2, steps=1, seed=0)
    batch = collate_crops([samples[0], samples[1]])
    batch["clamped"][:] = False
    loss = structure_loss(model(**{key: batch[key] for key in MODEL_INPUTS}, recycles=0), batch, {"fape": 1.0})
    loss.total.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 5  # A, B, and one of heads, layers and matrices each
    for name, parameter in trained.items():
        # Every row: each head, layer and matrix kind has one of its own.
        assert (parameter.grad.abs().amax(dim=-1) > 0).all(), name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_the_log_has_a_row_per_step_and_the_loss_falls(run: FinetuneResult) -> None:
    with (run.out / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert set(rows[0]) == {"step", "loss", "learning_rate", "grad_norm", "seconds", "fape", "skipped_steps"}
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert rows[-1]["fape"] < 0.8 * rows[0]["fape"]
    # Equal lengths, FAPE alone: the total is that times the root of the length.
    assert rows[3]["loss"] == pytest.approx(4 * rows[3]["fape"], rel=1e-5)
    assert max(row["learning_rate"] for row in rows) == pytest.approx(3e-2)
    assert rows[-1]["loss"] == pytest.approx(run.final_loss, rel=1e-5)


def test_the_folder_is_a_peft_adapter_with_a_card(run: FinetuneResult, settings) -> None:
    from peft import PeftModel

    made = {path.name for path in run.out.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "report.html", "run.log"} <= made
    assert made <= set(output.FILES)
    weights = load_file(run.out / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == run.trainable_parameters
    assert (
        json.loads((run.out / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "protfold-mini-untrained"
    )
    reloaded = PeftModel.from_pretrained(build_mini(), str(run.out))
    state = dict(reloaded.named_parameters())
    for key, value in weights.items():
        (name,) = [name for name in state if name.replace(".default", "") == key]
        assert torch.equal(state[name], value)
    card = (run.out / "README.md").read_text()
    assert "base_model: protfold-mini-untrained" in card
    assert "are untrained" in card
    assert read_config(run.out / "config.yaml") == settings(run.out, training={"steps": STEPS})


def test_the_same_seed_gives_the_same_adapter(settings, tmp_path: Path) -> None:
    first, second, other = (
        finetune(settings(tmp_path / name, training={"seed": seed}, data={"crop_size": 10}))
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    weights = [(result.out / "adapter_model.safetensors").read_bytes() for result in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]


def test_checkpointing_changes_nothing_but_memory(settings, tmp_path: Path) -> None:
    plain = finetune(settings(tmp_path / "plain"))
    saving = finetune(settings(tmp_path / "saving", model={"gradient_checkpointing": True}))
    assert saving.final_loss == pytest.approx(plain.final_loss, rel=1e-6)
    theirs = load_file(plain.out / "adapter_model.safetensors")
    for name, tensor in load_file(saving.out / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=1e-4)


def test_batches_come_in_the_order_of_the_data_set(settings, tmp_path: Path) -> None:
    """The Trainer shuffles by default, which would undo the promise that (seed, step, sample) is one crop."""
    config = settings(tmp_path / "out", training={"steps": 4}, data={"crop_size": 7})
    chains = read_chains(config.data.folder).chains
    dataset = CropDataset(chains, crop_size=7, batch_size=2, steps=4, seed=0)
    arguments = training_arguments(config, tmp_path)
    made = trainer.StructureTrainer(
        config,
        recycles=0,
        model=torch.nn.Linear(1, 1),
        args=arguments,
        train_dataset=PartDataset(dataset, 1),
        data_collator=collate_parts,
    )
    batches = list(made.get_train_dataloader())
    assert len(batches) == 4
    for step, batch in enumerate(batches):
        expected = collate_crops([dataset[2 * step], dataset[2 * step + 1]])
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
        assert (batch["step"], batch["number"], batch["share"]) == (step, step, 1.0)


def test_a_dead_adapter_stops_the_run(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the language model cut off, as in stock code, everything would run and nothing be learnt."""

    def load_cut_off(*args: Any, **kwargs: Any) -> Any:
        loaded = load_model(*args, **kwargs)
        loaded.base.language_model_gradients = False
        return loaded

    monkeypatch.setattr(setup, "load_model", load_cut_off)
    with pytest.raises(DeadAdapterError, match="no gradient reaches 24 of 24 adapted modules"):
        finetune(settings(tmp_path / "out", training={"steps": 5}))
    assert not (tmp_path / "out").exists()
    unwatched = finetune(settings(tmp_path / "out", training={"steps": 5, "dead_adapter_check": False}))
    assert unwatched.adapted == unwatched.base


def test_steps_with_a_loss_that_is_not_a_number_are_skipped_and_counted(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A skipped step leaves parameters, momentum and decay alone: the run is the one without that step's update."""
    bad_steps = {2}

    def broken(output: Any, batch: Any, *args: Any, **kwargs: Any) -> TotalLoss:
        loss = structure_loss(output, batch, *args, **kwargs)
        return TotalLoss(loss.total * float("nan"), loss.terms) if batch["step"] in bad_steps else loss

    moved: list[bool] = []

    def watch(self: Any, *args: Any, **kwargs: Any) -> None:
        before = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        plain(self, *args, **kwargs)
        after = [p for group in self.param_groups for p in group["params"]]
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, after)))

    plain = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    monkeypatch.setattr(trainer, "structure_loss", broken)
    training = {"steps": 5, "weight_decay": 0.1, "warmup_steps": 0}
    result = finetune(settings(tmp_path / "out", training=training))
    assert result.skipped_steps == 1
    assert moved == [True, True, False, True, True]
    assert all(tensor.isfinite().all() for tensor in load_file(result.out / "adapter_model.safetensors").values())
    bad_steps |= {1, 3}
    with pytest.raises(NonFiniteError, match=r"in 3 steps, the last of them step 4: lower training.learning_rate"):
        finetune(settings(tmp_path / "stopped", training={**training, "max_bad_steps": 2}))
    assert not (tmp_path / "stopped").exists()


def test_settings_that_cannot_be(settings, tmp_path: Path) -> None:
    config = settings(tmp_path / "out")
    with pytest.raises(ConfigError, match="no output folder: give --out"):
        finetune(config.model_copy(update={"out": None}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        finetune(settings(tmp_path / "full"))
    with pytest.raises(ConfigError, match="'nothing' matches no module"):
        finetune(settings(tmp_path / "out", adapter={"target_modules": ["nothing"]}))
    with pytest.raises(ConfigError, match="cuda:3"):
        finetune(settings(tmp_path / "out", model={"device": "cuda:3"}))
    with pytest.raises(ConfigError, match=r"model.dtype=fp16/fp32: fp16 gradients overflow; use bf16 or fp32"):
        finetune(settings(tmp_path / "out", model={"dtype": "fp16/fp32"}))
    with pytest.raises(StructureError, match="no such folder"):
        finetune(settings(tmp_path / "out", data={"folder": str(tmp_path / "absent")}))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_unresolved_residues_train_and_evaluate(settings, structures: Path, tmp_path: Path) -> None:
    """An amyloid strand whose first 16 of 42 residues were never seen."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "strand.pdb").write_text((structures / "2BEG_A.pdb").read_text())
    result = finetune(settings(tmp_path / "out", data={"folder": str(tmp_path / "data"), "crop_size": 42}))
    assert result.per_target["strand"]["residues"] == 42
    assert 0 < result.base["lddt_ca"] < 1
    assert np.isfinite(result.final_loss)


def test_the_last_step_is_always_logged(settings, tmp_path: Path) -> None:
    result = finetune(settings(tmp_path / "out", training={"steps": 3, "log_every": 2}))
    rows = (result.out / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "2", "3"]


def test_scores_that_are_undefined_are_null() -> None:
    half = dict.fromkeys(SCORES, 0.5)
    assert mean_scores([half, half | {"lddt_ca": None}, half | {"lddt_ca": 0.7}])["lddt_ca"] == pytest.approx(0.6)
    assert mean_scores([half | {"tm_score": None}])["tm_score"] is None


def test_command_line(settings, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from protfold_peft.cli.main import app

    config = tmp_path / "run.yaml"
    config.write_text(output.config_yaml(settings(tmp_path / "unused")))

    def protfold(*words: str) -> SimpleNamespace:
        result = CliRunner().invoke(app, ["finetune", str(config), *words])
        return SimpleNamespace(status=result.exit_code, out=result.stdout, error=result.stderr)

    out = tmp_path / "out"
    good = protfold("training.steps=1", "--out", str(out))
    assert good.status == 0
    assert "2 chains: the training chains" in good.out
    assert "UNTRAINED" in good.error
    assert (out / "adapter_config.json").is_file()
    again = protfold("--out", str(out))
    assert again.status == 2
    assert "--overwrite" in again.error
    wrong = protfold("training.step=1")
    assert wrong.status == 2
    assert "did you mean 'training.steps'" in wrong.error
    assert wrong.error.count("\n") == 1


@pytest.mark.parametrize("method", ["lotr", "tenslora", "tera", "tensor_train", "lora"])
def test_every_method_is_trained_and_predicts(settings, tmp_path, method) -> None:
    """The adapter on disk gives the prediction that the run was evaluated with."""
    options = {"tenslora": {"variant": "qkv_depth"}, "tensor_train": {"heads": True}}.get(method, {})
    rates = {"core_learning_rate": 1e-2} if method in ("lotr", "tenslora", "tensor_train") else {}
    config = settings(
        tmp_path / method,
        adapter={"method": method, "rank": 8, "init": "rank_stable", "options": options},
        training={"steps": 8, **rates},
    )
    finetune(config)
    results = json.loads((tmp_path / method / "results.json").read_text())
    assert results["adapted"] != results["base"]
    network = load_model("protfold-mini-untrained", adapter=tmp_path / method, device="cpu").network
    tuner = network.base_model
    assert type(tuner.peft_config["default"]) is METHODS[method]
    assert results["trainable_parameters"] == sum(factor.numel() for factor in tuner.tensor_factors.parameters())


def test_options_that_a_method_does_not_have_are_named(settings, tmp_path) -> None:
    for adapter, says in [
        ({"options": {"variant": "att"}}, "LoRTAConfig has no key 'variant'"),
        ({"method": "tera", "alpha": 2.0}, "adapter.alpha: tera has none; set adapter.options.scale"),
        ({"method": "lotr", "options": {"r": 3}}, "adapter.options.r: set it as a key of adapter itself"),
    ]:
        with pytest.raises(ConfigError, match=says):
            finetune(settings(tmp_path / "bad", adapter=adapter))

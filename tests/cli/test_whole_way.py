"""Prepare, fine-tune, predict, evaluate: a user's way through the program, and numbers that agree at its end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.data.prepare.store import load_prepared


def protfold(*words: object) -> str:
    """Run a command; its standard output."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_from_structures_to_scores(structures: Path, tmp_path: Path) -> None:
    dataset, run, predicted = tmp_path / "dataset", tmp_path / "run", tmp_path / "predicted"
    protfold("prepare", structures, "--out", dataset, "--max-length", 120, "--validation", 0.4, "--min-length", 20)
    held_out = list(load_prepared(dataset, "validation"))
    assert held_out

    config = Path(__file__).resolve().parents[2] / "configs" / "first_run.yaml"
    keys = [f"data.folder={dataset}", "training.steps=12", "training.warmup_steps=2", "data.crop_size=40"]
    shown = protfold("finetune", config, *keys, "training.evaluate_every=6", "--out", run)
    assert "validation chains" in shown
    results = json.loads((run / "results.json").read_text())
    assert results["per_target"].keys() == {chain.name for chain in held_out}
    assert (run / "report.html").stat().st_size > 10_000

    fasta = tmp_path / "held_out.fasta"
    fasta.write_text("".join(f">{chain.name}\n{chain.sequence}\n" for chain in held_out))
    recycles = ["--recycles", results["recycles"]]
    protfold("predict", fasta, "--adapter", run, "--out", predicted, *recycles, "--no-plots", "--device", "cpu")
    scores = tmp_path / "scores.csv"
    protfold("evaluate", predicted, structures, "--csv", scores)
    with scores.open(newline="") as handle:
        rows = {Path(row["model"]).name.split(".")[0]: row for row in csv.DictReader(handle)}
    for name, target in results["per_target"].items():
        for score in ("lddt_ca", "tm_score", "gdt_ts"):
            assert float(rows[name][score]) == pytest.approx(target["adapted"][score], abs=1e-3), (name, score)

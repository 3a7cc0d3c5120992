"""A sweep of two methods at two ranks on two targets, end to end, against other programs and values by hand."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison.conftest import DOMAIN
from html_pages import Page, check_asks_for_nothing_outside, in_browser
from readable_pages import check_readable
from typer.testing import CliRunner

from protfold_peft import load_model, predict
from protfold_peft.cli.main import app
from protfold_peft.comparison import ComparisonConfig, load, prepare, run_one, write_outputs
from protfold_peft.comparison.cells import training_config
from protfold_peft.comparison.scoring import MEASURES, SCORES
from protfold_peft.structure import read_structure

# Two minutes on two cores of their own; a busy machine takes longer, and the time of the processor is what counts.
MOST_SECONDS = 120


def protfold(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(scope="module")
def swept(settings, config_file, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All but the last cell are run in this process; the command finds them done, and runs that in one of its own."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    start = time.process_time()
    sweep = prepare(ComparisonConfig.model_validate({**settings(), "out": str(out)}))
    names = [cell.name for cell in sweep.cells]
    assert names == ["base", "lora_r1_s0", "lora_r2_s0", "lorta_r1_s0", "lorta_r2_s0"]
    for cell in sweep.cells[:-1]:
        assert run_one(sweep, cell.index) == "done"
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert "report.html in" in protfold("compare", config_file(), "--out", out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert time.process_time() - start < MOST_SECONDS
    return out


@pytest.fixture(scope="module")
def rows(swept: Path) -> list[dict[str, str]]:
    with (swept / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_is_tidy(swept: Path, rows) -> None:
    assert len(rows) == 5 * 2
    assert {(row["method"], row["rank"], row["seed"], row["target"]) for row in rows} == {
        (method, rank, seed, target)
        for method, rank, seed in [("base", "", ""), *((m, r, "0") for m in ("lora", "lorta") for r in "12")]
        for target in ("T0001-D1", "T0002-D1")
    }
    assert all(row[measure] for row in rows for measure in MEASURES)
    read = load(swept / "results.parquet").rows
    assert [row["lddt_ca"] for row in read] == [float(row["lddt_ca"]) for row in rows]
    pandas = pytest.importorskip("pandas")
    assert len(pandas.read_parquet(swept / "results.parquet")) == 10
    # The domain is judged, the target folded.
    assert {(row["target"], row["length"], row["folded"], row["class"]) for row in rows} == {
        ("T0001-D1", "40", "70", "FM"),
        ("T0002-D1", "30", "30", "TBM-easy"),
    }


def test_parameters_are_those_of_the_formulas(rows) -> None:
    """24 square maps of width 256 in six layers, heads of 32."""
    counts = {(row["method"], row["rank"]): int(row["parameters"]) for row in rows}
    assert counts == {
        ("base", ""): 0,
        ("lora", "1"): 24 * 512,
        ("lora", "2"): 2 * 24 * 512,
        ("lorta", "1"): 256 + 32 + 8 + 6 + 4,
        ("lorta", "2"): 2 * (256 + 32 + 8 + 6 + 4),
    }
    for row in rows:
        if row["method"] != "base":
            assert 4 * int(row["parameters"]) < int(row["file_bytes"]) < 4 * int(row["parameters"]) + 20_000
            assert float(row["step_seconds"]) > 0
        assert int(row["peak_memory_bytes"]) > 10**8


def test_scores_are_those_of_other_programs(swept: Path, rows, small_data: Path) -> None:
    """The kept models, read by biotite, score the same there; they lie on their experiments as well as they can."""
    biotite = pytest.importorskip("biotite.structure")
    tmtools = pytest.importorskip("tmtools")
    pdb = pytest.importorskip("biotite.structure.io.pdb")
    for row in rows:
        cell = "base" if row["method"] == "base" else f"{row['method']}_r{row['rank']}_s0"
        reference = pdb.PDBFile.read(small_data / "targets" / f"{row['target']}.pdb").get_structure(model=1)
        with gzip.open(swept / "models" / cell / "small" / f"{row['target']}.pdb.gz", "rt") as text:
            model = pdb.PDBFile.read(text).get_structure(model=1, extra_fields=["b_factor"])
        subject, reference = (atoms[atoms.atom_name == "CA"] for atoms in (model, reference))
        assert float(biotite.lddt(reference, subject)) == pytest.approx(float(row["lddt_ca"]), abs=2e-3)
        letters = "A" * len(reference)
        theirs = tmtools.tm_align(
            subject.coord.astype(float), reference.coord.astype(float), letters, letters, alignment=[letters, letters]
        )
        assert theirs.tm_norm_chain2 == pytest.approx(float(row["tm_score"]), abs=2e-3)
        fitted, _ = biotite.superimpose(reference, subject)
        assert float(biotite.rmsd(reference, fitted)) == pytest.approx(float(row["rmsd_ca"]), abs=2e-3)
        # Where they lie is where the TM-score is: distances in place give it.
        distances = np.linalg.norm(subject.coord - reference.coord, axis=1)
        d0 = max(1.24 * (len(reference) - 15) ** (1 / 3) - 1.8, 0.5)
        assert np.mean(1 / (1 + (distances / d0) ** 2)) == pytest.approx(float(row["tm_score"]), abs=2e-3)
        assert subject.b_factor.mean() == pytest.approx(float(row["plddt"]), abs=0.02)


def test_the_domain_is_cut_out_of_the_whole_target(swept: Path, structures: Path) -> None:
    whole = read_structure(structures / "1A8O_A.pdb").chains[0].sequence
    folded = predict(load_model("protfold-mini-untrained", device="cpu"), whole).structure.chains[0]
    part = read_structure(swept / "models" / "base" / "small" / "T0001-D1.pdb.gz").chains[0]
    assert part.sequence == whole[DOMAIN[0] - 1 : DOMAIN[1]]
    ca = folded.atom_positions[DOMAIN[0] - 1 : DOMAIN[1], 1]
    kept = part.atom_positions[:, 1]

    def distances(points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points[:, None] - points[None], axis=-1)

    assert distances(kept) == pytest.approx(distances(ca), abs=5e-3)


def test_tables_say_what_the_results_hold(swept: Path, rows) -> None:
    def mean(method: str, rank: str, score: str = "lddt_ca") -> float:
        return float(np.mean([float(r[score]) for r in rows if (r["method"], r["rank"]) == (method, rank)]))

    text = (swept / "tables.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    scores = {(line[0], line[1]): line for line in lines if len(line) == 16}
    for (method, rank), line in scores.items():
        if method in ("lora", "lorta"):
            assert float(line[3]) == pytest.approx(mean(method, rank), abs=6e-4)
            difference = mean(method, rank) - mean("base", "")
            assert float(line[-1].split()[0]) == pytest.approx(difference, abs=6e-5)
    compared = {(line[0], line[1], line[2]): line for line in lines if len(line) == 11}
    equal = compared[("lorta_r2", "lora_r2", "LoRA at equal rank")]
    assert float(equal[4]) == pytest.approx(mean("lorta", "2") - mean("lora", "2"), abs=6e-5)
    assert float(equal[3]) == pytest.approx(24 * 512 / 306, rel=0.01)
    assert compared[("lorta_r1", "lora_r1", "LoRA nearest in parameters")]
    # Two targets cannot show anything, whatever the scores.
    assert {line[-1] for line in compared.values() if line[0] != "method" and "-" not in line[0]} == {
        "no difference was shown"
    }
    summary = (swept / "summary.md").read_text()
    assert "beside the base model no difference was shown (mean difference" in summary
    # Four comparisons, each with a p of 2/4 at least.
    assert "With 2 targets and 4 comparisons with the base no adjusted p can be below 1: whatever" in summary
    tex = (swept / "tables.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == text.count("\n## ") + text.startswith("## ")
    assert r"lorta\_r2 & lora\_r2" in tex


def test_all_runs_saw_the_same_data(swept: Path, settings) -> None:
    config = ComparisonConfig.model_validate(settings())
    sweep = prepare(config.model_copy(update={"out": str(swept)}))
    shared = {
        json.dumps(training_config(config, arm, 0.03, 0).model_dump(exclude={"adapter", "out"}), sort_keys=True)
        for arm in sweep.arms
    }
    assert len(shared) == 1


def test_what_a_process_did_before_changes_nothing(swept: Path, config_file, settings, tmp_path: Path) -> None:
    """One worker, told of cells in another order than they were done in here, comes to the same bits."""
    out = tmp_path / "out"
    prepare(ComparisonConfig.model_validate({**settings(), "out": str(out)}))
    command = [sys.executable, "-m", "protfold_peft", "compare", str(out / "comparison.yaml"), "--out", str(out)]
    done = subprocess.run([*command, "--worker"], input="4\n1\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "4\n1\n"), done.stderr
    for cell, training in (("lorta_r2_s0", "lorta_r2_lr0.03_s0"), ("lora_r1_s0", "lora_r1_lr0.03_s0")):
        here, there = (json.loads((folder / "cells" / f"{cell}.json").read_text()) for folder in (swept, out))
        assert here["rows"] == there["rows"]
        assert here["of"] == there["of"]
        weights = Path("trainings") / training / "adapter_model.safetensors"
        assert (swept / weights).read_bytes() == (out / weights).read_bytes()
        assert (out / "logs" / f"{cell}.log").is_file()


def test_report_only_makes_the_same_outputs_from_the_results_alone(swept: Path, config_file, tmp_path: Path) -> None:
    shutil.copy(swept / "results.parquet", tmp_path)
    protfold("compare", config_file(), "--out", tmp_path, "--report-only")
    for name in ("summary.md", "tables.md", "tables.tex", "report.html", "plots/small_parameters.png"):
        assert (tmp_path / name).read_bytes() == (swept / name).read_bytes(), name
    assert not (tmp_path / "cells").exists()


def test_what_is_not_done_yet_is_said(swept: Path, config_file, tmp_path: Path) -> None:
    """A second seed that nobody has run: what there is comes out, and what is lacking is named."""
    shutil.copytree(swept, tmp_path / "out")
    shown = protfold("compare", config_file(seeds=[0, 1]), "--out", tmp_path / "out", "--collect", status=1)
    assert "not done yet: lora_r1_s1, lora_r2_s1, lorta_r1_s1, lorta_r2_s1" in shown
    for name in ("summary.md", "tables.md", "report.html"):
        assert "4 runs are not done yet and are not in the results" in (tmp_path / "out" / name).read_text()
    shutil.rmtree(tmp_path / "out" / "cells")
    shown = protfold("compare", config_file(), "--out", tmp_path / "out", "--collect", status=2)
    assert "the base model was not judged: it was not run yet; run cell 0 first" in " ".join(shown.split())


def test_leakage_marks_every_output(swept: Path, tmp_path: Path) -> None:
    results = load(swept / "results.parquet")
    assert {row["leaked"] for row in results.rows} == {False}
    assert "LEAKAGE" not in (swept / "report.html").read_text()
    stamp = "LEAKAGE: 1 of 2 targets resemble chains that were learnt from or chosen by (T0001-D1): nothing is proved"
    write_outputs(replace(results, facts={**results.facts, "stamp": stamp}), tmp_path)
    for name in ("summary.md", "tables.md", "tables.tex", "report.html"):
        assert stamp in (tmp_path / name).read_text(), name
    for path in (tmp_path / "plots").glob("*.png"):
        assert path.read_bytes() != (swept / "plots" / path.name).read_bytes()


def test_the_report_asks_for_nothing_and_runs_in_a_browser(swept: Path, tmp_path: Path) -> None:
    text = (swept / "report.html").read_text()
    check_asks_for_nothing_outside(Page(text))
    clicks = """
      const heads = document.querySelectorAll("#comparisons button");
      heads[4].click();
      const cells = [...document.querySelectorAll("#comparisons tbody tr")].map(row => row.cells[4].dataset.value);
      const told = document.createElement("p"); told.id = "sorted"; told.textContent = cells.join(" ");
      document.body.append(told);
    """
    page, seen = in_browser(swept / "report.html", tmp_path, clicks)
    assert [line for line in seen if not line.startswith("asked for: blob:") and "data:" not in line] == []
    values = [float(value) for value in page.texts["sorted"].split()]
    assert values == sorted(values, reverse=True)
    assert len(values) == 4 + 2 + 2
    assert any(tag == "canvas" for tag, _ in page.elements)


def test_a_cell_of_other_settings_is_not_taken_for_done(swept: Path, config_file) -> None:
    """Nothing is thrown away either: the difference is named."""
    config = config_file()
    shown = protfold("compare", config, "finetune.training.steps=4", "--out", swept, "--list")
    assert re.findall(r"(\w+) +(done|waiting)", shown) == [
        ("base", "done"),
        *((name, "waiting") for name in ("lora_r1_s0", "lora_r2_s0", "lorta_r1_s0", "lorta_r2_s0")),
    ]
    shown = protfold("compare", config, "finetune.training.steps=4", "--out", swept, "--cell", 1, status=2)
    assert "training.steps was 3 and is 4" in shown
    (swept / "cells" / "lora_r1_s0.failed.txt").unlink()
    assert "4 lorta_r2_s0" in protfold("compare", config, "--out", swept, "--list")
    assert set(SCORES) < set(MEASURES)


def test_the_report_is_readable_on_a_phone_on_paper_and_by_keyboard(swept: Path, browser) -> None:
    check_readable(swept / "report.html", browser, sorts="table.sortable [data-column='1']")

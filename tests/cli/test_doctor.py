"""`protfold doctor`: a sound installation is called sound, and each way of being broken is told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.doctor import BROKEN, MISSING, OK, WARNING, checks, diagnosis, fold
from protfold_peft.folding.load import load_model
from protfold_peft.folding.predict import predict
from protfold_peft.machine import GIB, Gpu, Machine

MACHINE = Machine(cores=4, memory_bytes=16 * GIB, free_bytes=12 * GIB, gpus=(), mps=False)
CARD = Gpu(index=0, name="A card", memory_bytes=24 * GIB, free_bytes=23 * GIB, bf16=True)


def doctor(*words: str):
    return CliRunner().invoke(app, ["doctor", *words])


def test_this_installation_is_sound():
    result = doctor("--json")
    assert result.exit_code == 0, result.stdout
    told = json.loads(result.stdout)
    assert told["sound"] is True
    assert {check["state"] for check in told["checks"]["self-test"]} == {OK}
    names = {check["name"] for check in told["checks"]["versions"]}
    assert {"torch", "transformers", "peft", "safetensors"} <= names
    assert told["machine"]["cores"] >= 1


def test_the_stored_fold_is_what_the_model_gives():
    """What is stored are distances; here they come from the file that is written, by its columns."""
    prediction = predict(load_model(device="cpu"), fold.SEQUENCE)
    positions = prediction.structure.chains[0].atom_positions[:, 1]
    found = [np.linalg.norm(positions[i + 3] - positions[i]) for i in range(len(positions) - 3)]
    np.testing.assert_allclose(found, fold.DISTANCES, atol=0.02)
    assert prediction.mean_plddt == pytest.approx(fold.PLDDT, abs=0.05)


def test_another_fold_is_broken_and_so_is_the_status(monkeypatch):
    monkeypatch.setattr(fold, "DISTANCES", tuple(distance + 0.5 for distance in fold.DISTANCES))
    result = doctor()
    assert result.exit_code == 2
    assert "distances are off by 0.50 A" in result.stdout
    assert result.stdout.rstrip().endswith("1 broken: see above")


def test_a_model_that_cannot_be_loaded_is_broken(monkeypatch):
    def fail(**options):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(fold, "load_model", fail)
    [check] = fold.self_test("cpu")
    assert (check.state, check.found) == (BROKEN, "RuntimeError: no kernel image is available")


def test_versions_are_judged_by_what_the_package_asks_for():
    assert checks._required(Requirement("numpy>=1")).state == OK
    assert checks._required(Requirement("numpy<1")).state == WARNING
    missing = checks._required(Requirement("no-such-package>=2"))
    assert (missing.state, missing.remedy) == (BROKEN, "pip install 'no-such-package>=2'")


def test_a_cache_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(checks.hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    states = {check.name: check for check in checks.folders()}
    assert states["model cache"].found.endswith("free") or "fewer than" in states["model cache"].found
    monkeypatch.setattr(checks, "_not_writable", lambda folder: "Read-only file system")
    check = {check.name: check for check in checks.folders()}["model cache"]
    assert check.state == WARNING
    assert "Read-only file system" in check.found
    assert "HF_HOME" in check.remedy


def test_optional_parts_are_not_called_broken(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    states = {check.name: check.state for check in checks.optional()}
    assert states["mmseqs"] == MISSING
    assert BROKEN not in states.values()


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (MACHINE, {"cpu": False}),
        (replace(MACHINE, free_bytes=20 * GIB), {"cpu": True}),
        (replace(MACHINE, gpus=(CARD,)), {"cpu": False, "cuda:0": True}),
        (replace(MACHINE, gpus=(replace(CARD, free_bytes=9 * GIB),)), {"cpu": False, "cuda:0": False}),
    ],
)
def test_esmfold_fits_where_its_weights_do(machine, expected):
    """3.53 billion numbers: 13.2 GiB in fp32; 7.9 GiB with the language model in 16 bits; 2 GiB stay free."""
    found = {fit.device: fit.fits for fit in diagnosis.fits(machine) if fit.model == "facebook/esmfold_v1"}
    assert found == expected

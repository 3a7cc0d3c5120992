"""`protfold init`: what it sees in the data, what it makes of the machine, and that its file runs as it is."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.data.prepare.store import load_prepared
from protfold_peft.machine import GIB, Gpu, Machine
from protfold_peft.training import read_config
from protfold_peft.training.suggestion import config_text, look_at, suggest

CPU = Machine(cores=2, memory_bytes=16 * GIB, free_bytes=12 * GIB, gpus=(), mps=False)


def with_gpu(memory: int, *, bf16: bool = True) -> Machine:
    return Machine(8, 64 * GIB, 60 * GIB, (Gpu(0, "A card", memory * GIB, memory * GIB, bf16),), False)


def protfold(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def family(tmp_path, structures, monkeypatch) -> Path:
    """The example structures as a user's folder, and the user in the folder above."""
    folder = tmp_path / "my family"
    shutil.copytree(structures, folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_what_it_writes_runs_as_it_is(family, tmp_path):
    result = protfold("init", "my family")
    assert result.exit_code == 0, result.stderr
    assert "8 chains of 25 to 167 residues" in result.stdout
    settings = yaml.safe_load(Path("my family.yaml").read_text())
    with Path("my family.split.csv").open(newline="") as handle:
        parts = {row["name"]: row["part"] for row in csv.DictReader(handle)}
    assert sorted(parts) == sorted(
        path.name.rpartition(".")[0] for path in family.iterdir() if path.suffix in (".pdb", ".cif")
    )
    assert set(parts.values()) == {"train", "validation"}

    few = ["training.steps=2", "training.warmup_steps=1", "data.crop_size=24", "data.max_length=60"]
    result = protfold("finetune", "my family.yaml", *few, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    held_out = {name for name, part in parts.items() if part == "validation"}
    assert set(told["per_target"]) <= held_out
    assert told["judged_on"] == "validation chains"
    assert (Path(settings["out"]) / "adapter_model.safetensors").exists()


def test_nothing_is_replaced_without_being_asked(family):
    Path("my family.yaml").write_text("mine")
    result = protfold("init", "my family")
    assert (result.exit_code, "my family.yaml is there already" in result.stderr) == (2, True)
    assert Path("my family.yaml").read_text() == "mine"
    assert not Path("my family.split.csv").exists()
    assert protfold("init", "my family", "--force", "--json").exit_code == 0
    assert "lorta" in Path("my family.yaml").read_text()


def test_a_prepared_dataset_keeps_its_own_split(family):
    assert protfold("prepare", "my family", "--out", "dataset", "--validation", 0.3, "--processes", 1).exit_code == 0
    told = json.loads(protfold("init", "dataset", "--json").stdout)
    assert told["split"] is None
    assert told["settings"]["data"]["validation"] is None
    text = Path("dataset.yaml").read_text()
    held_out = len(load_prepared("dataset", "validation"))
    assert held_out
    assert f"The dataset's own split: {held_out} chains." in text
    assert told["family"]["chains"] == len(load_prepared("dataset"))


# Of an ideal helix: radius in angstrom, turn in degrees and rise in angstrom from the CA.
HELIX = (("N", 1.55, -28, -0.9), ("CA", 2.28, 0, 0.0), ("C", 1.7, 26, 1.1), ("O", 2.0, 24, 2.3))


def residues(sequence: list[str], *, skipped: range = range(0)) -> str:
    """A helix as PDB text; residues of `skipped` are not there."""
    lines = []
    serial = 0
    for number, name in enumerate(sequence):
        if number in skipped:
            continue
        for atom, radius, turn, rise in HELIX:
            serial += 1
            angle = math.radians(100 * number + turn)
            x, y, z = radius * math.cos(angle), radius * math.sin(angle), 1.5 * number + rise
            lines.append(
                f"ATOM  {serial:5}  {atom:<3} {name} A{number + 1:4}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"
                f"           {atom[0]}"
            )
    return "\n".join([*lines, "TER", "END", ""])


def test_it_counts_gaps_unknown_residues_and_duplicates(tmp_path):
    """By construction: one chain with a gap, two of one sequence, one unknown residue, one too short."""
    folder = tmp_path / "made"
    folder.mkdir()
    whole = ["ALA", "LEU", "GLU"] * 10
    (folder / "a.pdb").write_text(residues(whole))
    (folder / "b.pdb").write_text(residues(whole))
    (folder / "c.pdb").write_text(residues(["GLY", "SER"] * 15, skipped=range(10, 15)))
    (folder / "d.pdb").write_text(residues([*["LYS", "ASP"] * 10, "UNK", "TRP"]))
    (folder / "e.pdb").write_text(residues(["MET"] * 9))
    (folder / "f.pdb").write_text("ATOM  this is not right\n")
    found = look_at(str(folder))
    assert found.lengths == sorted([30, 30, 22, *(len(c.sequence) for c in found.chains if c.file == "c")])
    assert (found.with_gaps, found.with_unknown, found.duplicates, found.short) == (1, 1, 1, 1)
    assert len(found.unreadable) == 1
    assert "f.pdb" in found.unreadable[0]


def test_copies_are_on_one_side_of_the_split(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    sequences = {
        "a": ["ALA", "LEU", "GLU", "LYS", "TRP"] * 6,
        "b": ["GLY", "SER", "PRO", "ASN"] * 8,
        "c": ["ILE", "VAL", "ASP", "ARG", "HIS", "TYR"] * 5,
    }
    for name, sequence in sequences.items():
        for copy in range(3):
            (folder / f"{name}{copy}.pdb").write_text(residues(sequence))
    split = suggest(look_at(str(folder)), CPU, model=None, out="o", table="t.csv").split
    assert split is not None
    sides = {name[0] for name in split.validation}, {name[0] for name in split.train}
    assert sides[0]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize("machine", [CPU, with_gpu(12, bf16=False), with_gpu(16), with_gpu(24), with_gpu(80)])
@pytest.mark.parametrize("model", [None, "facebook/esmfold_v1"])
def test_every_suggestion_is_a_configuration(structures, tmp_path, machine, model):
    found = suggest(look_at(str(structures)), machine, model=model, out="runs/x", table="x.split.csv")
    path = tmp_path / "x.yaml"
    path.write_text(config_text(found, str(path)))
    settings = read_config(path)
    assert yaml.safe_load(path.read_text()) == found.values()
    assert settings.model.name == model
    assert settings.data.crop_size <= 168  # the longest chain, to the next multiple of 8
    assert settings.training.warmup_steps < settings.training.steps
    assert settings.training.batch_size % settings.training.accumulate == 0
    if machine.gpus and not machine.gpus[0].bf16:
        assert settings.model.dtype == "fp32"
    # Larger GPUs are given larger crops; what is computed twice follows from their memory.
    if model is not None and machine.gpus and machine.gpus[0].memory_bytes >= 24 * GIB:
        assert settings.data.crop_size > 64
        assert settings.model.gradient_checkpointing is None


@pytest.mark.parametrize(
    ("folder", "words"), [("nowhere", "nowhere: there is no such folder"), ("empty", "empty: holds no .pdb")]
)
def test_errors_are_one_line(tmp_path, monkeypatch, folder, words):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    result = protfold("init", folder)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert words in line
    assert list(tmp_path.glob("*.yaml")) == []

"""Running `protfold evaluate` in this process, and pairs of files made of the example structures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_chains import moved, rotation
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.structure import Structure, read_structure, write_pdb


def evaluate(*arguments: object):
    """The command's result: `exit_code`, `stdout`, `stderr`."""
    return CliRunner().invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


def rows_of(*arguments: object, status: int = 0) -> list[dict]:
    """The rows that the command writes as JSON to standard output."""
    result = evaluate(*arguments, "--json", "-")
    assert result.exit_code == status, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def protein(structures) -> Structure:
    """82 residues, numbered 138 to 219, with all heavy atoms."""
    return read_structure(structures / "1A7G_E.pdb")


@pytest.fixture(scope="session")
def peptide(structures) -> Structure:
    """70 residues, numbered 151 to 220, with selenomethionine."""
    return read_structure(structures / "1A8O_A.pdb")


@pytest.fixture
def pair(tmp_path, protein) -> tuple[Path, Path]:
    """A model, which is the reference moved as a whole and disturbed by 1 A, and the reference."""
    noise = np.random.default_rng(0).normal(0, 0.6, (82, 37, 3))
    chain = moved(protein.chains[0], rotation(1), (10, 0, -5))
    disturbed = Structure("model", (moved(chain, np.eye(3)),))
    positions = np.where(chain.atom_mask[..., None], chain.atom_positions + noise, 0.0)
    object.__setattr__(disturbed.chains[0], "atom_positions", positions)
    write_pdb(disturbed, tmp_path / "model.pdb")
    write_pdb(protein, tmp_path / "ref.pdb")
    return tmp_path / "model.pdb", tmp_path / "ref.pdb"

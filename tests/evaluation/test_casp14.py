"""CASP14 natives against perturbed copies of themselves, numbers shifted: noise, hinges, deletions, wrong topologies.

The truth is TMscore's own, run on the same copies before their numbers were shifted.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from evaluation.conftest import rows_of
from made_chains import moved, renumbered, rotation, structure, taken

from protfold_peft.structure import read_structure, write_pdb

TARGETS = ("T1024-D1", "T1027-D1", "T1031-D1", "T1040-D1", "T1046s2-D1", "T1064-D1")


def noise(chain, random):
    offset = random.normal(0, 1.2, chain.atom_positions.shape)
    return replace(chain, atom_positions=np.where(chain.atom_mask[..., None], chain.atom_positions + offset, 0.0))


def hinge(chain, random):
    """The second half turned by 40 degrees around the CA in the middle."""
    middle = len(chain) // 2
    angle = np.deg2rad(40)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    pivot = chain.atom_positions[middle, 1]
    positions = chain.atom_positions.copy()
    positions[middle:] = (positions[middle:] - pivot) @ turn.T + pivot
    return replace(chain, atom_positions=np.where(chain.atom_mask[..., None], positions, 0.0))


def deletion(chain, random):
    start = len(chain) // 3
    return taken(noise(chain, random), [*range(start), *range(start + len(chain) // 5, len(chain))])


def wrong_topology(chain, random):
    """The coordinates of the residues in reverse order: compact, of the right size, and wrong."""
    return replace(chain, atom_positions=chain.atom_positions[::-1], atom_mask=chain.atom_mask[::-1])


PERTURBATIONS = (noise, hinge, deletion, wrong_topology)


@pytest.fixture(scope="module")
def copies(test_data, tmp_path_factory):
    """Folders of shifted and of plain copies, and of references, all called after target and perturbation."""
    root = tmp_path_factory.mktemp("casp14")
    for place, target in enumerate(TARGETS):
        path = test_data / "casp14" / f"{target}.pdb"
        chain = read_structure(path).chains[0]
        for kind, perturb in enumerate(PERTURBATIONS):
            random = np.random.default_rng([place, kind])
            model = moved(perturb(chain, random), rotation(place), (20, -5, 8))
            name = f"{target}_{perturb.__name__}.pdb"
            for folder in ("plain", "shifted", "reference"):
                (root / folder).mkdir(exist_ok=True)
            write_pdb(structure(model), root / "plain" / name)
            write_pdb(structure(renumbered(replace(model, id="Q"), 500)), root / "shifted" / name)
            shutil.copyfile(path, root / "reference" / name)
    return root


@pytest.fixture(scope="module")
def rows(copies):
    return {row["model"].rsplit("/")[-1]: row for row in rows_of(copies / "shifted", copies / "reference")}


def test_all_are_matched_by_alignment(rows):
    assert len(rows) == len(TARGETS) * len(PERTURBATIONS)
    for name, row in rows.items():
        assert (row["error"], row["matched_by"]) == (None, "alignment"), name
        if "deletion" not in name:
            assert row["coverage"] == 1, name


def test_shifted_numbers_change_no_score(copies, rows):
    for row in rows_of(copies / "plain", copies / "reference"):
        name = row["model"].rsplit("/")[-1]
        assert row["matched_by"] == "number", name
        for score in ("tm_score", "gdt_ts", "lddt_ca", "lddt", "rmsd_ca", "coverage"):
            assert rows[name][score] == pytest.approx(row[score], abs=1e-12), name


def test_the_kinds_of_error_show_in_the_scores_that_see_them(rows):
    for target in TARGETS:
        of = {kind.__name__: rows[f"{target}_{kind.__name__}.pdb"] for kind in PERTURBATIONS}
        # A hinge breaks the superposition, and of the distances only those across it.
        assert of["hinge"]["lddt_ca"] > 0.5
        assert of["hinge"]["rmsd_ca"] > of["noise"]["rmsd_ca"]
        assert of["wrong_topology"]["tm_score"] < 0.35
        assert of["wrong_topology"]["lddt_ca"] < 0.5
        assert of["deletion"]["tm_score"] < of["noise"]["tm_score"]


@pytest.mark.skipif(shutil.which("TMscore") is None, reason="TMscore (Debian's tm-align) is not installed")
def test_tm_scores_are_those_of_the_program(copies, rows):
    for name, row in rows.items():
        command = ["TMscore", copies / "plain" / name, copies / "reference" / name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r"^TM-score\s*=\s*([\d.]+)", told, re.MULTILINE)
        assert found is not None
        assert row["tm_score"] == pytest.approx(float(found.group(1)), abs=1.5e-4), name

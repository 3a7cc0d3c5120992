"""--stereochemistry: single defects made on purpose, and what is none although the arrays look like it."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
from evaluation.conftest import evaluate, rows_of
from made_chains import moved, renumbered, rotation, structure, taken

from protfold_peft.structure import write_pdb
from protfold_peft.structure.residues import ATOM_INDEX

COLUMNS = (
    *("lddt_stereo", "clashes", "bond_outliers", "angle_outliers"),
    *("cis_not_proline", "twisted", "breaks", "mirrored"),
)
C, O = ATOM_INDEX["C"], ATOM_INDEX["O"]


def changed(chain, change):
    positions = chain.atom_positions.copy()
    change(positions)
    return replace(chain, atom_positions=np.where(chain.atom_mask[..., None], positions, 0.0))


def scored(tmp_path, model, reference, *options):
    write_pdb(model, tmp_path / "model.pdb")
    write_pdb(reference, tmp_path / "ref.pdb")
    return rows_of(tmp_path / "model.pdb", tmp_path / "ref.pdb", *options)


def test_only_on_request_and_in_all_outputs(tmp_path, pair):
    (row,) = rows_of(*pair)
    assert {row[name] for name in COLUMNS} == {None}
    result = evaluate(*pair, "--stereochemistry", "--csv", tmp_path / "s.csv")
    (line,) = csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text()))
    (row,) = rows_of(*pair, "--stereochemistry")
    assert all(float(line[name]) == row[name] for name in COLUMNS)
    assert "lDDT stereo" in result.stdout
    # Atoms shaken by 0.6 A are no chemistry.
    assert row["lddt_stereo"] < 0.2 < row["lddt"]
    assert min(row["clashes"], row["bond_outliers"], row["angle_outliers"]) > 10


def test_a_true_structure_loses_nothing(tmp_path, peptide):
    (row,) = scored(tmp_path, peptide, peptide, "--stereochemistry")
    assert (row["lddt"], row["lddt_stereo"]) == (1, 1)
    assert (row["clashes"], row["bond_outliers"], row["breaks"], row["mirrored"]) == (0, 0, 0, 0)


def test_each_defect_is_counted(tmp_path, peptide):
    chain = peptide.chains[0]

    def far(positions):
        positions[30:] += 20.0

    def stretched(positions):
        positions[10, O] += 0.4 * (positions[10, O] - positions[10, C])

    (row,) = scored(tmp_path, structure(changed(chain, stretched)), peptide, "--stereochemistry")
    assert (row["bond_outliers"], row["breaks"], row["clashes"]) == (1, 0, 0)
    # More than twelve deviations, in the backbone: the residue is out.
    assert row["lddt_stereo"] < row["lddt"] - 0.01
    (row,) = scored(tmp_path, structure(changed(chain, far)), peptide, "--stereochemistry")
    assert row["breaks"] == 1
    # Residues the model lacks, by its numbers, are no break; insertion codes are neighbours.
    codes = tuple("A" if place == 41 else "" for place in range(len(chain)))
    numbers = chain.residue_numbers - (np.arange(len(chain)) >= 41)
    (row,) = scored(tmp_path, structure(taken(chain, [*range(30), *range(33, 70)])), peptide, "--stereochemistry")
    assert row["breaks"] == 0
    coded = replace(chain, residue_numbers=numbers, insertion_codes=codes, seqres=None, seqres_index=None)
    (row,) = scored(tmp_path, structure(coded), peptide, "--stereochemistry")
    assert (row["breaks"], row["clashes"], row["lddt_stereo"]) == (0, 0, 1)
    mirror = replace(chain, atom_positions=chain.atom_positions * [1.0, 1, -1])
    (row,) = scored(tmp_path, structure(mirror), peptide, "--stereochemistry")
    assert row["mirrored"] == sum(letter != "G" for letter in chain.sequence)


def test_a_chain_closed_over_a_residue_of_the_reference_does_not_clash(tmp_path, peptide):
    """Neighbours in the model that are none in the reference: their peptide bond is one all the same."""
    chain = peptide.chains[0]
    gap = 35
    # The reference has one residue more, whose place in space does not matter to the model.
    longer = taken(chain, [*range(gap), gap - 1, *range(gap, len(chain))])
    far = changed(longer, lambda positions: np.add(positions[gap], 30.0, out=positions[gap]))
    reference = replace(far, residue_numbers=np.arange(1, len(chain) + 2))
    (row,) = scored(tmp_path, structure(renumbered(chain, 500)), structure(reference), "--stereochemistry")
    assert (row["matched_by"], row["n_matched"], row["clashes"]) == ("alignment", 70, 0)
    assert row["lddt_stereo"] == row["lddt"]


def test_residues_that_the_reference_lacks_clash_too(tmp_path, peptide):
    chain = peptide.chains[0]

    def collided(positions):
        positions[69] += positions[5, 1] - positions[69, 1] + 0.1

    model = structure(changed(chain, collided))
    (row,) = scored(tmp_path, model, structure(taken(chain, range(60))), "--stereochemistry")
    assert row["clashes"] > 0
    assert row["lddt"] == 1
    assert row["lddt_stereo"] < 1


def test_chains_are_not_joined_and_clash_with_each_other(tmp_path, peptide, protein):
    apart = moved(protein.chains[0], rotation(1), (100, 0, 0), id="B")
    through = moved(protein.chains[0], np.eye(3), id="B")
    first = replace(peptide.chains[0], id="A")
    reference = structure(first, apart)
    (row,) = scored(tmp_path, reference, reference, "--stereochemistry")
    alone = rows_of(tmp_path / "model.pdb", tmp_path / "ref.pdb", "--stereochemistry", "--by-chain")[1:]
    assert row["breaks"] == 0
    for name in COLUMNS[1:]:
        assert row[name] == sum(part[name] for part in alone), name
    shift = first.atom_positions[20, 1] - through.atom_positions[40, 1]
    entangled = structure(first, moved(through, np.eye(3), shift))
    (row,) = scored(tmp_path, entangled, reference, "--stereochemistry")
    assert row["clashes"] > 0
    assert row["lddt_stereo"] < row["lddt"]

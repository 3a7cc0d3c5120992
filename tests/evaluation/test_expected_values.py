"""The values of independent programs (TMscore, biotite, OpenStructure, US-align), through the command itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from evaluation.conftest import rows_of

TOLERANCE_RMSD = 1e-4
TOLERANCE_LDDT_CA = 1e-6
TOLERANCE_TM = 1e-4


@pytest.fixture(scope="module")
def expected(test_data):
    names = ("pairs", "short", "mirror", "ensembles", "complexes")
    return {name: json.loads((test_data / "metrics" / f"expected_{name}.json").read_text()) for name in names}


def folders(source, target, names):
    """Two folders of the pairs' files, each called after its pair."""
    for side in ("model", "ref"):
        (target / side).mkdir()
        for name in names:
            shutil.copyfile(source / name / f"{side}.pdb", target / side / f"{name}.pdb")
    return target / "model", target / "ref"


@pytest.fixture(scope="module")
def pair_rows(test_data, expected, tmp_path_factory):
    """All single-chain pairs in one run of two folders, and so in padded batches."""
    models, references = folders(test_data / "metrics" / "pairs", tmp_path_factory.mktemp("pairs"), expected["pairs"])
    rows = rows_of(models, references, "--stereochemistry")
    return {row["model"].rsplit("/", 1)[1].removesuffix(".pdb"): row for row in rows}


def test_every_pair_is_scored_and_matched_as_it_should(pair_rows, expected):
    assert set(pair_rows) == set(expected["pairs"])
    for name, values in expected["pairs"].items():
        row = pair_rows[name]
        assert row["error"] is None
        way = "alignment" if values["residue_matching"] == "sequence alignment" else "number"
        assert (row["matched_by"], row["n_matched"]) == (way, values["n_matched"]), name
        assert row["coverage"] == values["n_matched"] / values["L_ref"]
        assert (row["n_reference"], row["n_model"]) == (values["L_ref"], values["L_model"])


def test_scores_of_the_pairs(pair_rows, expected):
    for name, values in expected["pairs"].items():
        row, length = pair_rows[name], values["L_ref"]
        assert row["tm_score"] == pytest.approx(values["tm_score"]["value"], abs=TOLERANCE_TM), name
        assert row["rmsd_ca"] == pytest.approx(values["rmsd"]["ca"], abs=TOLERANCE_RMSD), name
        assert row["rmsd_heavy"] == pytest.approx(values["rmsd"]["heavy"], abs=TOLERANCE_RMSD), name
        assert row["lddt_ca"] == pytest.approx(values["lddt_ca"]["biotite"], abs=TOLERANCE_LDDT_CA), name
        for score in ("ts", "ha"):
            least = values["gdt"][f"{score}_f77"]
            if least is not None:
                assert row[f"gdt_{score}"] >= least - 1 / length, name
            most = values["gdt"][f"{score}_best_known"]
            if most is not None:
                assert row[f"gdt_{score}"] <= most + 2 / length, name


def test_all_atom_lddt_of_the_pairs(pair_rows, expected):
    """OpenStructure leaves out atoms of zero occupancy, of which only S22 has some (30 of 3,365)."""
    for name, values in expected["pairs"].items():
        theirs = values["lddt_heavy"]["openstructure_symmetry"]
        if theirs is not None:
            tolerance = 2e-5 if name.startswith("S22") else 5e-6
            assert pair_rows[name]["lddt"] == pytest.approx(theirs["score"], abs=tolerance), name


def test_stereochemistry_of_the_pairs(pair_rows, expected):
    """`lddt -f`: S08 and S15 have something to leave out; S22 as above, and what it takes for one residue clashes."""
    told = []
    for name, values in expected["pairs"].items():
        row, theirs = pair_rows[name], values["lddt_heavy"]["openstructure_symmetry_stereo"]
        if theirs is None:
            continue
        tolerance = 2e-5 if name.startswith("S22") else 5e-6
        assert row["lddt_stereo"] == pytest.approx(theirs["score"], abs=tolerance), name
        assert row["clashes"] == values["stereo_openstructure"]["clashes"], name
        if row["lddt_stereo"] != row["lddt"]:
            told.append(name)
    assert told == ["S08_T0922_TS188", "S15_violations"]


def test_the_other_search_is_never_below(test_data, expected, tmp_path):
    names = [name for name, values in expected["pairs"].items() if values["L_ref"] < 160]
    rows = rows_of(*folders(test_data / "metrics" / "pairs", tmp_path, names), "--search", "irls")
    for name, row in zip(sorted(names), rows, strict=True):
        values = expected["pairs"][name]["tm_score"]
        assert row["tm_score"] >= values["value"] - TOLERANCE_TM, name
        assert row["tm_score"] <= values["best_known"] + 0.01, name


def test_normalised_by_the_models_length(test_data, expected, tmp_path):
    names = ["S08_T0922_TS188", "S10_homodimerA_m1", "S20_T1024D1_6t1z", "S26_1eud_A_renum"]
    rows = rows_of(*folders(test_data / "metrics" / "pairs", tmp_path, names), "--normalise", "model")
    for name, row in zip(names, rows, strict=True):
        value = expected["pairs"][name]["tm_score"]["norm_by_model_length"]
        assert row["tm_score"] == pytest.approx(value, abs=TOLERANCE_TM), name


def test_shifted_numbers_read_as_they_stand_give_nonsense(test_data, expected):
    """What matching by number makes of S26, as TMscore does: only when it is asked for."""
    folder = test_data / "metrics" / "pairs" / "S26_1eud_A_renum"
    (row,) = rows_of(folder / "model.pdb", folder / "ref.pdb", "--match", "number")
    assert row["tm_score"] == pytest.approx(
        expected["pairs"]["S26_1eud_A_renum"]["tm_score_by_residue_number_4dp"], abs=1e-4
    )
    assert row["identity"] < 0.1
    assert "names at matched numbers" in row["notes"][0]


def test_short_chains(test_data, expected, tmp_path):
    rows = rows_of(*folders(test_data / "metrics" / "short", tmp_path, expected["short"]))
    for row in rows:
        name = row["model"].rsplit("/", 1)[1].removesuffix(".pdb")
        values = expected["short"][name]["f77"]
        assert row["tm_score"] == pytest.approx(values["tm"], abs=TOLERANCE_TM), name
        assert row["gdt_ts"] >= values["gdt_ts"] - 1 / row["n_reference"], name
        assert row["gdt_ha"] >= values["gdt_ha"] - 1 / row["n_reference"], name
        # One residue has no distance to judge: there is no lDDT, and JSON has no NaN.
        assert (row["lddt_ca"] is None) == (row["n_reference"] == 1)


def test_the_mirror_image(test_data, expected):
    folder = test_data / "metrics" / "mirror"
    (row,) = rows_of(folder / "model.pdb", folder / "ref.pdb")
    values = expected["mirror"]
    assert row["tm_score"] == pytest.approx(values["tm"], abs=TOLERANCE_TM)
    assert row["rmsd_ca"] == pytest.approx(values["rmsd_ca"], abs=TOLERANCE_RMSD)
    assert row["lddt_ca"] == pytest.approx(values["lddt_ca"], abs=TOLERANCE_LDDT_CA)


def test_every_model_of_an_ensemble(test_data, expected):
    file = test_data / "metrics" / "ensembles" / "1l2y.pdb"
    rows = rows_of(file, file, "--models", "all")
    values = expected["ensembles"]["1l2y"]["values"]
    assert [row["model_number"] for row in rows] == [value["model"] for value in values]
    for row, value in zip(rows, values, strict=True):
        assert row["reference_number"] == 1
        assert row["tm_score"] == pytest.approx(value["tm"], abs=TOLERANCE_TM)
        assert row["rmsd_ca"] == pytest.approx(value["rmsd_ca"], abs=TOLERANCE_RMSD)
        assert row["lddt_ca"] == pytest.approx(value["lddt_ca"], abs=TOLERANCE_LDDT_CA)


def test_best_and_mean_over_an_ensemble_of_references(test_data, expected, tmp_path):
    """The score of model 2 against every model is that of every model against model 2, as all have 20 residues."""
    file = test_data / "metrics" / "ensembles" / "1l2y.pdb"
    lines = file.read_text().split("\n")
    start = next(number for number, line in enumerate(lines) if line.split()[:2] == ["MODEL", "2"])
    end = next(number for number in range(start, len(lines)) if lines[number].startswith("ENDMDL"))
    second = tmp_path / "second.pdb"
    second.write_text("\n".join(lines[start + 1 : end]) + "\nEND\n")
    each = rows_of(file, second, "--models", "all")
    (best,) = rows_of(second, file, "--references", "best")
    (mean,) = rows_of(second, file, "--references", "mean")
    assert best["reference_number"] == 2
    assert best["tm_score"] == pytest.approx(1)
    others = [row["tm_score"] for row in each]
    assert mean["tm_score"] == pytest.approx(sum(others) / len(others), abs=TOLERANCE_TM)
    assert mean["rmsd_ca"] == pytest.approx(sum(row["rmsd_ca"] for row in each) / len(each))
    assert mean["reference_number"] is None


def lddt_tolerance(name):
    return 5e-5 if name.startswith("C1") else 5e-6


def test_complexes(test_data, expected, tmp_path):
    """US-align's fixed correspondence (-TMscore 7, mapped) has four decimals, TMscore's rule on all residues of both.

    OpenStructure's lDDT of all heavy atoms counts pairs between chains too. The reference of C1 has alternate
    locations, which it chooses atom by atom and not by residue.
    """
    folder = test_data / "metrics" / "complexes"
    names = list(expected["complexes"])
    table = tmp_path / "pairs.tsv"
    lines = [f"{folder / name / 'model.pdb'}\t{folder / name / 'ref.pdb'}" for name in names]
    table.write_text("model\treference\n" + "\n".join(lines) + "\n")
    rows = rows_of("--pairs", table)
    for name, row in zip(names, rows, strict=True):
        values = expected["complexes"][name]
        aligned = values["USalign_TMscore7_best_chain_mapping"]
        assert row["level"] == "complex"
        assert (row["n_reference"], row["n_model"]) == (aligned["L_ref"], aligned["L_model"])
        assert row["n_matched"] == aligned["L_aligned"]
        assert row["tm_score"] == pytest.approx(aligned["tm_norm_ref"], abs=1e-4), name
        theirs = values["openstructure_2.3.1"]
        assert row["rmsd_ca"] == pytest.approx(theirs["ca_rmsd"], abs=1e-4), name
        assert row["lddt"] == pytest.approx(theirs["oligo_lddt"], abs=lddt_tolerance(name)), name
        assert row["qs_score"] == pytest.approx(theirs["qs_global"], abs=1e-5), name


def test_chains_of_a_complex_on_their_own(test_data, expected):
    for name, values in expected["complexes"].items():
        folder = test_data / "metrics" / "complexes" / name
        whole, *parts = rows_of(folder / "model.pdb", folder / "ref.pdb", "--by-chain")
        assert [row["chains"] for row in parts] == whole["chains"].split(",")
        assert {row["level"] for row in parts} == {"part"}
        theirs = sorted(values["openstructure_2.3.1"]["single_chain_lddt"].values())
        assert sorted(row["lddt"] for row in parts) == pytest.approx(theirs, abs=lddt_tolerance(name))


def test_as_an_installed_program(test_data, expected, tmp_path):
    """A process of its own, with a table on the screen and both files."""
    folder = test_data / "metrics" / "pairs" / "S16_1l2y_m2_m1"
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'protfold'; from protfold_peft.cli.main import main; main()",
    ]
    arguments = ["evaluate", folder / "model.pdb", folder / "ref.pdb", "--json", tmp_path / "s.json"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads((tmp_path / "s.json").read_text())
    value = expected["pairs"]["S16_1l2y_m2_m1"]["tm_score"]["value"]
    assert row["tm_score"] == pytest.approx(value, abs=TOLERANCE_TM)
    assert f"{value:.4f}" in done.stdout
    assert "1 scored, 0 failed" in done.stdout

"""The command as a user meets it: what it prints and writes, and how it fails."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from evaluation.conftest import evaluate, rows_of
from made_chains import moved, renumbered, rotation, structure, taken
from matplotlib.image import imread

from protfold_peft.evaluation.rows import COLUMNS
from protfold_peft.structure import read_structure, write_mmcif, write_pdb

REQUIRED = {
    *("model", "reference", "tm_score", "gdt_ts", "gdt_ha", "lddt_ca", "lddt", "rmsd_ca"),
    *("coverage", "matched_by", "error"),
}


def test_two_files(pair):
    result = evaluate(*pair)
    assert result.exit_code == 0
    assert "TM-score" in result.stdout
    assert "model.pdb" in result.stdout
    assert "1 scored, 0 failed" in result.stdout


@pytest.mark.parametrize(("width", "left_out"), [(80, ["matched by", "GDT-HA"]), (140, [])])
def test_names_are_whole_on_narrow_terminals(pair, tmp_path, monkeypatch, width, left_out):
    """Columns give way to them, and what is left out is told; a pair that failed is told all the same."""
    model = shutil.copyfile(pair[0], tmp_path / "T1024_ranked.pdb")
    (tmp_path / "broken.pdb").write_text("")
    table = tmp_path / "pairs.csv"
    table.write_text(f"model,reference\n{model},{pair[1]}\nbroken.pdb,{pair[1]}\n")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", evaluate("--pairs", table).stdout).split("\n")
    assert [line.split()[:2] for line in lines[1:3]] == [["T1024_ranked.pdb", "ref.pdb"], ["broken.pdb", "ref.pdb"]]
    assert lines[2].split()[-1] == "error"
    assert max(map(len, lines)) <= width
    told = [line for line in lines if line.startswith("no room here for")]
    assert told == ([f"no room here for {', '.join(left_out)}: --csv and --json have all"] if left_out else [])
    assert ("GDT-HA" in lines[0]) == (width == 140)


def test_json_and_csv_say_the_same(pair, tmp_path):
    result = evaluate(*pair, "--json", tmp_path / "new" / "s.json", "--csv", tmp_path / "s.csv")
    assert result.exit_code == 0
    (row,) = json.loads((tmp_path / "new" / "s.json").read_text())
    (line,) = csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text()))
    assert list(row) == list(line) == list(COLUMNS)
    assert set(row) >= REQUIRED
    assert row["error"] is None
    for name, value in row.items():
        if isinstance(value, float):
            assert float(line[name]) == value
        elif value is None:
            assert line[name] == ""
    assert not list(tmp_path.glob("**/.*"))


def test_standard_output_holds_the_file_alone(pair):
    result = evaluate(*pair, "--csv", "-")
    assert [line["matched_by"] for line in csv.DictReader(io.StringIO(result.stdout))] == ["number"]
    assert "1 scored" in result.stderr


def test_a_bad_pair_is_reported_and_the_rest_is_done(tmp_path, pair, peptide):
    models, references = tmp_path / "models", tmp_path / "references"
    for folder, source in ((models, pair[0]), (references, pair[1])):
        folder.mkdir()
        for name in ("a", "broken", "other", "z"):
            shutil.copyfile(source, folder / f"{name}.pdb")
    (models / "broken.pdb").write_text("<html>not found</html>")
    write_pdb(peptide, models / "other.pdb")
    (models / "spare.pdb").write_text("")
    result = evaluate(models, references, "--json", tmp_path / "s.json")
    assert result.exit_code == 1
    rows = {row["model"].rsplit("/")[-1]: row for row in json.loads((tmp_path / "s.json").read_text())}
    assert list(rows) == ["a.pdb", "broken.pdb", "other.pdb", "z.pdb"]
    assert "HTML" in rows["broken.pdb"]["error"]
    assert "identity" in rows["other.pdb"]["error"]
    assert rows["broken.pdb"]["tm_score"] is None
    assert rows["a.pdb"]["tm_score"] == rows["z.pdb"]["tm_score"] > 0.8
    for text in ("broken.pdb: failed", "HTML", "spare.pdb"):
        assert text.split(": ")[0] in result.stderr
    assert "mean of 2" in result.stdout
    assert "2 scored, 2 failed, 1 files without a partner" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "name a model and a reference"),
        (("only.pdb",), "name a model and a reference"),
        (("none.pdb", "none.pdb"), "no such file"),
        (("{model}", "{ref}", "--match", "names"), "--match"),
        (("{model}", "{ref}", "--search", "fast"), "--search"),
        (("{model}", "{ref}", "--normalise", "0"), "--normalise"),
        (("{model}", "{ref}", "--models", "2"), "--models"),
        (("{model}", "{ref}", "--device", "tpu"), "unknown device"),
        (("{model}", "{ref}", "--json", "-", "--csv", "-"), "standard output"),
        (("{model}", "{ref}", "--json", "{folder}/s", "--csv", "{folder}/./s"), "both"),
        (("{model}", "{ref}", "--json", "{ref}"), "ref.pdb is an input"),
        (("{folder}", "{ref}", "--csv", "{model}"), "model.pdb is an input"),
        (("--pairs", "{table}", "--csv", "{table}"), "pairs.csv is an input"),
        (("{model}", "{ref}", "--json", "{folder}"), "is a folder"),
        (("{model}", "{ref}", "--plot", "{model}"), "cannot make the folder"),
        (("{model}", "{ref}", "--csv", "{model}/s.csv"), "is a file"),
        (("{model}", "{ref}", "--pairs", "x.csv"), "leave MODEL and REFERENCE out"),
        (("--pairs", "none.csv"), "no such file"),
    ],
)
def test_what_cannot_start_is_one_line_and_status_2(pair, tmp_path, arguments, what):
    places = {"model": pair[0], "ref": pair[1], "folder": tmp_path, "table": tmp_path / "pairs.csv"}
    places["table"].write_text("model,reference\nmodel.pdb,ref.pdb\n")
    result = evaluate(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2
    assert what in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_residues_the_model_lacks_count_against_it(tmp_path, protein):
    """A perfect model of 60 of 82 residues: every covered residue counts fully, the others not at all."""
    write_pdb(structure(taken(protein.chains[0], range(60))), tmp_path / "part.pdb")
    write_pdb(protein, tmp_path / "ref.pdb")
    (row,) = rows_of(tmp_path / "part.pdb", tmp_path / "ref.pdb")
    assert row["coverage"] == row["gdt_ts"] == row["gdt_ha"] == pytest.approx(60 / 82)
    assert row["tm_score"] == pytest.approx(60 / 82)
    assert row["rmsd_ca"] == pytest.approx(0, abs=1e-6)
    assert row["lddt_ca"] < 1
    (back,) = rows_of(tmp_path / "ref.pdb", tmp_path / "part.pdb")
    assert (back["coverage"], back["tm_score"], back["lddt"]) == (1, pytest.approx(1), pytest.approx(1))
    (by_model,) = rows_of(tmp_path / "part.pdb", tmp_path / "ref.pdb", "--normalise", "model")
    assert by_model["tm_score"] == pytest.approx(1)
    (by_number,) = rows_of(tmp_path / "part.pdb", tmp_path / "ref.pdb", "--normalise", "120")
    assert by_number["tm_score"] == pytest.approx(60 / 120)


def test_awkward_models_of_the_same_protein_are_perfect(tmp_path, peptide, protein):
    """Modified and unknown residues, missing side chains, another chain id, CA only: coordinates are the same."""
    chain = peptide.chains[0]
    unknown = replace(
        chain,
        sequence="X" * 10 + chain.sequence[10:],
        residue_names=("UNK",) * 10 + chain.residue_names[10:],
        seqres=None,
        seqres_index=None,
    )
    only_ca = np.zeros_like(chain.atom_mask)
    only_ca[:, 1] = True
    no_ca = chain.atom_mask.copy()
    no_ca[5, 1] = False
    write_mmcif(peptide, tmp_path / "ref.cif.gz")
    models = {
        "unknown": moved(unknown, rotation(1), id="B"),
        "met": replace(chain, residue_names=tuple("MET" if n == "MSE" else n for n in chain.residue_names)),
        "ca": replace(chain, atom_mask=only_ca),
        "hole": replace(chain, atom_mask=no_ca),
        "blank": renumbered(replace(chain, id=" "), 7),
    }
    (tmp_path / "models").mkdir()
    for name, model in models.items():
        model = replace(model, seqres=None, seqres_index=None)
        write_pdb(structure(model), tmp_path / "models" / f"{name}.pdb")
    rows = rows_of(tmp_path / "models", tmp_path / "ref.cif.gz")
    found = {row["model"].rsplit("/")[-1].removesuffix(".pdb"): row for row in rows}
    for name, row in found.items():
        assert row["error"] is None, name
        assert row["tm_score"] == pytest.approx(1 if name != "hole" else 69 / 70, abs=1e-6), name
        assert row["rmsd_ca"] == pytest.approx(0, abs=2e-3), name
    assert found["blank"]["matched_by"] == "alignment"
    assert found["hole"]["n_matched"] == 69
    assert found["ca"]["lddt"] < found["ca"]["lddt_ca"] == 1


def test_one_chain_against_a_complex(tmp_path, protein, peptide):
    """The chain that it is, under whatever id; with --whole-complex the other one counts as missing."""
    second = moved(protein.chains[0], rotation(2), (60, 0, 0), id="B")
    write_pdb(structure(replace(peptide.chains[0], id="A"), second), tmp_path / "complex.pdb")
    write_pdb(structure(moved(protein.chains[0], rotation(3), id="A")), tmp_path / "one.pdb")
    (row,) = rows_of(tmp_path / "one.pdb", tmp_path / "complex.pdb")
    assert (row["chains"], row["level"], row["n_reference"]) == ("B:A", "chain", 82)
    assert row["tm_score"] == pytest.approx(1)
    (row,) = rows_of(tmp_path / "complex.pdb", tmp_path / "one.pdb")
    assert (row["chains"], row["coverage"]) == ("A:B", 1)
    (row,) = rows_of(tmp_path / "one.pdb", tmp_path / "complex.pdb", "--whole-complex")
    assert (row["level"], row["chains"]) == ("complex", "A:-,B:A")
    assert row["coverage"] == 82 / 152
    assert row["tm_score"] == pytest.approx(82 / 152)
    result = evaluate(tmp_path / "one.pdb", tmp_path / "complex.pdb", "--reference-chain", "A")
    assert result.exit_code == 1
    assert "identity" in result.stderr
    (row,) = rows_of(tmp_path / "complex.pdb", tmp_path / "complex.pdb", "--model-chain", "B")
    assert row["chains"] == "B:B"
    (row,) = rows_of(tmp_path / "one.pdb", tmp_path / "complex.pdb", "--reference-chain", "Q", status=1)
    assert "no protein chain 'Q'" in row["error"]


def test_lddt_in_the_b_factor(tmp_path, protein, pair):
    """Residues the reference lacks have 0; the others what the row's lDDT is made of."""
    write_pdb(structure(taken(protein.chains[0], range(10, 82))), tmp_path / "short.pdb")
    assert evaluate(pair[0], tmp_path / "short.pdb", "--lddt-pdb", tmp_path / "coloured").exit_code == 0
    written = read_structure(tmp_path / "coloured" / "model.pdb").chains[0]
    model = read_structure(pair[0]).chains[0]
    assert (written.atom_positions == model.atom_positions).all()
    values = written.b_factors[:, 1]
    assert (values[:10] == 0).all()
    # By hand, from the definition, for one residue in the middle.
    reference = read_structure(tmp_path / "short.pdb").chains[0].atom_positions[:, 1]
    place = 40
    true = np.linalg.norm(reference - reference[place - 10], axis=-1)
    made = np.linalg.norm(model.atom_positions[10:, 1] - model.atom_positions[place, 1], axis=-1)
    near = (true <= 15) & (true > 0)
    expected = np.mean([np.abs(true - made)[near] <= limit for limit in (0.5, 1, 2, 4)])
    assert values[place] == pytest.approx(100 * expected, abs=0.005)
    spread = written.b_factors[place][written.atom_mask[place]]
    assert np.ptp(spread) == 0


def test_an_input_is_never_overwritten(pair):
    before = pair[0].read_bytes()
    (row,) = rows_of(*pair, "--lddt-pdb", pair[0].parent, status=1)
    assert "is an input" in row["error"]
    assert pair[0].read_bytes() == before


def test_plots(pair, tmp_path):
    assert evaluate(*pair, "--plot", tmp_path / "plots").exit_code == 0
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["model.png"]
    image = imread(tmp_path / "plots" / "model.png")
    assert image.shape[0] > 300
    assert image[..., :3].std() > 0.02


def test_calibration_of_a_confidence_that_is_known(tmp_path, pair):
    """B-factors made of the true lDDT: shifted they correlate perfectly and are off by the shift."""
    assert evaluate(*pair, "--lddt-pdb", tmp_path / "coloured").exit_code == 0
    model = read_structure(tmp_path / "coloured" / "model.pdb")
    chain = model.chains[0]
    shifted = replace(chain, b_factors=np.where(chain.atom_mask, 5 + 0.8 * chain.b_factors, 0.0))
    write_pdb(structure(shifted), tmp_path / "shifted.pdb")
    (row,) = rows_of(tmp_path / "shifted.pdb", pair[1], "--calibration", "--plot", tmp_path / "plots")
    true = chain.b_factors[:, 1]
    assert row["plddt_pearson"] == pytest.approx(1, abs=1e-5)
    assert row["plddt_spearman"] == pytest.approx(1, abs=1e-3)
    assert row["plddt"] == pytest.approx(5 + 0.8 * true.mean(), abs=0.01)
    assert row["plddt_error"] == pytest.approx(np.abs(5 - 0.2 * true).mean(), abs=0.01)
    assert row["plddt_bias"] == pytest.approx((5 - 0.2 * true).mean(), abs=0.01)
    assert (tmp_path / "plots" / "calibration.png").exists()
    # Without the option nothing is claimed; B-factors that cannot be pLDDT are refused.
    assert rows_of(tmp_path / "shifted.pdb", pair[1])[0]["plddt"] is None
    flat = replace(chain, b_factors=np.where(chain.atom_mask, 30.0, 0.0))
    write_pdb(structure(flat), tmp_path / "flat.pdb")
    (row,) = rows_of(tmp_path / "flat.pdb", pair[1], "--calibration")
    assert row["plddt"] is None
    assert "not pLDDT" in row["notes"][0]


def test_scores_do_not_depend_on_the_other_pairs(tmp_path, protein, peptide):
    """Padding and batches change nothing: a pair alone has the scores it has among others."""
    models, references = tmp_path / "m", tmp_path / "r"
    for folder in (models, references):
        folder.mkdir()
    for length in (82, 70, 41, 12, 3):
        chain = taken(protein.chains[0], range(length))
        noise = np.random.default_rng(length).normal(0, 1, chain.atom_positions.shape)
        disturbed = replace(
            chain, atom_positions=np.where(chain.atom_mask[..., None], chain.atom_positions + noise, 0.0)
        )
        write_pdb(structure(disturbed), models / f"n{length}.pdb")
        write_pdb(structure(chain), references / f"n{length}.pdb")
    together = rows_of(models, references)
    for row in together:
        name = row["model"].rsplit("/")[-1]
        (alone,) = rows_of(models / name, references / name)
        for key, value in alone.items():
            if isinstance(value, float):
                assert row[key] == pytest.approx(value, abs=1e-9), (name, key)

"""Which files belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.evaluation.models import model_numbers
from protfold_peft.evaluation.outputs import Names
from protfold_peft.evaluation.pairs import pair_paths, read_pair_table
from protfold_peft.structure import read_structure


def files(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("")
    return folder


def names(found):
    return [(pair.model.name, pair.reference.name) for pair in found.pairs]


def test_folders_are_paired_by_name_whatever_the_format(tmp_path):
    models = files(tmp_path / "m", "b.pdb", "a.cif", "T1.pdb.gz", "only.pdb", "notes.txt", "b_scores.json")
    references = files(tmp_path / "r", "a.pdb", "b.ent", "T1.mmcif", "lonely.pdb")
    found = pair_paths(models, references)
    assert names(found) == [("T1.pdb.gz", "T1.mmcif"), ("a.cif", "a.pdb"), ("b.pdb", "b.ent")]
    assert len(found.unmatched) == 2
    assert "only.pdb" in found.unmatched[0]
    assert "lonely.pdb" in found.unmatched[1]


def test_two_files_of_one_name_are_an_error_of_that_pair(tmp_path):
    models = files(tmp_path / "m", "a.pdb", "b.pdb")
    references = files(tmp_path / "r", "a.pdb", "a.cif", "b.pdb")
    found = pair_paths(models, references)
    assert [bool(pair.error) for pair in found.pairs] == [True, False]
    assert "a.cif, a.pdb" in found.pairs[0].error


def test_a_folder_against_a_file_and_a_file_against_a_folder(tmp_path):
    models = files(tmp_path / "m", "a.pdb", "b.pdb")
    references = files(tmp_path / "r", "a.pdb", "c.pdb")
    assert names(pair_paths(models, references / "c.pdb")) == [("a.pdb", "c.pdb"), ("b.pdb", "c.pdb")]
    alone = pair_paths(models / "a.pdb", references)
    assert names(alone) == [("a.pdb", "a.pdb")]
    assert alone.unmatched == ()


def test_nothing_to_pair(tmp_path):
    models, references = files(tmp_path / "m", "a.pdb"), files(tmp_path / "r", "b.pdb")
    with pytest.raises(ProtfoldError, match="--pairs"):
        pair_paths(models, references)
    with pytest.raises(ProtfoldError, match="no such file or folder"):
        pair_paths(tmp_path / "none", references)
    with pytest.raises(ProtfoldError, match=r"holds no \.pdb"):
        pair_paths(files(tmp_path / "empty"), references)


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table_of_pairs(tmp_path, delimiter):
    folder = files(tmp_path / "data", "m.pdb", "r.pdb")
    lines = [
        ["Reference", "note", "model", "model_chain", "reference_chain"],
        ["r.pdb", "relative to the table", "m.pdb", "", "B"],
        ["/elsewhere/r.pdb", "", " gone.pdb ", "A", ""],
    ]
    table = folder / "pairs.txt"
    table.write_text("\n".join(["# made by hand", *(delimiter.join(line) for line in lines), "", ""]))
    first, second = read_pair_table(table, model_chain="X").pairs
    assert (first.model, first.reference) == (folder / "m.pdb", folder / "r.pdb")
    assert (first.model_chain, first.reference_chain) == ("X", "B")
    assert (second.model, second.reference) == (Path("gone.pdb"), Path("/elsewhere/r.pdb"))
    assert (second.model_chain, second.reference_chain) == ("A", None)


def test_rows_that_name_too_little_are_errors_of_their_own(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("model,reference\na.pdb,\n,b.pdb\na.pdb,b.pdb,c\na.pdb,b.pdb\n")
    found = read_pair_table(table).pairs
    assert [bool(pair.error) for pair in found] == [True, True, True, False]
    assert "names no reference" in found[0].error
    assert "names no model" in found[1].error


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        ("model,reference\n", "no pair"),
        ("model,native\na,b\n", "no column reference"),
        ("model,reference,model\na,b,c\n", "twice"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, what):
    table = tmp_path / "pairs.csv"
    table.write_text(text)
    with pytest.raises(ConfigError, match=what):
        read_pair_table(table)


def test_a_table_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_pair_table(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_pair_table(tmp_path / "binary.csv")


def test_numbers_of_the_models_of_a_file(tmp_path, protein):
    atom = "ATOM      1  CA  ALA A   1    {:8.3f}   2.000   3.000  1.00  0.00           C\n"
    text = "".join(f"MODEL {number}\n{atom.format(place)}ENDMDL\n" for place, number in enumerate((3, 7, 4)))
    path = tmp_path / "models.pdb"
    # A model without atoms is none.
    path.write_text(text + "MODEL 9\nENDMDL\nEND\n")
    first = read_structure(path)
    assert model_numbers(first) == [3, 7, 4]
    assert [read_structure(path, model=number).n_models for number in (3, 7, 4)] == [3, 3, 3]
    assert model_numbers(protein) == [1]


def test_names_do_not_collide_and_do_not_depend_on_the_order():
    found = Names(["a", "b", "a"])
    assert found.of(Path("x/a.pdb"), Path("one.pdb"), None) == "a_one"
    assert found.of(Path("b.cif.gz"), Path("one.pdb"), None) == "b"
    assert found.of(Path("a.pdb"), Path("two.pdb"), 3) == "a_two_model3"
    assert found.of(Path("y/A.pdb"), Path("q/one.pdb"), None) == "A"
    assert found.of(Path("y/a.pdb"), Path("q/one.pdb"), None) == "a_one_2"

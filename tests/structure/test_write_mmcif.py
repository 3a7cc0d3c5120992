"""ModelCIF as others read it: the tables that viewers colour by, and whole structures back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import biotite.structure.io.pdbx as biotite_pdbx
import gemmi
import modelcif.reader
import numpy as np
import pytest
from Bio.PDB import MMCIFParser
from structure.made import assert_same
from structure.test_write_pdb import biopython_rows, coordinates, rows

from protfold_peft.errors import StructureError
from protfold_peft.structure import Structure, read_structure, write_mmcif
from protfold_peft.version import __version__


def table(path: Path, category: str) -> list[dict[str, str]]:
    """A category as gemmi's CIF reader has it."""
    block = gemmi.cif.read(str(path)).sole_block()
    found = block.find_mmcif_category(category)
    tags = [tag.split(".", 1)[1] for tag in found.tags]
    return [dict(zip(tags, (gemmi.cif.as_string(v) for v in row), strict=True)) for row in found]


@pytest.fixture
def plddt(made_structure: Structure) -> np.ndarray:
    return np.linspace(30, 99, made_structure.n_residues).round(2)


@pytest.fixture
def pae(made_structure: Structure) -> np.ndarray:
    n = made_structure.n_residues
    return np.arange(n * n).reshape(n, n) / 10


@pytest.fixture
def written(tmp_path: Path, made_structure: Structure, plddt: np.ndarray, pae: np.ndarray) -> Path:
    path = tmp_path / "made.cif"
    write_mmcif(made_structure, path, plddt=plddt, ptm=0.75, pae=pae, provenance={"adapter": "sha 1", "recycles": "3"})
    return path


def test_round_trip(made_structure: Structure, written: Path) -> None:
    assert_same(made_structure, read_structure(written))


def test_examples_round_trip(example: Path, tmp_path: Path) -> None:
    structure = read_structure(example)
    write_mmcif(structure, tmp_path / "x.cif")
    assert_same(structure, read_structure(tmp_path / "x.cif"))


def test_biopython_reads_the_same(made_structure: Structure, written: Path) -> None:
    atoms = list(MMCIFParser(QUIET=True).get_structure("x", written).get_atoms())
    assert biopython_rows(atoms) == rows(made_structure)
    np.testing.assert_allclose([a.coord for a in atoms], coordinates(made_structure), atol=5.1e-4)


def test_biotite_reads_the_same(made_structure: Structure, written: Path) -> None:
    theirs = biotite_pdbx.get_structure(biotite_pdbx.CIFFile.read(written), model=1, use_author_fields=True)
    assert list(
        zip(theirs.chain_id, theirs.res_id, theirs.ins_code, theirs.res_name, theirs.atom_name, strict=True)
    ) == rows(made_structure)
    np.testing.assert_allclose(theirs.coord, coordinates(made_structure), atol=6e-4)


def test_gemmi_reads_the_same(made_structure: Structure, written: Path) -> None:
    theirs = gemmi.read_structure(str(written))
    assert len(list(theirs[0].all())) == len(rows(made_structure))
    assert theirs.entities[0].full_sequence == ["GLY", "MSE", "ALA", "UNK", "TRP", "LYS", "SER", "VAL"]
    assert [r.label_seq for r in theirs[0]["A"]] == [2, 3, 4, 5, 7, 8]


def test_modelcif_reads_its_own(made_structure: Structure, written: Path, plddt: np.ndarray) -> None:
    with written.open() as handle:
        (system,) = modelcif.reader.read(handle)
    assert [entity.description for entity in system.entities] == ["made 1", "made 2"]
    (model,) = system.model_groups[0]
    local = [metric for metric in model.qa_metrics if metric.mode == "local"]
    assert [metric.value for metric in local] == pytest.approx(plddt.tolist(), abs=1e-3)
    assert system.software[0].name == "protfold-peft"


def test_local_plddt_is_what_molstar_looks_for(made_structure: Structure, written: Path, plddt: np.ndarray) -> None:
    metrics = {(m["name"], m["mode"]): m for m in table(written, "_ma_qa_metric.")}
    assert set(metrics) == {("pLDDT", "global"), ("pLDDT", "local"), ("pTM", "global"), ("PAE", "local-pairwise")}
    assert {key: m["type"] for key, m in metrics.items()} == {
        ("pLDDT", "global"): "pLDDT",
        ("pLDDT", "local"): "pLDDT",
        ("pTM", "global"): "pTM",
        ("PAE", "local-pairwise"): "PAE",
    }
    local = table(written, "_ma_qa_metric_local.")
    assert {row["metric_id"] for row in local} == {metrics["pLDDT", "local"]["id"]}
    assert [float(row["metric_value"]) for row in local] == pytest.approx(plddt.tolist(), abs=1e-3)
    # Mol* finds residues by label: every row has an atom of the same label.
    sites = {(row["label_asym_id"], row["label_seq_id"], row["label_comp_id"]) for row in table(written, "_atom_site.")}
    assert [(r["label_asym_id"], r["label_seq_id"], r["label_comp_id"]) for r in local] == sorted(
        sites, key=lambda site: (site[0] != "A", int(site[1]))
    )


def test_global_values(written: Path, plddt: np.ndarray) -> None:
    names = {m["id"]: m["name"] for m in table(written, "_ma_qa_metric.")}
    values = {names[row["metric_id"]]: float(row["metric_value"]) for row in table(written, "_ma_qa_metric_global.")}
    assert values == pytest.approx({"pLDDT": plddt.mean(), "pTM": 0.75}, abs=1e-3)


def test_pae_rows_are_the_aligned_residues(made_structure: Structure, written: Path, pae: np.ndarray) -> None:
    rows = table(written, "_ma_qa_metric_local_pairwise.")
    assert [float(row["metric_value"]) for row in rows] == pytest.approx(pae.ravel().tolist(), abs=1e-3)
    assert (rows[1]["label_seq_id_1"], rows[1]["label_seq_id_2"]) == ("2", "3")


def test_large_pae_is_left_to_json(
    tmp_path: Path, made_structure: Structure, pae: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protfold_peft.structure.mmcif_writer.MOST_PAE_RESIDUES", 9)
    write_mmcif(made_structure, tmp_path / "x.cif", pae=pae)
    assert table(tmp_path / "x.cif", "_ma_qa_metric.") == []


def test_software_and_provenance(written: Path) -> None:
    (software,) = table(written, "_software.")
    assert (software["name"], software["version"]) == ("protfold-peft", __version__)
    parameters = {row["name"]: row["value"] for row in table(written, "_ma_software_parameter.")}
    assert parameters == {"adapter": "sha 1", "recycles": "3"}
    assert [row["method_type"] for row in table(written, "_ma_protocol_step.")] == ["modeling"]
    assert table(written, "_struct.")[0]["pdbx_structure_determination_methodology"] == "computational"


def test_b_factors_colour_in_chimerax(tmp_path: Path, made_structure: Structure, plddt: np.ndarray) -> None:
    """A structure without B-factors gets pLDDT there; one with them keeps them."""
    bare = replace(
        made_structure, chains=tuple(replace(c, b_factors=np.zeros_like(c.b_factors)) for c in made_structure.chains)
    )
    write_mmcif(bare, tmp_path / "x.cif", plddt=plddt)
    found = read_structure(tmp_path / "x.cif")
    assert np.concatenate([c.b_factors[:, 1] for c in found.chains]) == pytest.approx(plddt)


def test_identical_chains_are_one_entity(tmp_path: Path, made_structure: Structure) -> None:
    one = made_structure.chains[0]
    three = replace(made_structure, chains=(one, replace(one, id="B"), made_structure.chains[1]))
    write_mmcif(three, tmp_path / "x.cif")
    assert [row["pdbx_number_of_molecules"] for row in table(tmp_path / "x.cif", "_entity.")] == ["2", "1"]
    assert [row["entity_id"] for row in table(tmp_path / "x.cif", "_struct_asym.")] == ["1", "1", "2"]
    assert_same(three, read_structure(tmp_path / "x.cif"))


def test_an_experimental_structure_claims_no_prediction(tmp_path: Path, made_structure: Structure) -> None:
    write_mmcif(made_structure, tmp_path / "x.cif")
    text = (tmp_path / "x.cif").read_text()
    for words in ("_ma_qa_metric", "protfold-peft", "Ab initio", "computational"):
        assert words not in text
    assert_same(made_structure, read_structure(tmp_path / "x.cif"))


def test_long_chain_ids_large_numbers_and_coordinates(tmp_path: Path, made_structure: Structure) -> None:
    chain = replace(
        made_structure.chains[1],
        id="LA0",
        residue_numbers=np.array([-99999, 0, 10000, 123456]),
        atom_positions=made_structure.chains[1].atom_positions * 1000,
    )
    structure = replace(made_structure, chains=(chain,))
    write_mmcif(structure, tmp_path / "x.cif")
    assert_same(structure, read_structure(tmp_path / "x.cif"))


def test_a_blank_chain_id_takes_a_free_letter(tmp_path: Path, made_structure: Structure) -> None:
    first, second = made_structure.chains
    structure = replace(made_structure, chains=(first, replace(second, id="")))
    write_mmcif(structure, tmp_path / "x.cif")
    assert [chain.id for chain in read_structure(tmp_path / "x.cif").chains] == ["A", "B"]


def test_names_of_force_fields_survive(tmp_path: Path, made_structure: Structure) -> None:
    chain = replace(made_structure.chains[1], residue_names=("LEU", "ZZ9", "HSD", "GLU"), sequence="LKHE")
    structure = replace(made_structure, chains=(chain,), name="odd name: 'x' é")
    write_mmcif(structure, tmp_path / "x.cif")
    assert_same(structure, read_structure(tmp_path / "x.cif"))


def test_gzip(tmp_path: Path, made_structure: Structure) -> None:
    write_mmcif(made_structure, tmp_path / "x.cif.gz")
    assert (tmp_path / "x.cif.gz").read_bytes().startswith(b"\x1f\x8b")
    assert_same(made_structure, read_structure(tmp_path / "x.cif.gz"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"plddt": np.zeros(3)}, r"shape \(3,\)"),
        ({"plddt": np.full(10, 100.5)}, "0..100"),
        ({"plddt": np.full(10, np.nan)}, "0..100"),
        ({"ptm": 1.5}, "pTM is 1.5"),
        ({"ptm": float("nan")}, "pTM is nan"),
        ({"pae": np.zeros((10, 9))}, r"shape \(10, 9\)"),
        ({"pae": np.full((10, 10), np.inf)}, "finite"),
        ({"pae": np.full((10, 10), -1.0)}, "negative"),
    ],
)
def test_confidence_that_cannot_be(tmp_path: Path, made_structure: Structure, values: dict, words: str) -> None:
    with pytest.raises(StructureError, match=words):
        write_mmcif(made_structure, tmp_path / "x.cif", **values)
    assert list(tmp_path.iterdir()) == []


def test_layout_is_that_of_the_reference_file(test_data: Path, tmp_path: Path) -> None:
    """Rewriting a known ModelCIF file gives its categories, its confidence and its atoms."""
    folder = test_data / "metrics" / "output"
    expected = json.loads((folder / "expected_output.json").read_text())
    source = folder / "modelcif_by_python_modelcif.cif"
    structure = read_structure(source)
    assert structure.chains[0].sequence == expected["sequence"]
    path = tmp_path / "x.cif"
    pae = np.ones((130, 130))
    write_mmcif(structure, path, plddt=np.array(expected["plddt_per_residue"]), pae=pae)
    found = {line.split(".")[0] + "." for line in path.read_text().splitlines() if line.startswith("_")}
    assert set(expected["modelcif_categories"]) <= found
    assert len(table(path, "_atom_site.")) == expected["n_atoms"]
    values = [float(row["metric_value"]) for row in table(path, "_ma_qa_metric_local.")]
    assert values == pytest.approx(expected["plddt_per_residue"])
    assert np.mean(values) == pytest.approx(expected["mean_plddt"], abs=0.01)
    assert_same(structure, read_structure(path))

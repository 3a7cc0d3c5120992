"""The notebooks: what readers of the repository see, and that every cell still runs, in the short form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient, which runs the notebooks, is not installed")
pytest.importorskip("nbclient", reason="nbclient, which runs the notebooks, is not installed")
pytest.importorskip("ipykernel", reason="ipykernel, in which the notebooks run, is not installed")

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Committed pages are looked at on the web: half a megabyte is a dozen plots.
LARGEST = 500_000


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def pictures(notebook: Any) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_five() -> None:
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_those_of_one_run_from_top_to_bottom(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
        assert not {"text/html", "application/vnd.jupyter.widget-view+json"} & set(output.get("data", ()))
    assert printed(notebook)
    # Nothing of the machine it ran on.
    assert not re.search(r"/(?:tmp|root|home)/", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path) -> None:
    from execute import executed

    fresh, committed = executed(path, quick=True), nbformat.read(path, as_version=4)
    assert pictures(fresh) == pictures(committed)
    if path.stem == "1_predict":  # its short form is the whole: what it prints is what readers see
        numbers = re.compile(r"-?\d+(?:\.\d+)?")
        assert numbers.sub("N", printed(fresh)) == numbers.sub("N", printed(committed))
        for found, seen in zip(numbers.findall(printed(fresh)), numbers.findall(printed(committed)), strict=True):
            unit = 10.0 ** -len(seen.partition(".")[2])  # of the last digit printed: processors differ there
            assert float(found) == pytest.approx(float(seen), abs=0 if unit == 1 else 1.5 * unit)

"""Run the notebooks from top to bottom and keep their outputs, without what differs from run to run.

    python notebooks/execute.py                     # all, as they are committed
    python notebooks/execute.py 1_predict.ipynb     # one

The tests run them by `executed`, in their short form.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
TIMEOUT = 1800  # seconds for one cell; a machine may be busy


def executed(path: Path, *, quick: bool) -> nbformat.NotebookNode:
    """The notebook with fresh outputs, run in its folder, with pictures in the place of viewers.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    wanted = {"PROTFOLD_STATIC": "1", "PROTFOLD_QUICK": "1" if quick else "", "PYTHONWARNINGS": "ignore"}
    client = NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env={**os.environ, **wanted})
    return notebook


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without progress bars and logs, times of cells, and all forms of an output but the best plain one."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr" and not _is_widget(output)]
        for output in cell.outputs:
            if "data" in output:
                kept = next(kind for kind in ("image/png", "text/markdown", "text/plain") if kind in output.data)
                output.data = {kept: output.data[kept]}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _is_widget(output: nbformat.NotebookNode) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", ())


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.name for path in FOLDER.glob("*.ipynb")):
        nbformat.write(cleaned(executed(FOLDER / name, quick=False)), FOLDER / name)
        print(f"{name}: done", flush=True)

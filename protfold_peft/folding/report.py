"""`report.html`: the results of a run as one file that needs no network, with table, plots and a 3D viewer.

Everything comes from what is on disk. `report_page.html` is the page without its data; what it shares with other
reports, the viewer among it, is in `protfold_peft.pages`.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from protfold_peft.errors import ProtfoldError
from protfold_peft.files import write_text
from protfold_peft.folding.markers import DONE_SUFFIX, PAE_PLOT_SUFFIX, PLDDT_PLOT_SUFFIX, Done, read_done
from protfold_peft.folding.plots import PLDDT_BANDS
from protfold_peft.folding.summary import DONE, Row
from protfold_peft.pages import NO_VIEWER, fill, json_for_script, molstar, pack
from protfold_peft.runtime import LOGGER
from protfold_peft.structure import read_structure

# Bounds that keep the page one that a browser opens at once; what is left out is said on the page.
MAX_STRUCTURES = 200
MAX_STRUCTURE_BYTES = 40_000_000
MAX_ROWS = 5_000

_CA = 1


def write_report(path: Path, folder: Path, rows: Sequence[Row]) -> None:
    """Write the page for these rows, whose files are in `folder`.

    Of a large run the structures with the highest mean pLDDT are embedded, `MAX_STRUCTURES` at most.
    """
    script, style = molstar()
    notes = []
    if not script:
        notes.append(NO_VIEWER)
    done = sorted((row for row in rows if row.status == DONE), key=lambda row: -(row.plddt or 0.0))
    structures: dict[str, Any] = {}
    size = 0
    for row in done[:MAX_STRUCTURES]:
        entry = _structure_entry(folder, row.name)
        if entry is None:
            continue
        size += len(entry["packed"]) + sum(len(plot["png"]) for plot in entry["plots"])
        if size > MAX_STRUCTURE_BYTES and structures:
            break
        structures[row.name] = entry
    if len(structures) < len(done):
        notes.append(
            f"{len(structures)} of {len(done)} structures are shown in this page, those with the highest mean pLDDT; "
            "the files of all are beside it."
        )
    if len(rows) > MAX_ROWS:
        notes.append(f"The table shows the first {MAX_ROWS} of {len(rows)} records; all are in the summary file.")
    content = {
        "counts": _counts(rows),
        "warnings": sorted({row.warning for row in rows if row.warning}),
        "notes": notes,
        "bands": [{"name": name, "color": color} for _, name, color in PLDDT_BANDS],
        "rows": [_row_entry(row) for row in rows[:MAX_ROWS]],
        "structures": structures,
        "viewer": bool(script),
    }
    page = resources.files("protfold_peft.folding").joinpath("report_page.html").read_text(encoding="utf-8")
    values = {"MOLSTAR_CSS": style, "MOLSTAR_JS": script, "DATA": json_for_script(content)}
    write_text(path, fill(page, values))


def _structure_entry(folder: Path, name: str) -> dict[str, Any] | None:
    """All the page needs to show a record, None where its structure is gone or cannot be read."""
    done = read_done(folder / f"{name}{DONE_SUFFIX}")
    path = next((p for suffix in (".pdb", ".cif") if (p := folder / f"{name}{suffix}").is_file()), None)
    if done is None or path is None:
        return None
    try:
        chains = read_structure(path).chains
    except ProtfoldError as error:
        LOGGER.warning("report: %s", error)
        return None
    parts = [
        {"chain": chain.id, "start": start, "end": end, "band": band}
        for chain in chains
        for start, end, band in _bands(chain.residue_numbers.tolist(), chain.b_factors[:, _CA].tolist())
    ]
    return {
        "format": "pdb" if path.suffix == ".pdb" else "mmcif",
        "packed": pack(path.read_bytes()),
        "chains": [chain.id for chain in chains],
        "parts": parts,
        # A cartoon of two or three residues draws nothing.
        "style": "cartoon" if min(map(len, chains)) > 3 else "ball_and_stick",
        "origin": _origin(done),
        "files": list(done.files),
        "plots": [
            {"png": base64.b64encode(plot.read_bytes()).decode(), "alt": f"{what} of {name}"}
            for what, suffix in (("pLDDT", PLDDT_PLOT_SUFFIX), ("predicted aligned error", PAE_PLOT_SUFFIX))
            if (plot := folder / f"{name}{suffix}").is_file()
        ],
    }


def _bands(numbers: Sequence[int], plddt: Sequence[float]) -> list[tuple[int, int, int]]:
    """Runs of residues within one band of confidence: first number, last number, index into `PLDDT_BANDS`."""
    runs: list[tuple[int, int, int]] = []
    for number, value in zip(numbers, plddt):
        band = next((i for i, (lower, _, _) in enumerate(PLDDT_BANDS) if value > lower), len(PLDDT_BANDS) - 1)
        if runs and runs[-1][2] == band:
            runs[-1] = (runs[-1][0], number, band)
        else:
            runs.append((number, number, band))
    return runs


def _origin(done: Done) -> str:
    return ", ".join([f"{done.length} residues", *(f"{key} {value}" for key, value in done.settings.items())])


def _row_entry(row: Row) -> dict[str, Any]:
    keys = ("name", "length", "plddt", "ptm", "iptm", "status", "error", "seconds")
    return {key: getattr(row, key) for key in keys}


def _counts(rows: Sequence[Row]) -> str:
    counts = Counter(row.status for row in rows)
    parts = [f"{counts[status]} {status}" for status in sorted(counts)]
    return f"{len(rows)} records: {', '.join(parts)}"

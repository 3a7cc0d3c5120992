"""Writing the files of one folded record: structures, scores, predicted aligned error, plots, and last the marker.

Names and layouts are those that users of ColabFold and of the AlphaFold database know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from protfold_peft.errors import NonFiniteError
from protfold_peft.files import write_text
from protfold_peft.folding.markers import (
    PAE_PLOT_SUFFIX,
    PAE_SUFFIX,
    PLDDT_PLOT_SUFFIX,
    SCORES_SUFFIX,
    Done,
    discard,
    sequence_hash,
    wanted_suffixes,
    write_done,
)
from protfold_peft.folding.types import Prediction, Record


def write_outputs(
    prediction: Prediction,
    folder: Path,
    *,
    settings: Mapping[str, str],
    formats: Sequence[str],
    plots: bool,
    seconds: float,
) -> Done:
    """Write all files of a record, the marker last; earlier files of that record are gone before the first is written.

    Raises:
        NonFiniteError: A score is NaN or infinite.
        OSError: A file cannot be written; the marker is absent then.
    """
    name = prediction.record.name
    _check_finite(prediction)
    provenance = dict(prediction.provenance)
    suffixes = wanted_suffixes(formats, plots)
    discard(folder, name)

    _write_structures(prediction, folder, formats, provenance)
    pae = np.round(prediction.pae.astype(np.float64), 2).tolist()
    scores: dict[str, Any] = {
        "plddt": np.round(prediction.plddt.astype(np.float64), 2).tolist(),
        "ptm": round(float(prediction.ptm), 4),
        "iptm": None if prediction.iptm is None else round(float(prediction.iptm), 4),
        "chain_pair_iptm": None
        if prediction.chain_pair_iptm is None
        else np.round(prediction.chain_pair_iptm.astype(np.float64), 4).tolist(),
        "mean_plddt": round(prediction.mean_plddt, 2),
        "max_pae": round(float(prediction.max_pae), 2),
        "pae": pae,
        "chain_ids": [chain.id for chain in prediction.structure.chains],
        "chain_lengths": [len(chain) for chain in prediction.record.chains],
        "provenance": provenance,
    }
    _write_json(folder / f"{name}{SCORES_SUFFIX}", scores)
    _write_json(
        folder / f"{name}{PAE_SUFFIX}",
        [{"predicted_aligned_error": pae, "max_predicted_aligned_error": scores["max_pae"]}],
    )
    if plots:
        write_plots(scores, folder, name)

    done = Done(
        name=name,
        length=len(prediction.record),
        sequence_sha256=sequence_hash(prediction.record),
        settings=dict(settings),
        files=tuple(f"{name}{suffix}" for suffix in suffixes),
        plddt=scores["mean_plddt"],
        ptm=scores["ptm"],
        iptm=scores["iptm"],
        warning=provenance.get("warning", ""),
        seconds=round(seconds, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_done(folder, done)
    return done


def write_plots(scores: Mapping[str, Any], folder: Path, name: str) -> None:
    """Draw both plots of a record from the content of its scores file."""
    from protfold_peft.folding.plots import plot_pae, plot_plddt

    warning = scores["provenance"].get("warning", "")
    plot_plddt(
        folder / f"{name}{PLDDT_PLOT_SUFFIX}", scores["plddt"], scores["chain_lengths"], title=name, warning=warning
    )
    plot_pae(
        folder / f"{name}{PAE_PLOT_SUFFIX}",
        scores["pae"],
        scores["chain_lengths"],
        max_pae=scores["max_pae"],
        title=name,
        warning=warning,
    )


def redraw_plots(folder: Path, done: Done, suffixes: Sequence[str]) -> None:
    """Draw the plots of a finished record where one is missing: its scores file holds all that is needed."""
    if all((folder / f"{done.name}{suffix}").is_file() for suffix in suffixes):
        return
    scores = json.loads((folder / f"{done.name}{SCORES_SUFFIX}").read_text(encoding="utf-8"))
    write_plots(scores, folder, done.name)
    files = tuple(dict.fromkeys((*done.files, *(f"{done.name}{suffix}" for suffix in suffixes))))
    write_done(folder, replace(done, files=files))


def remark_lines(record: Record, provenance: Mapping[str, str], mean_plddt: float, ptm: float) -> tuple[str, ...]:
    """What the header of a structure file says of its origin; a warning comes first."""
    lines = [provenance["warning"]] if provenance.get("warning") else []
    lines += [f"protfold prediction of {record.name}", "B-factor column: pLDDT, 0..100"]
    lines.append(f"mean pLDDT {mean_plddt:.2f}, pTM {ptm:.4f}")
    return (*lines, *(f"{key}: {value}" for key, value in provenance.items() if key != "warning"))


def _write_structures(
    prediction: Prediction, folder: Path, formats: Sequence[str], provenance: Mapping[str, str]
) -> None:
    from protfold_peft.structure import write_mmcif, write_pdb

    base = folder / prediction.record.name
    if "pdb" in formats:
        remarks = remark_lines(prediction.record, provenance, prediction.mean_plddt, prediction.ptm)
        write_pdb(prediction.structure, base.with_name(f"{base.name}.pdb"), remarks=remarks)
    if "cif" in formats:
        write_mmcif(
            prediction.structure,
            base.with_name(f"{base.name}.cif"),
            plddt=prediction.plddt,
            ptm=prediction.ptm,
            pae=prediction.pae,
            provenance=provenance,
        )


def _check_finite(prediction: Prediction) -> None:
    values = {"pLDDT": prediction.plddt, "PAE": prediction.pae, "pTM": np.asarray(prediction.ptm)}
    for what, value in values.items():
        if not np.isfinite(value).all():
            raise NonFiniteError(f"{prediction.record.name}: {what} holds NaN or infinity")


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, allow_nan=False) + "\n")

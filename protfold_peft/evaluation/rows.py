"""A row of the result: one model against one reference, in the order the tables have it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the tables; None where a value does not exist.

    Attributes:
        model: File of the model.
        reference: File of the reference.
        model_number: Model of a file of several.
        reference_number: Model of the reference, of a file of several; None for the mean over them.
        level: `chain`, `complex`, or `part` for one chain of the complex in a row above.
        chains: The chains compared, as `reference:model`, a comma between pairs.
        tm_score: 0..1.
        gdt_ts: 0..1.
        gdt_ha: 0..1.
        lddt_ca: CA lDDT, 0..1; None for a reference without two residues near each other.
        lddt: lDDT of all heavy atoms with symmetric naming, 0..1.
        rmsd_ca: Of the matched CA, superposed on themselves, in angstrom.
        rmsd_heavy: Of all heavy atoms present in both, superposed on themselves, in angstrom.
        coverage: Fraction of the reference's residues that the model has.
        matched_by: `number` or `alignment`.
        identity: Fraction of the matched residues with the same name.
        n_reference: Residues of the reference (with CA).
        n_model: Residues of the model (with CA).
        n_matched: Residues compared.
        dockq: Mean DockQ over the interfaces of the reference; one that the model lacks counts 0.
        qs_score: QS-score over all contacts between chains.
        interfaces: Scores of every interface of the reference.
        lddt_stereo: As `lddt`, atoms of the model with impossible geometry counting as missing.
        clashes: Pairs of the model's atoms that are nearer than atoms can be.
        bond_outliers: Bonds of its backbone more than five deviations off.
        angle_outliers: Angles of its backbone more than five deviations off.
        cis_not_proline: Its cis peptides that are not before proline.
        twisted: Its peptides neither cis nor trans, by more than 30 degrees.
        breaks: Its neighbours in sequence that are not bonded.
        mirrored: Its residues of the wrong hand.
        plddt: Mean pLDDT of the matched residues, 0..100.
        plddt_pearson: Correlation of pLDDT with CA lDDT over the residues.
        plddt_spearman: The same of their ranks.
        plddt_error: Mean absolute difference of pLDDT and CA lDDT, 0..100.
        plddt_bias: Mean of pLDDT less CA lDDT, above 0 for a model too sure of itself.
        error: Why there are no scores.
        notes: What was decided.
    """

    model: str
    reference: str
    model_number: int | None = None
    reference_number: int | None = None
    level: str | None = None
    chains: str | None = None
    tm_score: float | None = None
    gdt_ts: float | None = None
    gdt_ha: float | None = None
    lddt_ca: float | None = None
    lddt: float | None = None
    rmsd_ca: float | None = None
    rmsd_heavy: float | None = None
    coverage: float | None = None
    matched_by: str | None = None
    identity: float | None = None
    n_reference: int | None = None
    n_model: int | None = None
    n_matched: int | None = None
    dockq: float | None = None
    qs_score: float | None = None
    interfaces: tuple[dict[str, Any], ...] | None = None
    lddt_stereo: float | None = None
    clashes: int | None = None
    bond_outliers: int | None = None
    angle_outliers: int | None = None
    cis_not_proline: int | None = None
    twisted: int | None = None
    breaks: int | None = None
    mirrored: int | None = None
    plddt: float | None = None
    plddt_pearson: float | None = None
    plddt_spearman: float | None = None
    plddt_error: float | None = None
    plddt_bias: float | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()


COLUMNS = tuple(field.name for field in fields(Row))


def finite(value: float) -> float | None:
    """The value, None where it is NaN: JSON has no NaN, and a score that is undefined is not a number."""
    return float(value) if math.isfinite(value) else None


def as_json(rows: Sequence[Row]) -> str:
    """A JSON list of objects, a key for every column."""
    return json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """The same as CSV: an empty cell for None, lists as text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "; ".join(_interface_text(item) if isinstance(item, dict) else str(item) for item in value)
    return value


def _interface_text(interface: dict[str, Any]) -> str:
    value = interface["dockq"]
    return f"{interface['chains']} {value:.4f}" if value is not None else f"{interface['chains']} -"

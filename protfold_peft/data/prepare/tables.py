"""The tables beside a prepared dataset: which chains are in it, and which were left out and why."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protfold_peft.data.prepare.records import Record, Rejection
from protfold_peft.data.prepare.split import TRAIN, VALIDATION

CHAINS, REJECTED = "chains.csv", "rejected.csv"
_CHAIN_COLUMNS = (
    "name",
    "split",
    "cluster",
    "cluster_size",
    "length",
    "resolved",
    "resolution",
    "date",
    "file",
    "chain",
)
_REJECTED_COLUMNS = ("name", "file", "chain", "length", "reason", "detail")


@dataclass(frozen=True)
class Row:
    """What is held in memory of a record: all but the coordinates."""

    place: int
    name: str
    sequence: str
    resolved: int
    atoms: int
    resolution: float | None
    date: str | None
    file: str
    chain: str

    def rejected(self, reason: str, detail: str) -> Rejection:
        """The line of the table of rejections for this chain."""
        return Rejection(self.name, self.file, self.chain, len(self.sequence), reason, detail)

    @property
    def rank(self) -> tuple[Any, ...]:
        """The lesser, the better: most resolved residues, best resolution, most atoms, read first."""
        resolution = float("inf") if self.resolution is None else self.resolution
        return (-self.resolved, resolution, -self.atoms, self.place)


def row_of(record: Record, name: str, place: int) -> Row:
    """What is kept in memory of `record`, which was written as number `place` under this name."""
    chain = record.chain
    return Row(
        place=place,
        name=name,
        sequence=chain.sequence,
        resolved=int(chain.has_frame.sum()),
        atoms=int(chain.atom_mask.sum()),
        resolution=record.resolution,
        date=record.date,
        file=record.file,
        chain=record.chain_id,
    )


def write_chains(folder: Path, rows: Sequence[Row], clusters: np.ndarray, validation: np.ndarray) -> None:
    """Write `chains.csv`.

    Args:
        folder: Where to.
        rows: `n` chains.
        clusters: `(n,)`, the cluster of each.
        validation: `(n,)`, whether it is in the validation split.
    """
    sizes = np.bincount(clusters)
    table = [
        {
            "name": row.name,
            "split": VALIDATION if validation[i] else TRAIN,
            "cluster": int(clusters[i]),
            "cluster_size": int(sizes[clusters[i]]),
            "length": len(row.sequence),
            "resolved": row.resolved,
            "resolution": row.resolution,
            "date": row.date,
            "file": row.file,
            "chain": row.chain,
        }
        for i, row in enumerate(rows)
    ]
    _write_csv(folder / CHAINS, _CHAIN_COLUMNS, table)


def write_rejected(folder: Path, rejected: Sequence[Rejection]) -> None:
    """Write `rejected.csv`."""
    _write_csv(folder / REJECTED, _REJECTED_COLUMNS, [asdict(rejection) for rejection in rejected])


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

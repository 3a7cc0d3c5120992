"""How a preparation went: its result, and what is said of it on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protfold_peft.data.prepare.records import MISFIT, UNREADABLE, Rejection
from protfold_peft.data.prepare.store import REPORT
from protfold_peft.data.prepare.tables import REJECTED
from protfold_peft.runtime import LOGGER

# Lines that go to the screen; the table has all.
_MAX_SCREEN_LINES = 20
# Names in a line on the screen.
_MAX_NAMES = 5
# What could not be used as it was given, for which the exit status is 1.
_FAULTS = (UNREADABLE, MISFIT)


@dataclass(frozen=True)
class PrepareResult:
    """How a preparation went.

    Attributes:
        out: The dataset.
        report: What `report.json` holds: the same for the same input.
        history: What `run.json` holds: how this run came to it.
        summary: Lines for the screen.
    """

    out: Path
    report: dict[str, Any]
    history: dict[str, Any]
    summary: tuple[str, ...]

    @property
    def exit_status(self) -> int:
        """0 if every file could be read and every sequence given for one fits, else 1."""
        return 1 if any(self.report["rejected"].get(reason) for reason in _FAULTS) else 0


def summary(report: dict[str, Any], history: dict[str, Any], out: Path) -> tuple[str, ...]:
    """Lines for the screen, from the two reports of a run."""
    lines = [f"{report['files']:,} files, {report['chains_read']:,} chains read"]
    if history["files_unchanged"]:
        lines.append(f"{history['files_read']:,} files read, {history['files_unchanged']:,} unchanged")
    if report["rejected"]:
        told = ", ".join(f"{count:,} {reason}" for reason, count in report["rejected"].items())
        lines.append(f"left out: {told} (why: {out / REJECTED})")
    lines.append(
        f"kept: {report['chains']:,} chains in {report['clusters']:,} clusters, the largest of "
        f"{report['largest_cluster']:,}; {report['train']:,} train, {report['validation']:,} validation"
    )
    lines.append(f"{out}: written in {history['seconds']:g} s")
    return tuple(lines)


def warn(rejected: Sequence[Rejection], without: Sequence[str]) -> None:
    """Say what could not be used as it was given, the first of many.

    Args:
        rejected: All that was left out.
        without: Names of chains that no given sequence is for.
    """
    faults = [rejection for rejection in rejected if rejection.reason in _FAULTS]
    for rejection in faults[:_MAX_SCREEN_LINES]:
        LOGGER.warning("%s: %s", rejection.reason, rejection.detail)
    if len(faults) > _MAX_SCREEN_LINES:
        LOGGER.warning("unreadable or not fitting: and %d more", len(faults) - _MAX_SCREEN_LINES)
    if without:
        LOGGER.warning(
            "%d chains have no sequence in the FASTA files and keep their file's: %s (all are in %s)",
            len(without),
            ", ".join(without[:_MAX_NAMES]) + (", ..." if len(without) > _MAX_NAMES else ""),
            REPORT,
        )

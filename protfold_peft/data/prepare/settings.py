"""What a preparation is asked to do, checked once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from protfold_peft.data.prepare.alignment import Likeness
from protfold_peft.errors import ConfigError

AUTO, MMSEQS, BUILTIN = "auto", "mmseqs", "builtin"
SEARCHES = (AUTO, MMSEQS, BUILTIN)


@dataclass(frozen=True)
class Filters:
    """Which chains are kept. Fractions are 0..1.

    Attributes:
        min_length: Fewest resolved residues (N, CA and C all there).
        max_length: Longest sequence, unresolved residues counted; None: any.
        max_resolution: In angstrom; None: any, and chains without one.
        keep_unknown_resolution: Keep chains without a resolution (NMR, models) in spite of `max_resolution`.
        max_missing: Largest fraction of the sequence that is not resolved.
        max_unknown: Largest fraction of `X` in the sequence.
        released_before: ISO date; chains of that day or later are left out. None: any.
        keep_undated: Keep chains without a date in spite of `released_before`.
    """

    min_length: int = 20
    max_length: int | None = None
    max_resolution: float | None = None
    keep_unknown_resolution: bool = False
    max_missing: float = 0.5
    max_unknown: float = 0.1
    released_before: str | None = None
    keep_undated: bool = False

    def __post_init__(self) -> None:
        if self.min_length < 1:
            raise ConfigError(f"--min-length {self.min_length}: a chain has at least one residue")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ConfigError(f"--max-length {self.max_length} is below --min-length {self.min_length}: no chain fits")
        if self.max_resolution is not None and not self.max_resolution > 0:
            raise ConfigError(f"--max-resolution {self.max_resolution:g}: a resolution is above 0 angstrom")
        _fraction("--max-missing", self.max_missing)
        _fraction("--max-unknown", self.max_unknown)
        if self.released_before is not None:
            try:
                day = date.fromisoformat(self.released_before)
            except ValueError:
                day = None
            if day is None or day.isoformat() != self.released_before:
                raise ConfigError(f"--released-before '{self.released_before}': write the date as YYYY-MM-DD")
        elif self.keep_undated:
            raise ConfigError("--keep-undated changes nothing without --released-before: leave it out")
        if self.max_resolution is None and self.keep_unknown_resolution:
            raise ConfigError("--keep-unknown-resolution changes nothing without --max-resolution: leave it out")


@dataclass(frozen=True)
class PrepareSettings:
    """What the user asked for.

    Attributes:
        structures: Folders, structure files, tables of them (`.csv`, `.tsv`), and FASTA files of their full sequences.
        out: Folder of the dataset.
        filters: Which chains are kept.
        exclude: FASTA files, structure files and folders of either; chains that resemble one of them are left out.
        likeness: From where on two chains resemble each other: for `exclude` and for the clusters.
        validation: Part of the chains that goes to validation, 0..1.
        seed: Of the split.
        search: `mmseqs`, `builtin`, or `auto`: MMseqs2 where it is installed.
        processes: How many read and align at the same time; 0: one for each core.
        overwrite: Replace the dataset that is at `out`, though it was made with other settings.
        verbose: Send the whole log to the screen.
    """

    structures: tuple[Path, ...]
    out: Path
    filters: Filters = field(default_factory=Filters)
    exclude: tuple[Path, ...] = ()
    likeness: Likeness = field(default_factory=Likeness)
    validation: float = 0.1
    seed: int = 0
    search: str = AUTO
    processes: int = 0
    overwrite: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        if not self.structures:
            raise ConfigError("name structures: folders, PDB or mmCIF files, or a .csv or .tsv table of them")
        _fraction("--identity", self.likeness.identity)
        _fraction("--coverage", self.likeness.coverage)
        if not 0 <= self.validation < 1:
            raise ConfigError(f"--validation {self.validation:g}: use a fraction from 0 to below 1")
        if self.search not in SEARCHES:
            raise ConfigError(f"--search '{self.search}': use auto, mmseqs or builtin")
        if self.processes < 0:
            raise ConfigError(f"--processes {self.processes}: use 1 or more, or 0 for one on each core")

    @property
    def n_processes(self) -> int:
        """How many processes there are."""
        return self.processes or len(os.sched_getaffinity(0))


def _fraction(option: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{option} {value:g}: use a fraction from 0 to 1")

"""What an evaluation is asked to do, checked once, and how it went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protfold_peft.errors import ConfigError
from protfold_peft.metrics.correspondence import AUTO, MIN_IDENTITY, WAYS
from protfold_peft.runtime import resolve_device

FIRST, ALL, BEST, MEAN = "first", "all", "best", "mean"
STANDARD_OUTPUT = "-"


@dataclass(frozen=True)
class EvaluationSettings:
    """What the user asked for.

    Attributes:
        model: File or folder of models; None with `pairs`.
        reference: File or folder of references; None with `pairs`.
        pairs: Table of pairs, or None.
        match: How residues are matched: `auto`, `number`, `alignment`.
        min_identity: Identity from which on an alignment is believed, 0..1.
        model_chain: The one chain of every model to score; None: all.
        reference_chain: The one chain of every reference to score against; None: all.
        whole_complex: Score against all chains of the reference even where the model has one chain only.
        by_chain: Give every matched chain of a complex a row of its own, after the complex's.
        models: Which models of a file of several: `first` or `all`.
        references: Which models of the reference: `first`, or over all of them the `best` TM-score or the `mean`.
        search: Rule of the superposition search: `tmscore` or `irls`.
        normalise: What TM-score and GDT are divided by: `reference`, `model`, or a number of residues.
        stereochemistry: Judge the models' geometry, and their lDDT without what is impossible of it.
        json: File of the rows as a JSON list, `-` for standard output.
        csv: File of the rows as CSV, `-` for standard output.
        lddt_pdb: Folder for the models with per-residue lDDT in the B-factor.
        plot: Folder for pictures.
        calibration: Compare the model's pLDDT with its lDDT.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `mps`.
        verbose: Send the whole log to the screen.
    """

    model: Path | None = None
    reference: Path | None = None
    pairs: Path | None = None
    match: str = AUTO
    min_identity: float = MIN_IDENTITY
    model_chain: str | None = None
    reference_chain: str | None = None
    whole_complex: bool = False
    by_chain: bool = False
    models: str = FIRST
    references: str = FIRST
    search: str = "tmscore"
    normalise: str | int = "reference"
    stereochemistry: bool = False
    json: str | None = None
    csv: str | None = None
    lddt_pdb: Path | None = None
    plot: Path | None = None
    calibration: bool = False
    device: str = "auto"
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.pairs is None and (self.model is None or self.reference is None):
            raise ConfigError("name a model and a reference (files or folders), or a table of pairs with --pairs")
        if self.pairs is not None and (self.model is not None or self.reference is not None):
            raise ConfigError("--pairs names the models and references itself: leave MODEL and REFERENCE out")
        _one_of("--match", self.match, WAYS)
        _one_of("--models", self.models, (FIRST, ALL))
        _one_of("--references", self.references, (FIRST, BEST, MEAN))
        _one_of("--search", self.search, ("tmscore", "irls"))
        if isinstance(self.normalise, str):
            _one_of("--normalise", self.normalise, ("reference", "model", "a number of residues"))
        elif self.normalise < 1:
            raise ConfigError(f"--normalise {self.normalise}: a number of residues is at least 1")
        if not 0 <= self.min_identity <= 1:
            raise ConfigError(f"--min-identity {self.min_identity:g}: an identity is between 0 and 1")
        if self.json == self.csv == STANDARD_OUTPUT:
            raise ConfigError("--json - and --csv - cannot share standard output: name a file for one of them")
        if self.json is not None and self.csv is not None and Path(self.json).resolve() == Path(self.csv).resolve():
            raise ConfigError(f"--json and --csv are both {self.json}: name a file for each")
        resolve_device(self.device)


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option} '{value}': use {', '.join(choices[:-1])} or {choices[-1]}")


@dataclass(frozen=True)
class EvaluationResult:
    """How an evaluation went.

    Attributes:
        n_scored: Rows with scores.
        n_failed: Rows with an error.
        n_unmatched: Files that have no partner of their name.
        summary_line: One line for the screen.
    """

    n_scored: int
    n_failed: int
    n_unmatched: int
    summary_line: str

    @property
    def exit_status(self) -> int:
        """0 if every pair was scored, else 1."""
        return 1 if self.n_failed else 0

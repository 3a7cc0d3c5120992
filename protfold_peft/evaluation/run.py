"""An evaluation from files to tables: pairs are read, scored in batches, and told row by row."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from protfold_peft.errors import ProtfoldError
from protfold_peft.evaluation.calibrate import Calibrator
from protfold_peft.evaluation.combine import Outcome, make_outcomes
from protfold_peft.evaluation.outputs import Names, write_coloured
from protfold_peft.evaluation.pairs import PairSet, pair_paths, read_pair_table
from protfold_peft.evaluation.plots import plot_pair
from protfold_peft.evaluation.reading import Reader, Task
from protfold_peft.evaluation.rows import Row, as_csv, as_json
from protfold_peft.evaluation.settings import STANDARD_OUTPUT, EvaluationResult, EvaluationSettings
from protfold_peft.evaluation.table import is_whole, mean, print_table
from protfold_peft.files import write_text
from protfold_peft.runtime import LOGGER, configure_logging, progress_bar, resolve_device
from protfold_peft.structure.source import short_name

# Matched pairs scored together: enough to fill batches of similar length, few enough to be held in memory.
_GROUP = 256
_GROUP_RESIDUES = 50_000
# Lines of one kind that go to the screen; the tables have all.
_MAX_SCREEN_LINES = 20


def run_evaluation(settings: EvaluationSettings) -> EvaluationResult:
    """Score all pairs and write what was asked for.

    Raises:
        ProtfoldError: Nothing could start (no such file, nothing to pair, no place to write), or an output could not be
            written. One pair's trouble never raises: its row has the error.
    """
    configure_logging(verbose=settings.verbose)
    pairs = _pairs(settings)
    _check_places(settings, pairs)
    try:
        run = _Run(settings, pairs)
        rows = run.rows()
        _write_tables(settings, rows)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise ProtfoldError(f"cannot write {error.filename or 'the results'}: {error.strerror or error}") from error
    _tell("no partner", pairs.unmatched)
    _tell("failed", [_told(row) for row in rows if row.error])
    return _result(rows, len(pairs.unmatched), run.calibrator.summary if run.calibrator is not None else "")


def _pairs(settings: EvaluationSettings) -> PairSet:
    chains = {"model_chain": settings.model_chain, "reference_chain": settings.reference_chain}
    if settings.model is not None and settings.reference is not None:
        return pair_paths(settings.model, settings.reference, **chains)
    if settings.pairs is None:
        raise ProtfoldError("there is nothing to score")  # the settings do not let this happen
    return read_pair_table(settings.pairs, **chains)


class _Run:
    """The pairs of a run, and what is drawn and written along the way."""

    def __init__(self, settings: EvaluationSettings, pairs: PairSet) -> None:
        self.settings = settings
        self.pairs = pairs.pairs
        self.device = resolve_device(settings.device)
        self.names = Names([short_name(pair.model) for pair in pairs.pairs])
        self.calibrator = Calibrator() if settings.calibration else None

    def rows(self) -> list[Row]:
        """All rows, in the order of the pairs."""
        rows: list[Row] = []
        with progress_bar("pairs") as progress:
            for tasks in self._groups(progress):
                for outcome in make_outcomes(tasks, self.settings, self.device):
                    rows += self._finish(outcome)
        if self.calibrator is not None and self.settings.plot is not None:
            self.calibrator.plot(self.settings.plot)
        return rows

    def _groups(self, progress: Progress) -> Iterator[list[Task]]:
        """Tasks by the group; the bar counts a pair of files when its rows are done."""
        bar = progress.add_task("scoring", total=len(self.pairs))
        reader = Reader(self.settings)
        group: list[Task] = []
        size = finished = 0
        for pair in self.pairs:
            finished += 1
            for task in reader.read(pair):
                group.append(task)
                size += sum(len(matched) for matched in (*task.matched, *task.parts))
                if len(group) >= _GROUP or size >= _GROUP_RESIDUES:
                    yield group
                    progress.advance(bar, finished)
                    group, size, finished = [], 0, 0
        if group:
            yield group
        progress.advance(bar, finished)

    def _finish(self, outcome: Outcome) -> list[Row]:
        """The rows of an outcome; its pictures and coloured model are written."""
        rows = list(outcome.rows)
        for note in rows[0].notes:
            LOGGER.info("%s: %s", _place(rows[0]), note)
        if outcome.shown is None:
            return rows
        if self.calibrator is not None:
            rows[0] = self.calibrator.judge(rows[0], outcome)
        settings = self.settings
        if settings.plot is None and settings.lddt_pdb is None:
            return rows
        task = outcome.task
        name = self.names.of(task.pair.model, task.pair.reference, task.model_number)
        shown = outcome.shown
        try:
            if settings.plot is not None:
                plot_pair(
                    settings.plot / f"{name}.png",
                    outcome.lddt_per_residue,
                    outcome.distances,
                    shown.chain_lengths,
                    title=_title(rows[0]),
                    plddt=outcome.plddt if rows[0].plddt is not None else None,
                )
            if settings.lddt_pdb is not None:
                write_coloured(shown, outcome.lddt_per_residue, settings.lddt_pdb, name)
        except ProtfoldError as error:
            rows[0] = replace(rows[0], error=str(error))
        return rows


def _title(row: Row) -> str:
    values = f"TM {row.tm_score:.3f}"
    if row.lddt_ca is not None:
        values += f", lDDT {row.lddt_ca:.3f}"
    number = "" if row.model_number is None else f" #{row.model_number}"
    return f"{Path(row.model).name}{number} against {Path(row.reference).name}: {values}"


def _check_places(settings: EvaluationSettings, pairs: PairSet) -> None:
    """See that outputs can be written, over no input, before anything is scored for nothing."""
    for folder in (settings.plot, settings.lddt_pdb):
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ProtfoldError(f"cannot make the folder {folder}: {error.strerror or error}") from error
            _writable(folder, folder)
    for file in (settings.json, settings.csv):
        if file is not None and file != STANDARD_OUTPUT:
            path = Path(file)
            if path.is_dir():
                raise ProtfoldError(f"{path} is a folder: name a file in it")
            _writable(_existing_parent(path), path)
            if path.exists() and path.resolve() in _inputs(settings, pairs):
                raise ProtfoldError(f"{path} is an input: name another file for the results")


def _inputs(settings: EvaluationSettings, pairs: PairSet) -> set[Path]:
    files = [file for pair in pairs.pairs for file in (pair.model, pair.reference)]
    return {file.resolve() for file in (*files, settings.pairs) if file is not None}


def _writable(folder: Path, wanted: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ProtfoldError(f"cannot write {wanted}: {folder} does not allow it")


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ProtfoldError(f"cannot write {path}: {parent} is a file")
    return parent


def _write_tables(settings: EvaluationSettings, rows: Sequence[Row]) -> None:
    for target, text in ((settings.json, as_json), (settings.csv, as_csv)):
        if target == STANDARD_OUTPUT:
            sys.stdout.write(text(rows))
            sys.stdout.flush()
        elif target is not None:
            write_text(target, text(rows))
    if STANDARD_OUTPUT not in (settings.json, settings.csv):
        print_table(rows)


def _result(rows: Sequence[Row], n_unmatched: int, calibration: str) -> EvaluationResult:
    scored = [row for row in rows if row.error is None and is_whole(row)]
    n_failed = sum(row.error is not None for row in rows)
    line = f"{len(scored)} scored, {n_failed} failed"
    if n_unmatched:
        line += f", {n_unmatched} files without a partner"
    tm = mean([row.tm_score for row in scored])
    if tm is not None and len(scored) > 1:
        line += f"; mean TM-score {tm:.4f}"
    if calibration:
        line += f"; {calibration}"
    return EvaluationResult(len(scored), n_failed, n_unmatched, line)


def _place(row: Row) -> str:
    return row.model if row.model_number is None else f"{row.model} model {row.model_number}"


def _told(row: Row) -> str:
    """The error of a row with the model's name, which an error of reading that file has already."""
    place, error = _place(row), row.error or ""
    return error if error.startswith(place) else f"{place}: {error}"


def _tell(kind: str, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        if number < _MAX_SCREEN_LINES:
            LOGGER.warning("%s: %s", kind, line)
    if len(lines) > _MAX_SCREEN_LINES:
        LOGGER.warning("%s: and %d more", kind, len(lines) - _MAX_SCREEN_LINES)

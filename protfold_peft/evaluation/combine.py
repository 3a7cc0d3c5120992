"""From scores to rows: one row for a pair, and for an ensemble of references the best or the mean over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from protfold_peft.errors import ProtfoldError
from protfold_peft.evaluation.interfaces import ComplexScores, score_complex
from protfold_peft.evaluation.matching import COMPLEX, Matched
from protfold_peft.evaluation.pairs import Pair
from protfold_peft.evaluation.reading import Task
from protfold_peft.evaluation.rows import Row, finite
from protfold_peft.evaluation.scoring import Scores, score_all
from protfold_peft.evaluation.settings import MEAN, EvaluationSettings
from protfold_peft.runtime import LOGGER

_SCORES = ("tm_score", "gdt_ts", "gdt_ha", "lddt_ca", "lddt", "rmsd_ca", "rmsd_heavy", "lddt_stereo")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a task.

    Attributes:
        task: What was to be scored.
        rows: The pair's row, then those of the chains of a complex.
        shown: The pair that pictures are drawn of, None after an error; of an ensemble the one with the best TM-score.
        lddt_per_residue: `(n,)` CA lDDT of `shown`, 0..1.
        distances: `(n,)` CA distances of `shown`, angstrom.
        plddt: `(n,)` B-factor of the model's CA, NaN where there is none.
    """

    task: Task
    rows: tuple[Row, ...]
    shown: Matched | None = None
    lddt_per_residue: np.ndarray = field(default_factory=lambda: np.empty(0))
    distances: np.ndarray = field(default_factory=lambda: np.empty(0))
    plddt: np.ndarray = field(default_factory=lambda: np.empty(0))


def make_outcomes(tasks: Sequence[Task], settings: EvaluationSettings, device: torch.device) -> Iterator[Outcome]:
    """Score all tasks together and tell each one's outcome, in order."""
    pairs = [matched for task in tasks for matched in (*task.matched, *task.parts)]
    scored = iter(
        score_all(
            pairs,
            search=settings.search,
            normalise=settings.normalise,
            device=device,
            stereochemistry=settings.stereochemistry,
        )
    )
    for task in tasks:
        whole = [next(scored) for _ in task.matched]
        parts = [next(scored) for _ in task.parts]
        yield _outcome(task, whole, parts, settings)


def _outcome(
    task: Task, whole: Sequence[Scores | Exception], parts: Sequence[Scores | Exception], settings: EvaluationSettings
) -> Outcome:
    """The rows of one pair, from the scores of every reference and chain."""
    error = task.error or next((_told(each) for each in whole if isinstance(each, Exception)), "")
    known = [each for each in whole if isinstance(each, Scores)]
    if error or not known:
        return Outcome(task, (_failed(task, error or "nothing to score"),))
    best = max(range(len(known)), key=lambda place: known[place].tm_score)
    shown = task.matched[best]
    if task.ensemble and settings.references == MEAN:
        row = _mean(task, known)
    else:
        row = _row(task, shown, known[best])
    part_rows = [
        _failed(task, _told(scores)) if isinstance(scores, Exception) else _row(task, part, scores)
        for part, scores in zip(task.parts, parts, strict=True)
    ]
    return Outcome(
        task, (row, *part_rows), shown, known[best].lddt_per_residue, known[best].distances, plddt=shown.plddt
    )


def _row(task: Task, pair: Matched, scores: Scores) -> Row:
    values: dict[str, Any] = {name: finite(getattr(scores, name)) for name in _SCORES} | scores.geometry
    if pair.level == COMPLEX:
        values |= _interface_values(score_complex(pair))
    if pair.reference.n_models > 1:
        values["reference_number"] = pair.reference.model
    return Row(**_files(task), **_description(pair), **values)


def _mean(task: Task, known: Sequence[Scores]) -> Row:
    """Means over the models of the reference; what describes the match is that of the first."""
    values: dict[str, Any] = {
        name: finite(float(np.mean([getattr(scores, name) for scores in known]))) for name in _SCORES
    } | known[0].geometry
    description = _description(task.matched[0])
    description["coverage"] = float(np.mean([_coverage(pair) for pair in task.matched]))
    description["notes"] = (*description["notes"], f"mean over {len(known)} models of the reference")
    if task.matched[0].level == COMPLEX:
        complexes = [score_complex(pair) for pair in task.matched]
        values["dockq"] = finite(float(np.mean([each.dockq for each in complexes])))
        values["qs_score"] = finite(float(np.mean([each.qs_score for each in complexes])))
    return Row(**_files(task), **description, **values)


def _files(task: Task) -> dict[str, Any]:
    return {**_paths(task.pair), "model_number": task.model_number}


def _paths(pair: Pair) -> dict[str, str]:
    """The files as text; empty where a table names none."""
    return {
        name: str(path) if path.parts else "" for name, path in (("model", pair.model), ("reference", pair.reference))
    }


def _description(pair: Matched) -> dict[str, Any]:
    chains = [f"{link.reference.id}:{'-' if link.model is None else link.model.id}" for link in pair.links]
    return {
        "level": pair.level,
        "chains": ",".join(chains),
        "coverage": _coverage(pair),
        "matched_by": pair.matched_by,
        "identity": finite(pair.identity),
        "n_reference": pair.n_reference,
        "n_model": pair.n_model,
        "n_matched": pair.n_matched,
        "notes": pair.notes,
    }


def _coverage(pair: Matched) -> float:
    return pair.n_matched / pair.n_reference


def _interface_values(scores: ComplexScores) -> dict[str, Any]:
    interfaces = tuple(
        {
            "chains": chains,
            "model_chains": partners,
            "dockq": finite(each.dockq),
            "fnat": each.fnat,
            "fnonnat": each.fnonnat,
            "irmsd": finite(each.irmsd),
            "lrmsd": finite(each.lrmsd),
            "n_contacts": each.n_contacts,
        }
        for chains, partners, each in scores.interfaces
    )
    return {"dockq": finite(scores.dockq), "qs_score": finite(scores.qs_score), "interfaces": interfaces}


def _failed(task: Task, error: str) -> Row:
    return Row(**_files(task), error=" ".join(error.split()))


def _told(error: Scores | Exception) -> str:
    """One line for an exception; what is not meant for users keeps its type, and its traceback in the log."""
    if isinstance(error, ProtfoldError):
        return str(error)
    LOGGER.debug("scoring failed", exc_info=error if isinstance(error, Exception) else None)
    return f"{type(error).__name__}: {error}"

"""Reading pairs into matched structures: models of files of several, ensembles of references, one failure each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from protfold_peft.errors import ProtfoldError
from protfold_peft.evaluation.matching import Matched, match_structures
from protfold_peft.evaluation.models import model_numbers
from protfold_peft.evaluation.pairs import Pair
from protfold_peft.evaluation.settings import ALL, FIRST, EvaluationSettings
from protfold_peft.runtime import LOGGER
from protfold_peft.structure import Structure, read_structure

# References kept: a folder of models is often scored against one.
_KEPT = 4


@dataclass(frozen=True)
class Task:
    """One row to be: a model against its reference, or against each model of a reference ensemble.

    Attributes:
        pair: The files.
        model_number: Model of a file of several, None of a file of one.
        ensemble: Whether the reference has several models that all take part.
        matched: One for every model of the reference that takes part; empty after an error.
        parts: Row by row the chains of the complex on their own, in the same order as `matched`.
        error: Why there is nothing to score.
    """

    pair: Pair
    model_number: int | None = None
    ensemble: bool = False
    matched: tuple[Matched, ...] = ()
    parts: tuple[Matched, ...] = field(default=())
    error: str = ""


class Reader:
    """Reads the pairs of a run; the last few references stay in memory."""

    def __init__(self, settings: EvaluationSettings) -> None:
        self.settings = settings
        self._references: OrderedDict[tuple[Path, str | None], list[Structure]] = OrderedDict()

    def read(self, pair: Pair) -> Iterator[Task]:
        """The rows of a pair of files; never raises for what is wrong with them."""
        if pair.error:
            yield Task(pair, error=pair.error)
            return
        try:
            references = self._ensemble(pair)
            first = read_structure(pair.model, chains=_wanted(pair.model_chain))
            numbers = model_numbers(first) if self.settings.models == ALL else [first.model]
        except Exception as error:
            yield Task(pair, error=_told(error))
            return
        for number in numbers:
            shown = number if first.n_models > 1 else None
            try:
                model = first
                if number != first.model:
                    model = read_structure(pair.model, model=number, chains=_wanted(pair.model_chain))
                yield self._task(pair, shown, model, references)
            except Exception as error:
                yield Task(pair, shown, error=_told(error))

    def _task(self, pair: Pair, number: int | None, model: Structure, references: list[Structure]) -> Task:
        settings = self.settings
        matched, parts = [], []
        for reference in references:
            whole, *chains = match_structures(
                model,
                reference,
                way=settings.match,
                min_identity=settings.min_identity,
                whole_complex=settings.whole_complex,
                by_chain=settings.by_chain and len(references) == 1,
            )
            matched.append(whole)
            parts += chains
        return Task(pair, number, len(references) > 1, tuple(matched), tuple(parts))

    def _ensemble(self, pair: Pair) -> list[Structure]:
        """The models of the reference that take part."""
        key = (pair.reference, pair.reference_chain)
        if key not in self._references:
            chains = _wanted(pair.reference_chain)
            first = read_structure(pair.reference, chains=chains)
            found = [first]
            if self.settings.references != FIRST:
                others = [number for number in model_numbers(first) if number != first.model]
                found += [read_structure(pair.reference, model=number, chains=chains) for number in others]
            self._references[key] = found
            if len(self._references) > _KEPT:
                self._references.popitem(last=False)
        self._references.move_to_end(key)
        return self._references[key]


def _told(error: Exception) -> str:
    """One line; whatever a pair of files provokes is that pair's trouble and not the run's."""
    if isinstance(error, ProtfoldError):
        return str(error)
    LOGGER.debug("a pair failed", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _wanted(chain: str | None) -> list[str] | None:
    return None if chain is None else [chain]

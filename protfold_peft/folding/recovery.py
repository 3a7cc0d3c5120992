"""Folding one batch so that no record is lost to another one's trouble.

Out of memory: the batch is halved down to single records, and a single record is folded again in smaller and smaller
chunks before it is given up. Any other trouble of a batch: its records are folded one by one, so that it stays with
the record that has it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from protfold_peft.errors import ProtfoldError
from protfold_peft.folding.batches import n_tokens
from protfold_peft.folding.markers import Failed
from protfold_peft.folding.types import Prediction, Record
from protfold_peft.runtime import LOGGER

if TYPE_CHECKING:
    from protfold_peft.folding.load import LoadedModel

PredictBatch = Callable[[Sequence[Record]], list[Prediction]]

# Rows of the pair representation that are worked on at once; each step halves the memory of the largest arrays.
CHUNK_SIZES = (128, 64, 32, 16, 8, 4)

_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
)


@dataclass(frozen=True, eq=False)
class Folded:
    """A prediction and the seconds it took; of a batch, its share by length."""

    prediction: Prediction
    seconds: float


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: torch tells it in several types and words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY_TEXTS)


class Folder:
    """Folds batches with one model and remembers which length needs which chunk size."""

    def __init__(self, model: LoadedModel, predict: PredictBatch) -> None:
        self.model = model
        self.predict = predict
        self._chunked: tuple[int, int] | None = None

    def fold(self, batch: Sequence[Record]) -> Iterator[Folded | Failed]:
        """Yield one outcome for every record of the batch, as soon as it is known."""
        if len(batch) == 1 and self._chunked is not None and n_tokens(batch[0]) >= self._chunked[0]:
            # A shorter record ran out of memory before: the whole at once would fail again, slowly.
            yield from self._fold_chunked(batch[0], CHUNK_SIZES[CHUNK_SIZES.index(self._chunked[1]) :])
            return
        outcome = self._attempt(batch)
        if not isinstance(outcome, Exception):
            yield from outcome
        elif is_out_of_memory(outcome):
            if len(batch) == 1:
                yield from self._fold_chunked(batch[0], CHUNK_SIZES)
            else:
                half = len(batch) // 2
                LOGGER.info("out of memory with %d records at once: trying %d", len(batch), half)
                yield from self.fold(batch[:half])
                yield from self.fold(batch[half:])
        elif len(batch) == 1:
            yield self._give_up(batch[0], outcome)
        else:
            LOGGER.info("a batch of %d records failed (%s): folding them one by one", len(batch), _one_line(outcome))
            for record in batch:
                yield from self.fold([record])

    def _attempt(self, batch: Sequence[Record]) -> list[Folded] | Exception:
        """One call of the model; the error instead of the results where it raised."""
        start = time.perf_counter()
        try:
            predictions = self.predict(batch)
        except Exception as error:
            # Only what the error says is kept: its traceback would hold the arrays that filled the memory.
            LOGGER.debug("batch of %s failed", [record.name for record in batch], exc_info=True)
            caught = error.with_traceback(None)
            caught.__context__ = caught.__cause__ = None
        else:
            per_residue = (time.perf_counter() - start) / sum(len(record) for record in batch)
            return [Folded(each, per_residue * len(each.record)) for each in predictions]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return caught

    def _fold_chunked(self, record: Record, sizes: Sequence[int]) -> Iterator[Folded | Failed]:
        """Fold a record that was too large with ever smaller chunk sizes."""
        usual = _chunk_size(self.model)
        sizes = [size for size in sizes if usual is None or size < usual]
        error: Exception = MemoryError("out of memory")
        try:
            for size in sizes:
                LOGGER.info("%s: out of memory; trying a chunk size of %d", record.name, size)
                self.model.set_chunk_size(size)
                outcome = self._attempt([record])
                if not isinstance(outcome, Exception):
                    self._chunked = (n_tokens(record), size)
                    yield from outcome
                    return
                error = outcome
                if not is_out_of_memory(error):
                    break
        finally:
            self.model.set_chunk_size(usual)
        yield self._give_up(record, error)

    def _give_up(self, record: Record, error: Exception) -> Failed:
        if is_out_of_memory(error):
            text = f"out of memory with {len(record)} residues, also in the smallest chunks"
        elif isinstance(error, ProtfoldError):
            text = _one_line(error)
        else:
            text = f"{type(error).__name__}: {_one_line(error)}"
        return Failed(record.name, len(record), text, 0.0)


def _chunk_size(model: LoadedModel) -> int | None:
    """The chunk size in force, None where the model chooses."""
    size: int | None = model.base.trunk.chunk_size
    return size


def _one_line(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."

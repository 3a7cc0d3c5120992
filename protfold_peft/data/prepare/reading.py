"""Reading all sources: from the cache where their files are as they were, else anew, in several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from protfold_peft.data.prepare.cache import ReadingCache, key_of
from protfold_peft.data.prepare.inputs import Source
from protfold_peft.data.prepare.parallel import each
from protfold_peft.data.prepare.records import Record, Rejection, read_source


@dataclass(frozen=True, eq=False)
class Reading:
    """What is known of a source.

    Attributes:
        source: What was to be read.
        results: Its chains before any filter, or why they are none.
        unchanged: It was in the cache.
    """

    source: Source
    results: list[Record | Rejection]
    unchanged: bool


def read_sources(sources: Sequence[Source], cache: ReadingCache, *, processes: int) -> Iterator[Reading]:
    """Every source in turn; what is read anew goes into the cache."""
    job = partial(_read, known=cache.keys())
    answers = each(job, sources, processes=processes, what="reading", unit="files")
    for source, (key, results) in zip(sources, answers, strict=True):
        cached = cache.get(key) if results is None and key is not None else None
        if cached is not None:
            yield Reading(source, cached, unchanged=True)
            continue
        if results is None:
            # The cache had it when the run began.
            results = read_source(source)
        if key is not None:
            cache.add(key, results)
        yield Reading(source, results, unchanged=False)


def _read(source: Source, known: frozenset[str]) -> tuple[str | None, list[Record | Rejection] | None]:
    """The source's key, None where it must not be kept, and what was read; None where the cache knows the key."""
    key = key_of(source)
    if key in known:
        return key, None
    results = read_source(source)
    # A file that changes while it is read would be kept under a key that is not its own.
    return (key if key == key_of(source) else None), results

"""A preparation from files to a dataset: read, filter, exclude, cluster, split, write."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from protfold_peft.data.prepare import split as splitting
from protfold_peft.data.prepare.again import asked_for, check_free
from protfold_peft.data.prepare.cache import ReadingCache, cache_folder
from protfold_peft.data.prepare.exclude import read_excluded
from protfold_peft.data.prepare.inputs import Source, find_sources
from protfold_peft.data.prepare.reading import read_sources
from protfold_peft.data.prepare.records import (
    DUPLICATE,
    EXCLUDED,
    REASONS,
    UNREADABLE,
    Record,
    Rejection,
    filtered,
)
from protfold_peft.data.prepare.result import PrepareResult, summary, warn
from protfold_peft.data.prepare.search import resolve_search, similar_pairs
from protfold_peft.data.prepare.sequences import NamedSequences
from protfold_peft.data.prepare.settings import PrepareSettings
from protfold_peft.data.prepare.store import REPORT, RecordWriter
from protfold_peft.data.prepare.tables import Row, row_of, write_chains, write_rejected
from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.files import replacing_folder
from protfold_peft.runtime import LOGGER, configure_logging
from protfold_peft.version import __version__

HISTORY = "run.json"
# A cluster with more of the chains than this is worth a word: likeness may have run from domain to domain.
_LARGE_CLUSTER = 0.5


def run_prepare(settings: PrepareSettings) -> PrepareResult:
    """Prepare a dataset and write it, whole or not at all.

    Raises:
        ProtfoldError: Nothing could start (no such file, a folder in use), no chain is left, or the dataset could not
            be written. A structure that cannot be read never raises: it is in the table of rejections.
    """
    start = time.monotonic()
    configure_logging(verbose=settings.verbose)
    check_free(settings)
    search = resolve_search(settings.search)
    given = NamedSequences(settings.structures)
    sources = given.give(find_sources(settings.structures))
    if not sources:
        raise ConfigError("only FASTA files are named: name the structures of these sequences too")
    excluded = read_excluded(settings.exclude, processes=settings.n_processes)
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        with replacing_folder(settings.out) as folder, ReadingCache(cache_folder(settings.out)) as cache:
            run = _Run(settings, search, folder)
            run.read(sources, cache, given)
            run.drop_duplicates()
            run.exclude([one.name for one in excluded], [one.sequence for one in excluded])
            run.cluster()
            run.write()
            report = run.report(len(sources), len(excluded), given)
            history = {
                "files_read": len(sources) - run.n_unchanged,
                "files_unchanged": run.n_unchanged,
                "processes": settings.n_processes,
                "seconds": round(time.monotonic() - start, 1),
            }
            for name, what in ((REPORT, report), (HISTORY, history)):
                (folder / name).write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")
            cache.tidy()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise ProtfoldError(f"cannot write {error.filename or settings.out}: {error.strerror or error}") from error
    finally:
        if shown:
            enable_progress_bar()
    warn(run.rejected, given.without)
    return PrepareResult(settings.out, report, history, summary(report, history, settings.out))


class _Run:
    """The chains of a run, from reading to writing."""

    def __init__(self, settings: PrepareSettings, search: str, folder: Path) -> None:
        self.settings = settings
        self.search = search
        self.folder = folder
        # `datasets` leaves files of its own beside a table that rows are picked from.
        self.working = folder / "working"
        self.working.mkdir()
        self.parsed = self.working / "parsed.arrow"
        self.rows: list[Row] = []
        self.rejected: list[Rejection] = []
        self.n_chains = self.n_unchanged = 0
        self.clusters = np.zeros(0, dtype=np.int64)
        self.validation = np.zeros(0, dtype=bool)

    def read(self, sources: Sequence[Source], cache: ReadingCache, given: NamedSequences) -> None:
        """Read all sources; what passes the filters goes to disk at once."""
        writer: RecordWriter | None = None
        taken: Counter[str] = Counter()
        for reading in read_sources(sources, cache, processes=self.settings.n_processes):
            self.n_unchanged += reading.unchanged
            given.see(reading.source, reading.results)
            for result in (filtered(result, self.settings.filters) for result in reading.results):
                self.n_chains += not (isinstance(result, Rejection) and result.reason == UNREADABLE)
                if isinstance(result, Rejection):
                    self.rejected.append(result)
                    continue
                # Made here: the processes are forked before Arrow has threads.
                writer = writer or RecordWriter(self.parsed)
                name = _free_name(result, taken)
                writer.write(result, name)
                self.rows.append(row_of(result, name, len(self.rows)))
        self.rejected += given.left()
        if writer is not None:
            writer.close()
        self._check_any()

    def drop_duplicates(self) -> None:
        """Of chains with one sequence keep the one with most resolved residues, best resolution, most atoms."""
        best: dict[str, Row] = {}
        for row in self.rows:
            if row.sequence not in best or row.rank < best[row.sequence].rank:
                best[row.sequence] = row
        self._keep(
            {row.place for row in best.values()},
            lambda row: row.rejected(DUPLICATE, f"the same sequence as {best[row.sequence].name}"),
        )

    def exclude(self, names: Sequence[str], sequences: Sequence[str]) -> None:
        """Leave out what resembles one of these sequences, with the likeness of lowest E-value as the reason."""
        if not sequences:
            return
        found: dict[int, str] = {}
        pairs = self._similar([row.sequence for row in self.rows], sequences, "comparing with what to exclude")
        for pair in sorted(pairs, key=lambda pair: (pair.match.evalue, -pair.match.identity, pair.target)):
            match = pair.match
            detail = (
                f"like {names[pair.target]}: identity {match.identity:.3f}, coverage {match.coverage:.3f}, "
                f"E {match.evalue:.2g}"
            )
            found.setdefault(self.rows[pair.query].place, detail)
        # The very same sequence needs no alignment; one too short for a word has none.
        same = dict(zip(sequences, names))
        for row in self.rows:
            if row.sequence in same:
                found.setdefault(row.place, f"the same sequence as {same[row.sequence]}")
        kept = {row.place for row in self.rows} - found.keys()
        self._keep(kept, lambda row: row.rejected(EXCLUDED, found[row.place]))
        self._check_any()

    def cluster(self) -> None:
        """Clusters by likeness, and which of them go to validation."""
        sequences = [row.sequence for row in self.rows]
        pairs = self._similar(sequences, None, "comparing chains")
        self.clusters = splitting.clusters(len(sequences), [(pair.query, pair.target) for pair in pairs])
        settings = self.settings
        self.validation = splitting.split(self.clusters, sequences, settings.validation, settings.seed)
        largest = int(np.bincount(self.clusters).max())
        if len(sequences) > 2 and largest > _LARGE_CLUSTER * len(sequences):
            LOGGER.warning("%d of %d chains are one cluster, which is never split", largest, len(sequences))
        if settings.validation > 0 and not self.validation.any():
            LOGGER.warning("all chains are one cluster: there is no validation split")

    def write(self) -> None:
        """The splits as Arrow tables, and the tables of chains and of rejections."""
        parsed = Dataset.from_file(str(self.parsed))
        sizes = np.bincount(self.clusters)
        splits = DatasetDict()
        for name, wanted in ((splitting.TRAIN, ~self.validation), (splitting.VALIDATION, self.validation)):
            chosen = np.flatnonzero(wanted)
            if len(chosen):
                part = parsed.select([self.rows[i].place for i in chosen])
                part = part.add_column("cluster", self.clusters[chosen])  # type: ignore[call-arg,unused-ignore]
                splits[name] = part.add_column("cluster_size", sizes[self.clusters[chosen]])  # type: ignore[call-arg,unused-ignore]
        splits.save_to_disk(str(self.folder))
        shutil.rmtree(self.working)
        write_chains(self.folder, self.rows, self.clusters, self.validation)
        write_rejected(self.folder, self.rejected)

    def report(self, n_sources: int, n_excluded: int, given: NamedSequences) -> dict[str, Any]:
        """What `report.json` holds."""
        counts = Counter(rejection.reason for rejection in self.rejected)
        sizes = np.bincount(self.clusters)
        lengths = [len(row.sequence) for row in self.rows]
        return {
            "version": __version__,
            "files": n_sources,
            "chains_read": self.n_chains,
            "rejected": {reason: counts[reason] for reason in REASONS if counts[reason]},
            "chains": len(self.rows),
            "train": int((~self.validation).sum()),
            "validation": int(self.validation.sum()),
            "clusters": len(sizes),
            "largest_cluster": int(sizes.max()),
            "residues": sum(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
            "undated": sum(row.date is None for row in self.rows),
            "without_resolution": sum(row.resolution is None for row in self.rows),
            "excluded_sequences": n_excluded,
            "sequences_given": len(given.records),
            "without_sequence": given.without,
            **asked_for(self.settings),
            "search": self.search,
        }

    def _similar(self, queries: Sequence[str], targets: Sequence[str] | None, what: str) -> list:
        settings = self.settings
        return similar_pairs(
            queries,
            targets,
            settings.likeness,
            search=self.search,
            processes=settings.n_processes,
            what=what,
        )

    def _keep(self, places: set[int], why: Any) -> None:
        self.rejected += [why(row) for row in self.rows if row.place not in places]
        self.rows = [row for row in self.rows if row.place in places]

    def _check_any(self) -> None:
        if self.rows:
            return
        counts = Counter(rejection.reason for rejection in self.rejected)
        told = ", ".join(f"{counts[reason]} {reason}" for reason in REASONS if counts[reason])
        first = self.rejected[0]
        raise ProtfoldError(f"no chain is left ({told}); the first: {first.name}: {first.detail}")


def _free_name(record: Record, taken: Counter[str]) -> str:
    """The record's name, or where another has it already, the name with the next free number."""
    name = record.chain.name
    while taken[name]:
        taken[record.chain.name] += 1
        name = f"{record.chain.name}~{taken[record.chain.name]}"
    taken[name] += 1
    return name

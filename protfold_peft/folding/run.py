"""A prediction run from inputs to summary: what is to be done, doing it batch by batch, and telling how it went."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress

from protfold_peft.errors import ProtfoldError
from protfold_peft.folding.batches import Batch, plan_batches, select_shard
from protfold_peft.folding.inputs import InputSet, Rejected, gather
from protfold_peft.folding.load import LoadedModel, load_model
from protfold_peft.folding.lock import writing_alone
from protfold_peft.folding.markers import (
    DONE_SUFFIX,
    PLOT_SUFFIXES,
    Done,
    Failed,
    read_done,
    remove_markers,
    remove_stale_temporaries,
    wanted_suffixes,
    why_unfinished,
)
from protfold_peft.folding.mini import UNTRAINED_WARNING
from protfold_peft.folding.outputs import redraw_plots
from protfold_peft.folding.predict import predict_batch
from protfold_peft.folding.quantize import halve_frozen_trunk
from protfold_peft.folding.recovery import Folded, Folder
from protfold_peft.folding.report import write_report
from protfold_peft.folding.settings import RunResult, RunSettings
from protfold_peft.folding.summary import PENDING, collect_rows, write_summary
from protfold_peft.folding.types import Record
from protfold_peft.folding.writing import Writers, WriteSettings, default_writers
from protfold_peft.runtime import LOGGER, configure_logging, progress_bar, seed_everything
from protfold_peft.version import __version__

# Lines of one kind that go to the screen; all of them go to the log.
_MAX_SCREEN_LINES = 20


def run_prediction(settings: RunSettings) -> RunResult:
    """Fold everything that is not finished yet, and bring summary and report up to date.

    Raises:
        ProtfoldError: Nothing could start (no readable input, no such model, no place to write), or writing became
            impossible on the way. One record's trouble never raises: it is in the result and in the summary.
    """
    inputs = gather(settings.inputs, max_length=settings.max_length)
    if not inputs.n_files:
        raise ProtfoldError("; ".join(each.error for each in inputs.rejected) or "no input given")
    _prepare_folder(settings.out)
    with writing_alone(settings.out, settings.tag):
        return _run(settings, inputs)


def _run(settings: RunSettings, inputs: InputSet) -> RunResult:
    configure_logging(settings.out / f"log{settings.tag}.txt", verbose=settings.verbose)
    LOGGER.info("protfold %s: %s", __version__, settings)
    _tell("note", inputs.notes)
    # Every shard reads the complete input; the first one speaks for what is wrong with it.
    rejected = () if settings.shard else inputs.rejected
    _tell("invalid", [each.error for each in rejected])

    batches = select_shard(
        plan_batches(inputs.records, settings.max_tokens_per_batch), settings.shard, settings.num_shards
    )
    mine = {record.name for batch in batches for record in batch}
    records = [record for record in inputs.records if record.name in mine]
    # Shards leave the common files alone: another one may be writing them at this moment.
    common = [] if settings.num_shards > 1 else ["report.html"]
    remove_stale_temporaries(settings.out, mine, extra=[f"summary{settings.tag}.csv", *common])

    folded = failed = skipped = 0
    if records:
        model = load_model(
            settings.model,
            adapter=settings.adapter,
            device=settings.device,
            dtype=settings.dtype,
            chunk_size=settings.chunk_size,
            cpu_offload=settings.cpu_offload,
        )
        if not settings.cpu_offload:
            halve_frozen_trunk(model.base)
        try:
            job = _Job(settings, model)
            pending = {record.name for record in job.unfinished(records)}
            skipped = len(records) - len(pending)
            for succeeded in job.fold([batch for batch in batches if any(r.name in pending for r in batch)], pending):
                folded += succeeded
                failed += not succeeded
        except KeyboardInterrupt:
            _write_tables(settings, inputs, records, rejected)
            raise
    _write_tables(settings, inputs, records, rejected)
    own = collect_rows(settings.out, records, rejected, others=False)
    return RunResult(folded, skipped, failed, len(rejected), settings.out, tuple(own))


class _Job:
    """One model, one folder, one set of settings."""

    def __init__(self, settings: RunSettings, model: LoadedModel) -> None:
        self.settings = settings
        self.model = model
        if model.untrained:
            LOGGER.warning("%s", UNTRAINED_WARNING)
        recycles = model.default_recycles if settings.recycles is None else settings.recycles
        self.key = {
            "model": model.id,
            "adapter": model.adapter_hash or "none",
            "recycles": str(recycles),
            "precision": model.precision,
        }
        LOGGER.info("model %s on %s", self.key, model.device)

    def unfinished(self, records: Sequence[Record]) -> list[Record]:
        """The records to fold, none of which has a marker from here on; missing plots of the others are drawn."""
        settings = self.settings
        pending, surprises = [], []
        for record in records:
            reason = "" if settings.overwrite else self._why_unfinished(record)
            if reason is None:
                continue
            pending.append(record)
            if reason:
                surprises.append(f"{record.name}: folded again: {reason}")
            # If the run ends before their turn, no table takes them for results of these settings.
            remove_markers(settings.out, record.name)
        _tell("note", surprises)
        return pending

    def _why_unfinished(self, record: Record) -> str | None:
        """As `markers.why_unfinished`."""
        settings = self.settings
        done = read_done(settings.out / f"{record.name}{DONE_SUFFIX}")
        needed = wanted_suffixes(settings.formats, plots=False)
        reason = why_unfinished(settings.out, record, done, self.key, needed)
        if reason is None and done is not None and settings.plots:
            try:
                redraw_plots(settings.out, done, PLOT_SUFFIXES)
            except (ValueError, KeyError, TypeError):
                return "its scores file is damaged"
        return reason

    def fold(self, batches: Sequence[Batch], pending: set[str]) -> Iterator[bool]:
        """Fold the batches whole, write the records that are pending, and yield for each of them if it succeeded."""
        folder = Folder(self.model, lambda batch: predict_batch(self.model, batch, recycles=self.settings.recycles))
        how = WriteSettings(self.settings.out, self.key, tuple(self.settings.formats), self.settings.plots)
        n_writers = self.settings.writers
        if n_writers is None:
            n_writers = default_writers(self.model.device, len(pending))
        with progress_bar("residues") as progress, _log_above(progress):
            task = progress.add_task("folding", total=sum(len(record) for batch in batches for record in batch))
            try:
                with Writers(how, n_writers) as writers:
                    for batch in batches:
                        LOGGER.info("batch: %s", ", ".join(f"{record.name} ({len(record)})" for record in batch))
                        seed_everything(self.settings.seed)
                        for outcome in folder.fold(batch):
                            name, length = _identity(outcome)
                            if name in pending:
                                yield from map(_succeeded, writers.put(outcome))
                            progress.advance(task, length)
                    yield from map(_succeeded, writers.finish())
            except OSError as error:
                raise _cannot_write(self.settings.out, error) from error


def _identity(outcome: Folded | Failed) -> tuple[str, int]:
    """Name and residues of a record."""
    if isinstance(outcome, Failed):
        return outcome.name, outcome.length
    return outcome.prediction.record.name, len(outcome.prediction.record)


def _succeeded(written: Done | Failed) -> bool:
    """Whether it is a result; the log is told."""
    if isinstance(written, Failed):
        LOGGER.warning("%s: failed: %s", written.name, written.error)
        return False
    LOGGER.info("%s: pLDDT %.1f, pTM %.3f, %.2f s", written.name, written.plddt, written.ptm, written.seconds)
    return True


def _write_tables(
    settings: RunSettings, inputs: InputSet, records: Sequence[Record], rejected: Sequence[Rejected]
) -> None:
    """The shard's table; and the table and report of the whole once every record of the input has an outcome."""
    folder = settings.out
    try:
        if settings.num_shards == 1:
            rows = collect_rows(folder, records, rejected)
        else:
            own = collect_rows(folder, records, rejected, others=False)
            write_summary(folder / f"summary{settings.tag}.csv", own)
            rows = collect_rows(folder, inputs.records, inputs.rejected, others=False)
            if any(row.status == PENDING for row in rows):
                return
        write_summary(folder / "summary.csv", rows)
        if settings.report:
            write_report(folder / "report.html", folder, rows)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _prepare_folder(folder: Path) -> None:
    """Make the folder and see that files can be written there, before a model is loaded for nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Has no name on most systems, so that a kill at this moment leaves nothing either.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> ProtfoldError:
    where = error.filename or folder
    return ProtfoldError(
        f"cannot write {where}: {error.strerror or error}; what is finished is kept, run again to go on"
    )


def _tell(kind: str, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        LOGGER.log(logging.WARNING if number < _MAX_SCREEN_LINES else logging.DEBUG, "%s: %s", kind, line)
    if len(lines) > _MAX_SCREEN_LINES:
        LOGGER.warning("%s: and %d more, in the log", kind, len(lines) - _MAX_SCREEN_LINES)


@contextmanager
def _log_above(progress: Progress) -> Iterator[None]:
    """Send the screen's log lines above the progress bar while it is drawn."""
    if progress.disable:
        yield
        return
    handlers = [handler for handler in LOGGER.handlers if type(handler) is logging.StreamHandler]
    earlier = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, earlier):
            if stream is not None:
                handler.setStream(stream)

"""What happens beside the optimization: the progress bar, the logs, bad gradients, the running mean, validation."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from protfold_peft.errors import NonFiniteError, ProtfoldError
from protfold_peft.files import write_text
from protfold_peft.runtime import LOGGER, peak_memory
from protfold_peft.training import weights
from protfold_peft.training.trainer import StructureTrainer


class ProgressCallback(TrainerCallback):
    """A bar of steps with loss, lDDT, samples per second, memory and an ETA; silent where stderr is no terminal."""

    def __init__(self, progress: Progress, samples_per_step: float, latest: Mapping[str, float]) -> None:
        self.progress = progress
        self.samples_per_step = samples_per_step
        self.latest = latest
        self.task: TaskID | None = None
        self._start = (0, 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar, at the step of a resumed run."""
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step)
        self._start = (state.global_step, time.monotonic())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar on."""
        assert self.task is not None
        self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show loss, lDDT, rate and memory."""
        if self.task is None or not logs or "loss" not in logs:
            return
        steps, seconds = state.global_step - self._start[0], time.monotonic() - self._start[1]
        words = [f"training, loss {logs['loss']:.4g}"]
        if "lddt_ca" in self.latest:
            words.append(f"lDDT {self.latest['lddt_ca']:.3f}")
        words.append(f"{steps * self.samples_per_step / max(seconds, 1e-9):.1f} samples/s")
        if memory := peak_memory(args.device):
            words.append(f"{memory / 2**30:.1f} GiB")
        self.progress.update(self.task, description=", ".join(words))


def cannot_be_written(path: Path, error: Exception) -> ProtfoldError:
    """A full disk, mostly: what is there already can be gone on from."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return ProtfoldError(f"{path} cannot be written: {reason}; free space and go on with --resume")


class CsvFile:
    """A table that grows by rows, written through at once so that a run can be watched.

    Args:
        path: The file. Rows of later steps than a resumed run starts from are removed by `rewind`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> list[dict[str, str]]:
        """Keep the rows up to this step, and return them; without any the file is removed."""
        rows = [row for row in read_rows(self.path) if int(row["step"]) <= step]
        if rows:
            lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
            write_text(self.path, "\n".join(lines) + "\n")
        else:
            self.path.unlink(missing_ok=True)
        return rows

    def append(self, row: Mapping[str, str]) -> None:
        """Add a row; the first one names the columns."""
        new = not self.path.exists()
        try:
            with self.path.open("a", encoding="utf-8", newline="") as handle:
                writer = csv.DictWriter(handle, list(row), lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise cannot_be_written(self.path, error) from error


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV file; none if it is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as handle:
        return [row for row in csv.DictReader(handle) if None not in row.values()]


class CsvLogCallback(TrainerCallback):
    """One row per logged step and one for the last: means since the last row, but the rate and the norm."""

    _FIRST = ("loss", "learning_rate", "grad_norm")

    def __init__(self, path: Path) -> None:
        self.file = CsvFile(path)
        self._start = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the rows up to the checkpoint of a resumed run, and go on from their seconds."""
        if state.is_world_process_zero:
            rows = self.file.rewind(state.global_step)
            self._start = time.monotonic() - (float(rows[-1]["seconds"]) if rows else 0.0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See to a row for the last step."""
        # The last step is logged whether or not it is a multiple of `log_every`.
        if state.global_step == state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a row."""
        # The Trainer logs once more at the end, about the whole run.
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        others = [name for name in logs if name not in {*self._FIRST, "epoch"}]
        self.file.append(
            {
                "step": str(state.global_step),
                **{name: f"{logs.get(name, math.nan):.7g}" for name in self._FIRST},
                "seconds": f"{time.monotonic() - self._start:.3f}",
                **{name: f"{logs[name]:.7g}" for name in others},
            }
        )


class BadGradientCallback(TrainerCallback):
    """Leaves the parameters alone where a gradient is NaN or infinite, and stops the run at too many of them.

    Raises:
        NonFiniteError: More than `limit` steps of the run were bad.
    """

    def __init__(self, trainer: StructureTrainer, limit: int) -> None:
        self.trainer = trainer
        self.limit = limit
        self.skipped = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the gradients away where one of them is not finite, so that the step changes nothing."""
        gradients = [p.grad for p in weights.trained(self.trainer.model).values() if p.grad is not None]
        # After the gradients of all processes were averaged: all of them come to the same result.
        norms = torch.stack([gradient.norm() for gradient in gradients]) if gradients else torch.zeros(1)
        self.skipped = not bool(norms.isfinite().all())
        if not self.skipped:
            return
        # An optimizer passes over parameters without a gradient, their momentum and decay too.
        self.trainer.model.zero_grad(set_to_none=True)
        self.trainer.bad_steps += 1
        step = state.global_step + 1
        if self.trainer.bad_steps > self.limit:
            raise NonFiniteError(
                f"the loss or its gradient was NaN or infinite in {self.trainer.bad_steps} steps, the last of them "
                f"step {step}: lower training.learning_rate, or use model.dtype=fp32; the checkpoints are kept"
            )
        LOGGER.warning("step %d was skipped: its loss or gradient is NaN or infinite", step)


class RunningMeanCallback(TrainerCallback):
    """Updates the trainer's running mean after every step that moved the parameters."""

    def __init__(self, trainer: StructureTrainer, bad: BadGradientCallback) -> None:
        self.trainer = trainer
        self.bad = bad

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the mean, unless the step was skipped."""
        if self.trainer.mean is not None and not self.bad.skipped:
            self.trainer.mean.update(self.trainer.model, state.global_step + 1)


class ValidationCallback(TrainerCallback):
    """Judges the model by real scores while it trains, keeps the best weights, and stops when it gets no better.

    Args:
        trainer: The run.
        judge: Mean scores of the model as it is; run by all processes.
        every: Steps between two evaluations.
        patience: Evaluations without a better CA lDDT before the run stops; None: it does not.
        best_file: Where the best weights go.
        table: Where the scores go, a row for every evaluation.
        latest: Given the newest scores, for the progress bar.
    """

    def __init__(
        self,
        trainer: StructureTrainer,
        judge: Callable[[], Mapping[str, float | None]],
        *,
        every: int,
        patience: int | None,
        best_file: Path,
        table: CsvFile,
        latest: dict[str, float],
    ) -> None:
        self.trainer = trainer
        self.judge = judge
        self.every = every
        self.patience = patience
        self.best_file = best_file
        self.table = table
        self.latest = latest
        self.best_score, self.best_step, self.since_best, self.last_step = -math.inf, 0, 0, 0
        trainer.watched["validation"] = (self._state, self._take)

    def _state(self) -> list[float]:
        """What a checkpoint keeps of the search for the best step."""
        return [self.best_score, self.best_step, self.since_best, self.last_step]

    def _take(self, state: list[float]) -> None:
        """Go on from what a checkpoint kept."""
        self.best_score = state[0]
        self.best_step, self.since_best, self.last_step = map(int, state[1:])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the rows up to the checkpoint of a resumed run."""
        if state.is_world_process_zero:
            self.table.rewind(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate where it is time, and stop the run where patience is at its end."""
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        # Logging clears the wish to log this step's loss.
        wish = control.should_log
        self.evaluate(state)
        control.should_log = wish
        if self.patience is not None and self.since_best >= self.patience:
            LOGGER.info("stopped at step %d: no better since step %d", state.global_step, self.best_step)
            control.should_training_stop = True
            control.should_save = self.trainer.config.training.checkpoint_every is not None

    def finish(self, state: TrainerState) -> None:
        """Evaluate the last step, if that was not done: a run may be resumed at its end."""
        if self.last_step != state.global_step:
            self.evaluate(state)

    def evaluate(self, state: TrainerState) -> None:
        """Judge the model as it is, and keep its weights if they are the best so far."""
        self.last_step = state.global_step
        with self.trainer.result_in_place():
            scores = self.judge()
            score = scores["lddt_ca"]
            better = score is not None and score > self.best_score
            if better and state.is_world_process_zero:
                try:
                    weights.save(self.best_file, weights.trained(self.trainer.model))
                except (OSError, SafetensorError) as error:
                    raise cannot_be_written(self.best_file, error) from error
        if better:
            assert score is not None
            self.best_score, self.best_step, self.since_best = score, state.global_step, 0
        else:
            self.since_best += 1
        defined = {name: value for name, value in scores.items() if value is not None}
        self.latest.update(defined)
        if state.is_world_process_zero:
            self.table.append(validation_row(state.global_step, scores))
        self.trainer.log({f"validation/{name}": value for name, value in defined.items()})


def validation_row(step: int, scores: Mapping[str, float | None]) -> dict[str, str]:
    """A row of `validation.csv`; empty where a score is undefined."""
    return {"step": str(step), **{name: "" if value is None else f"{value:.7g}" for name, value in scores.items()}}

"""What happens beside the optimization: the progress bar and the log."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any, TextIO

from rich.progress import Progress, TaskID
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressCallback(TrainerCallback):
    """A bar of steps with the last loss, a rate and an ETA; silent where standard error is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: TaskID | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.task = self.progress.add_task("training", total=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
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
        if self.task is not None and logs and "loss" in logs:
            self.progress.update(self.task, description=f"training, loss {logs['loss']:.4g}")


class CsvLogCallback(TrainerCallback):
    """One row per logged step and one for the last, written through at once so that a run can be watched.

    The loss is the mean since the last row; the terms, unweighted, are those of the step itself.

    Args:
        path: The file; what is there is replaced.
        terms: Filled by the trainer with the loss terms of each step.
    """

    columns = ("step", "loss", "learning_rate", "grad_norm", "seconds")

    def __init__(self, path: Path, terms: dict[str, float]) -> None:
        self.path = path
        self.terms = terms
        self._file: TextIO | None = None
        self._start = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
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
        # The Trainer logs once more at the end, about the whole run.
        if not logs or "loss" not in logs:
            return
        row: dict[str, int | str] = {
            "step": state.global_step,
            **{name: f"{logs[name]:.7g}" for name in ("loss", "learning_rate", "grad_norm") if name in logs},
            "seconds": f"{time.monotonic() - self._start:.3f}",
            **{name: f"{value:.7g}" for name, value in self.terms.items()},
        }
        first = self._file is None
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8", newline="")
        writer = csv.DictWriter(self._file, [*self.columns, *self.terms], lineterminator="\n")
        if first:
            writer.writeheader()
        writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Close the file; to be called however training ends."""
        if self._file is not None:
            self._file.close()
            self._file = None

"""What happens beside the optimization: the progress bar and the log."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from protfold_peft.errors import NonFiniteError
from protfold_peft.training import checkpoints

COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "validation", "seconds")


class ProgressCallback(TrainerCallback):
    """A bar of steps with the last loss, a rate and an ETA; silent where standard error is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: TaskID | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar, at the step of a resumed run."""
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar on."""
        if self.task is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show the loss."""
        if self.task is not None and logs and "loss" in logs:
            self.progress.update(self.task, description=f"training, loss {float(logs['loss']):.4g}")


class LogCallback(TrainerCallback):
    """One row per logged step and per evaluation, written through at once so that a run can be watched.

    Every checkpoint is marked when it is whole. The loss is the mean since the last row. A resumed run goes on behind
    the rows up to its checkpoint.

    Args:
        path: The file.
        metric: Of the evaluations, which goes into the column `validation`.
    """

    def __init__(self, path: Path, metric: str) -> None:
        self.path = path
        self.metric = metric
        self._start = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the table, with the rows up to the checkpoint of a resumed run."""
        self._start = time.monotonic()
        if not state.is_world_process_zero:
            return
        kept = []
        if state.global_step and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= state.global_step]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(kept)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See to a row for the last step."""
        # The last step is logged whether or not it is a multiple of `log_every`.
        if state.global_step == state.max_steps:
            control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as complete."""
        # Everything else of the checkpoint is on the disk by now; without the marker it is never resumed.
        if state.is_world_process_zero:
            checkpoints.mark_complete(self.path.parent / f"{checkpoints.PREFIX}{state.global_step}")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Write a row.

        Raises:
            NonFiniteError: The loss is NaN or infinite.
        """
        logs = logs or {}
        if "loss" in logs and not math.isfinite(float(logs["loss"])):
            raise NonFiniteError(
                f"the loss is not finite by step {state.global_step}: lower training.learning_rate, or use "
                "model.dtype=fp32; no adapter was saved"
            )
        names = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}
        names[f"eval_{self.metric}"] = "validation"
        row = {column: f"{float(logs[name]):.7g}" for name, column in names.items() if name in logs}
        # The Trainer logs once more at the end, about the whole run.
        if not row or not state.is_world_process_zero:
            return
        row |= {"step": str(state.global_step), "seconds": f"{time.monotonic() - self._start:.3f}"}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)

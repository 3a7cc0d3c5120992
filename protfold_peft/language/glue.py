"""The GLUE tasks: columns, classes and metrics of each, and the layouts that their files have.

Source: Wang et al., "GLUE", ICLR 2019. Files go about with and without a line of names; both are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protfold_peft.language.config import ClassifyConfig

HUB_NAME = "nyu-mll/glue"
# Column names of the tasks' first distribution.
ALIASES = {"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label", "score": "label"}


@dataclass(frozen=True)
class TextTask:
    """What is classified, and how it is judged.

    Attributes:
        text: Column of the text.
        text_pair: Column of a second text.
        label: Column of the class or value.
        labels: Names of the classes, their number, or None: those that the training records have.
        regression: The label is a number.
        metrics: Names in `metrics.METRICS`; the first chooses the best checkpoint.
        label_range: Least and largest value of a regression's label.
        layouts: Columns of files without a line of names, by their number.
    """

    text: str
    text_pair: str | None = None
    label: str = "label"
    labels: Sequence[str] | int | None = None
    regression: bool = False
    metrics: Sequence[str] = ("accuracy",)
    label_range: tuple[float, float] | None = None
    layouts: Mapping[int, Sequence[str]] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The columns that a record must have."""
        return [name for name in (self.text, self.text_pair, self.label) if name is not None]


PAIR = ("not_equivalent", "equivalent")
ENTAILMENT = ("entailment", "not_entailment")
TASKS: dict[str, TextTask] = {
    "cola": TextTask(
        "sentence",
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        layouts={4: ("source", "label", "mark", "sentence"), 2: ("sentence", "label")},
    ),
    "sst2": TextTask("sentence", labels=("negative", "positive"), layouts={2: ("sentence", "label")}),
    "mrpc": TextTask("sentence1", "sentence2", labels=PAIR, metrics=("accuracy", "f1")),
    "stsb": TextTask(
        "sentence1",
        "sentence2",
        regression=True,
        metrics=("pearson", "spearman"),
        label_range=(0.0, 5.0),
        layouts={3: ("sentence1", "sentence2", "label")},
    ),
    "qnli": TextTask("question", "sentence", labels=ENTAILMENT),
    "rte": TextTask("sentence1", "sentence2", labels=ENTAILMENT),
}


def text_task(config: ClassifyConfig) -> TextTask:
    """The task that a configuration describes, by a GLUE name or in its own words."""
    data = config.data
    if data.glue is not None:
        return TASKS[data.glue]
    regression = data.problem == "regression"
    return TextTask(
        data.text,
        data.text_pair,
        data.label,
        data.labels,
        regression,
        ("pearson", "spearman") if regression else ("accuracy", "matthews"),
        (data.label_range[0], data.label_range[-1]) if data.label_range else None,
    )

"""The methods under test and the rows of PEFT's test matrices that each of them gets. A new method is one line here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import protfold_peft


@dataclass(frozen=True)
class Method:
    """A configuration class of `protfold_peft`.

    Attributes:
        name: Of the class.
        options: What every configuration needs beside `target_modules`.
        strong: Options that make the update three times larger.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    strong: dict[str, Any] = field(default_factory=lambda: {"alpha": 24.0})

    @property
    def label(self) -> str:
        return self.name.removesuffix("Config")

    @property
    def config(self) -> Any:
        """The class."""
        return getattr(protfold_peft, self.name)


METHODS = [
    Method("LoRTAConfig"),
    Method("LoTRConfig"),
    Method("TensLoRAConfig", strong={"scale": 3.0}),
    Method("TeRAConfig", strong={"scale": 3.0}),
    Method("TensorTrainConfig"),
]

# Lists in the order of PEFT's test matrices: (name, model, class, options), class, (class, options), ...
CUSTOM_CASES = [
    (f"{title} {method.label}", model, method.config, options | method.options)
    for method in METHODS
    for title, model, options in (
        ("Vanilla MLP 1", "MLP", {"target_modules": "lin0"}),
        ("Vanilla MLP 2", "MLP", {"target_modules": ["lin0"]}),
        ("Vanilla MLP 3", "MLP", {"target_modules": ["lin1"]}),
        ("Vanilla MLP 4", "MLP", {"target_modules": ["lin0", "lin1"]}),
        ("Vanilla MLP 5", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
        ("Vanilla MLP 6", "MLP", {"target_modules": ["lin0"], "dropout": 0.1, "init": "rank_stable"}),
        # This model learns slowly, as PEFT's tests remark: a large update moves every factor in a few steps.
        ("transformers Conv1D", "EmbConv1D", {"target_modules": ["conv1d"]} | method.strong),
    )
]
CLASSES = [method.config for method in METHODS]
SINGLE_CONFIGS = [method.config(target_modules=["lin0"], init_weights=False, **method.options) for method in METHODS]
NAMED_CONFIGS = [
    (method.label, method.config(target_modules=["lin0"], init_weights=False, **method.options)) for method in METHODS
]
ACTIVE_TOGETHER = [
    (
        f"{method.label} {title}",
        "tensor",
        method.config,
        {"target_modules": ["lin0"], "init_weights": False} | method.options,
        {"target_modules": [other], "init_weights": False} | method.options,
    )
    for method in METHODS
    for title, other in (("Same", "lin0"), ("Different", "lin1"))
]


def transformer_configs(task_type: str | None = None) -> list[Any]:
    """Rows `(class, options)` for language models. The options name no modules: the defaults must do."""
    task = {} if task_type is None else {"task_type": task_type}
    return [(method.config, {"target_modules": None} | task | method.options) for method in METHODS]


def pairs(first: dict[str, Any], second: dict[str, Any]) -> list[Any]:
    """Rows `(name, configuration, configuration)` of two adapters in one batch: of one method, and of two."""
    rows = []
    for method, other in zip(METHODS, METHODS[1:] + METHODS[:1], strict=True):
        one, two, three = (
            which.config(**({"init_weights": False} | options | which.options))
            for which, options in ((method, first), (method, second), (other, second))
        )
        rows.append((method.label, one, two))
        rows.append((f"{method.label} with {other.label}", one, three))
    return rows

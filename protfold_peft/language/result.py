"""How a run went: what `results.json` holds, and the model card that tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protfold_peft.adapters.cards import card, method_name
from protfold_peft.adapters.named import FULL
from protfold_peft.language import output
from protfold_peft.language.config import RunConfig


@dataclass(frozen=True)
class RunResult:
    """How a run went; `results.json` holds the same, without `out`.

    Attributes:
        out: The adapter folder.
        task: classify, sft, dpo or mlm.
        metric: That the best checkpoint was chosen by.
        base: Scores of the validation records without the adapter; None without validation records. A classifier's
            head is untrained then; `majority` is the line to beat.
        adapted: The same with the adapter.
        labels: Classes of a classifier, in the order of its outputs.
        majority: Scores of always answering the most frequent class.
        trainable_parameters: Elements that were trained.
        head_parameters: Of these, outside the adapter: a classifier's head.
        steps: Optimizer steps.
        best_step: That the adapter is of; None: the last.
        final_loss: Mean training loss since the log's last row but one.
        train_records: Samples that were learnt from.
        skipped: Why records were left out, one line each, and at most a hundred lines.
        seconds: Of the whole run.
        peak_memory_bytes: Most memory in use: of the GPU's if there is one, else of the process; None if unknown.
        model: Name of the base model.
        method: Of the adapter.
        seed: Of the run.
        version: Of this program.
    """

    out: Path
    task: str
    metric: str
    base: Mapping[str, float | None] | None
    adapted: Mapping[str, float | None] | None
    labels: tuple[str, ...] | None
    majority: Mapping[str, float] | None
    trainable_parameters: int
    head_parameters: int
    steps: int
    best_step: int | None
    final_loss: float | None
    train_records: int
    skipped: tuple[str, ...]
    seconds: float
    peak_memory_bytes: int | None
    model: str
    method: str
    seed: int
    version: str


def model_card(config: RunConfig, result: RunResult) -> str:
    """A README for the folder, in the Hugging Face hub's format."""
    name = config.adapter.method
    title = f"{name} adapter of {result.model}" if name != FULL else f"{result.model}, trained further"
    source = config.data.train or f"GLUE {getattr(config.data, 'glue', '')}"
    trained = source if isinstance(source, str) else ", ".join(source)
    scores = {
        f"{metric}, validation": f"{_shown((result.base or {}).get(metric))} before, {_shown(value)} after"
        for metric, value in (result.adapted or {}).items()
    }
    facts: dict[str, object] = {
        "task": result.task,
        "method": method_name(name),
        "trained on": f"{trained} ({result.train_records:,} samples)",
        "trained parameters": f"{result.trainable_parameters:,} ({result.head_parameters:,} in a head)",
        "optimizer steps": f"{result.steps:,}" + (f", best at {result.best_step:,}" if result.best_step else ""),
        **scores,
    }
    loader = {"classify": "SequenceClassification", "mlm": "MaskedLM"}.get(result.task, "CausalLM")
    options = f", num_labels={len(result.labels or ('value',))}" if result.task == "classify" else ""
    place = '"path/of/this/folder"'
    code = (
        "import protfold_peft  # registers the method\n"
        "from peft import PeftModel\n"
        f"from transformers import AutoModelFor{loader}\n\n"
        f'base = AutoModelFor{loader}.from_pretrained("{result.model}"{options})\n'
        f"model = PeftModel.from_pretrained(base, {place})"
        if name != FULL
        else f"from transformers import AutoModelFor{loader}\n\nmodel = AutoModelFor{loader}.from_pretrained({place})"
    )
    text = [f"Every setting is in `{output.CONFIG}`, every logged step in `{output.METRICS}`."]
    return card(title, text, base=result.model, tags=["protfold-peft", name], facts=facts, code=code)


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"

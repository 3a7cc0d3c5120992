"""The runs of `benchmarks/language.py`: data and encoders are prepared once, then every cell is one run of a method.

A cell is a setting (part, method, budget) with a learning rate and a seed. It trains with `protfold_peft.language.run`,
is judged on held-out lines that serve to choose the rate, and then, with `evaluate`, on the test records.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from language_data import prepare_dpo, prepare_esm, prepare_glue, prepare_sft, prepare_text
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from protfold_peft.configuration import check
from protfold_peft.errors import NonFiniteError
from protfold_peft.files import replacing_folder
from protfold_peft.language import evaluate
from protfold_peft.language import run as run_task
from protfold_peft.language.config import CONFIGS

PARTS = ("sft", "dpo", "sst2", "cola", "esm")
METHODS = ("full", "peft_lora", "lorta", "lotr", "tenslora", "tera", "tensor_train")
# The score of each part, and whether more of it is better.
SCORES = {
    "sft": ("perplexity", False),
    "dpo": ("reward_accuracy", True),
    "sst2": ("accuracy", True),
    "cola": ("matthews", True),
    "esm": ("perplexity", False),
}
# What LoRA of ranks 1, 2 and 4 has in `sft`, 2 in `dpo`, and 1 in the others; the ranks at which the others have
# about as many parameters. TeRA has at most 2,240 in the first two: one vector for each whole axis.
BUDGETS = {"sft": (2_240, 4_480, 8_960), "dpo": (4_480,), "sst2": (4_096,), "cola": (4_096,), "esm": (3_072,)}
RANKS = {
    2_240: {"peft_lora": 1, "lorta": 24, "lotr": 6, "tensor_train": 7, "tera": 64},
    4_480: {"peft_lora": 2, "lorta": 48, "lotr": 10, "tensor_train": 11},
    8_960: {"peft_lora": 4, "lorta": 96, "lotr": 16, "tensor_train": 18},
    4_096: {"peft_lora": 1, "lorta": 24, "lotr": 10, "tensor_train": 12, "tera": 128},
    3_072: {"peft_lora": 1, "lorta": 23, "lotr": 9, "tensor_train": 11, "tera": 96},
}
# Where the search for a learning rate starts, as halves of a decade: -4 is 10 ** -2.
GUESSES = {"full": -6, "peft_lora": -3, "lorta": -3, "lotr": -4, "tenslora": -3, "tera": -2, "tensor_train": -4}
STEPS = {"sft": 150, "dpo": 40, "sst2": 200, "cola": 200, "esm": 60}
BATCH = {"sft": 4, "dpo": 8, "sst2": 16, "cola": 16, "esm": 8}
PRETRAINING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": (
        {"train": "text.txt", "max_length": 64, "mask_fraction": 0.3},
        {"steps": 1000, "batch_size": 32, "learning_rate": 2e-3},
    ),
    "esm": ({"train": "pretrain.fasta", "max_length": 300}, {"steps": 800, "batch_size": 8, "learning_rate": 1e-3}),
}
HEAD_RATE = 3e-3


@dataclass(frozen=True)
class Setting:
    """A method at a number of parameters; `budget` is 0 where all weights are trained."""

    part: str
    method: str
    budget: int

    @property
    def adapter(self) -> dict[str, Any]:
        """The group `adapter` of the configuration."""
        found: dict[str, Any] = {"method": self.method, "rank": RANKS.get(self.budget, {}).get(self.method)}
        if self.method in ("full", "peft_lora"):
            return found
        found["init"] = "rank_stable"
        if self.method == "tenslora":
            return found | {"rank": 8, "options": {"budget": self.budget}}
        if self.method == "tera":
            return found | {"options": {"axis_factors": 1}}
        return found | {"alpha": 8.0}


@dataclass(frozen=True)
class Cell:
    """One run: a setting, a learning rate as halves of a decade, and a seed."""

    setting: Setting
    place: int
    seed: int

    @property
    def rate(self) -> float:
        """The learning rate, to one digit."""
        return float(f"{10 ** (self.place / 2):.0e}")

    def file(self, out: Path) -> Path:
        """Where its row is."""
        own = self.setting
        return out / "cells" / f"{own.part}-{own.method}-{own.budget}-{self.rate:g}-{self.seed}.json"


def settings(parts: Sequence[str], methods: Sequence[str]) -> list[Setting]:
    """All that are asked for, LoRA before the others."""
    found = []
    for part in parts:
        for budget in BUDGETS[part]:
            found += [Setting(part, method, budget) for method in (*RANKS[budget], "tenslora")]
        if part == "dpo":
            found.append(Setting(part, "tera", BUDGETS["sft"][0]))
        found.append(Setting(part, "full", 0))
    return [setting for setting in found if setting.method in methods]


def run_cell(cell: Cell, out: Path, data: Path, scratch: Path) -> dict[str, Any]:
    """Train, and score on the lines for choosing and on the test records."""
    setting, start = cell.setting, time.process_time()
    score = SCORES[setting.part][0]
    row = {"part": setting.part, "method": setting.method, "budget": setting.budget, "rate": cell.rate}
    row |= {"seed": cell.seed, "rank": setting.adapter["rank"], "steps": STEPS[setting.part]}
    training = {"steps": STEPS[setting.part], "batch_size": BATCH[setting.part], "learning_rate": cell.rate}
    training |= {"seed": cell.seed, "keep_best": False}
    if setting.part in ("sst2", "cola") and setting.method != "full":
        training["head_learning_rate"] = HEAD_RATE
    model, records = inputs(setting.part, out, data)
    task = {"sst2": "classify", "cola": "classify", "esm": "mlm"}.get(setting.part, setting.part)
    try:
        found = run(
            task, scratch / "run", model={"name": str(model)}, adapter=setting.adapter, data=records, training=training
        )
    except NonFiniteError:
        return row | {"tune": None, "seconds": time.process_time() - start}
    tests = {"esm": "esm/test.fasta", "dpo": "dpo/test.jsonl", "sft": "sft/test.txt"}
    test = out / "data" / tests.get(setting.part, f"{setting.part}/test.tsv")
    scores = evaluate(scratch / "run", str(test))
    row |= {
        "parameters": found.trainable_parameters - found.head_parameters,
        "tune": found.adapted[score],
        # A classifier's head is untrained before, and of a model that is trained in full the first is gone.
        "before": (scores.majority or scores.base or {}).get(score),
        "after": scores.adapted[score],
        "scores": dict(scores.adapted),
        "base": dict(scores.base or {}),
    }
    if setting.part == "dpo" and setting.method != "full" and cell.seed:
        row["margin_by_hand"] = margin_by_hand(model, scratch / "run", test)
    return row | {"seconds": time.process_time() - start}


def inputs(part: str, out: Path, data: Path) -> tuple[Path, dict[str, Any]]:
    """The model, and the group `data` of the configuration, of a part."""
    own = out / "data" / part
    if part == "sft":
        records = {"train": "train.txt", "validation": "tune.txt", "separator": "||", "max_length": 400}
    elif part == "dpo":
        records = {"train": "train.jsonl", "validation": "tune.jsonl", "max_length": 400}
    elif part == "esm":
        records = {"train": "train.fasta", "validation": "tune.fasta", "max_length": 300, "too_long": "truncate"}
    else:
        records = {"glue": part, "train": "train.tsv", "validation": "tune.tsv"}
        records |= {"max_length": 64, "too_long": "truncate"}
    records = records | {name: str(own / records[name]) for name in ("train", "validation")}
    models = {"sft": data / "language/stories260K", "dpo": data / "language/stories260K"}
    models |= {"esm": out / "data/esm/encoder"}
    return models.get(part, out / "data/text/encoder"), records


def run(task: str, folder: Path, **groups: dict[str, Any]) -> Any:
    """One run of `protfold lm TASK --out FOLDER`."""
    groups["model"] = {"device": "cpu", **groups["model"]}
    groups["training"] = {"log_every": 50, "eval_every": 10**6, **groups["training"]}
    config = check(CONFIGS[task], {"task": task, "out": str(folder), **groups}, {}, "the benchmark")
    return run_task(config, overwrite=True)


def margin_by_hand(model: Path, adapter: Path, pairs: Path) -> float:
    """The mean of beta times (gain of the chosen minus gain of the rejected answer) over an untouched base model.

    With two models from their files, one pair at a time: neither TRL nor our code takes part.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()

    def likelihood(network: Any, prompt: list[int], answer: list[int]) -> float:
        tokens = torch.tensor([prompt + answer])
        surprise = network(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        return surprise.gather(1, tokens[0, 1:, None])[len(prompt) - 1 :].double().sum().item()

    total, count = 0.0, 0
    with torch.inference_mode():
        for line in pairs.read_text(encoding="utf-8").splitlines():
            pair = json.loads(line)
            prompt = tokenizer(pair["prompt"]).input_ids
            for name, sign in (("chosen", 1), ("rejected", -1)):
                answer = [*tokenizer(pair["prompt"] + pair[name]).input_ids[len(prompt) :], tokenizer.eos_token_id]
                total += sign * (likelihood(policy, prompt, answer) - likelihood(reference, prompt, answer))
            count += 1
    return 0.1 * total / count


def prepare(part: str, out: Path, data: Path) -> None:
    """Write the records of a part, and an untrained encoder, unless that is done."""
    makers = {"sft": prepare_sft, "dpo": prepare_dpo, "esm": prepare_esm, "text": prepare_text}
    folder = out / "data" / part
    if not folder.exists():
        with replacing_folder(folder) as partial:
            makers.get(part, prepare_glue)(part, partial, data)
    if part in ("sst2", "cola"):
        prepare("text", out, data)


def encoder_of(part: str) -> str | None:
    """The encoder that a part adapts; those of the story teller have none."""
    return {"sst2": "text", "cola": "text", "esm": "esm"}.get(part)


def has_encoder(kind: str, out: Path) -> bool:
    """Whether an encoder is trained already."""
    return (out / "data" / kind / "encoder").exists()


def pretrain(kind: str, out: Path) -> None:
    """`protfold lm mlm` on all weights of an encoder."""
    folder = out / "data" / kind
    data, training = PRETRAINING[kind]
    run(
        "mlm",
        folder / "encoder",
        model={"name": str(folder / "untrained")},
        adapter={"method": "full", "rank": None},
        data={"validation_fraction": 0.02, "too_long": "truncate", **data, "train": str(folder / data["train"])},
        training=training | {"keep_best": False},
    )

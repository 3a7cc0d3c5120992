"""The small real language model and the text it is taught: loading, training, perplexity.

The model, of 260,032 parameters, writes children's stories; the text, descriptions of restaurants made from tables, is
far from those. Its 512 tokens are mostly single letters, so a line has 165 tokens on average and 337 at most.

The learning rates in `RECIPES` come from `benchmarks/learning_rates.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

# Not a token: the loss does not count it.
IGNORED = -100
# Rank, init and learning rate with which every method learns well within 100 steps, and at three times the rate too.
RECIPES: dict[str, dict[str, Any]] = {
    "lorta": {"r": 8, "init": "authors", "learning_rate": 3e-2},
    "lotr": {"r": 8, "init": "rank_stable", "learning_rate": 1e-2},
    "tenslora": {"r": 4, "init": "authors", "learning_rate": 3e-2},
    "tera": {"r": 4, "init": "rank_stable", "learning_rate": 1e-1},
    "tensor_train": {"r": 8, "init": "authors", "learning_rate": 1e-2},
    "lora": {"r": 8, "init": "authors", "learning_rate": 1e-2},
}


def load_stories(data: Path) -> nn.Module:
    """The model, in evaluation mode; `data` is the folder `language` of the test data."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(data / "stories260K").eval()


def tokenize_lines(data: Path, part: str) -> list[Tensor]:
    """Every line of `e2e_<part>.txt` as tokens, with the mark of the beginning in front."""
    tokenizer = AutoTokenizer.from_pretrained(data / "stories260K")
    lines = (data / "instruct" / f"e2e_{part}.txt").read_text(encoding="utf-8").splitlines()
    return [torch.tensor(tokens) for tokens in tokenizer(lines).input_ids]


def split_by_table(data: Path, held_out: int) -> tuple[list[Tensor], list[Tensor]]:
    """The lines of `e2e_valid.txt`: those to train on, and `held_out` of those whose tables training never sees.

    A line is a table, `||`, and a sentence; several lines share a table.
    """
    text = (data / "instruct" / "e2e_valid.txt").read_text(encoding="utf-8").splitlines()
    tables = [line.partition("||")[0] for line in text]
    kept_out = set(sorted(set(tables))[::5])
    tokens = tokenize_lines(data, "valid")
    train = [line for line, table in zip(tokens, tables, strict=True) if table not in kept_out]
    rest = [line for line, table in zip(tokens, tables, strict=True) if table in kept_out]
    return train, spread(rest, held_out)


def spread(lines: Sequence[Tensor], count: int) -> list[Tensor]:
    """`count` of the lines, at equal distances."""
    return [lines[i * len(lines) // count] for i in range(min(count, len(lines)))]


def batch_of(lines: Sequence[Tensor]) -> dict[str, Tensor]:
    """`(b, t)` tokens and labels, padded on the right, where attention to earlier tokens alone cannot see it."""
    labels = nn.utils.rnn.pad_sequence(list(lines), batch_first=True, padding_value=IGNORED)
    return {"input_ids": labels.clamp(min=0), "labels": labels}


@torch.no_grad()
def perplexity(model: nn.Module, lines: Sequence[Tensor], batch: int = 16) -> float:
    """`exp` of the mean loss per predicted token, over all lines."""
    ordered = sorted(lines, key=len)
    total = 0.0
    model.eval()
    for start in range(0, len(ordered), batch):
        chunk = ordered[start : start + batch]
        loss = model(**batch_of(chunk)).loss
        total += loss.item() * sum(len(line) - 1 for line in chunk)
    return math.exp(min(total / sum(len(line) - 1 for line in ordered), 700.0))


def train(
    model: nn.Module,
    lines: Sequence[Tensor],
    *,
    learning_rate: float,
    steps: int,
    batch: int = 4,
    seed: int = 0,
    stop: Callable[[float], bool] = lambda loss: not math.isfinite(loss),
) -> list[float]:
    """Train what requires gradients, by AdamW without weight decay, gradients clipped to norm 1, the learning rate
    rising over the first twentieth of the steps and then falling to zero linearly.

    Args:
        model: Changed in place.
        lines: Drawn from at random.
        learning_rate: At its highest.
        steps: Of `batch` lines each.
        batch: Lines per step.
        seed: Of the order of lines.
        stop: Told each step's loss; true ends the training.

    Returns:
        The loss of every step, in nats.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up))
    )
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(lines), (batch,), generator=generator).tolist()
        loss = model(**batch_of([lines[i] for i in chosen])).loss
        losses.append(loss.item())
        if stop(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return losses


def adapt(data: Path, config: Any, seed: int = 0) -> nn.Module:
    """The model with a new adapter, drawn from `seed`."""
    from peft import get_peft_model

    model = load_stories(data)
    torch.manual_seed(seed)
    return get_peft_model(model, config)

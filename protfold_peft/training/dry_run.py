"""What a run would do, without doing it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from protfold_peft.adapters import describe_adapters
from protfold_peft.data import ChainFolder
from protfold_peft.runtime import peak_memory
from protfold_peft.training import weights
from protfold_peft.training.chains import read_run_chains
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.memory import fit_memory, take_budget
from protfold_peft.training.setup import load_base, make_trainable
from protfold_peft.training.trainer_setup import make_trainer, training_arguments


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        sites: Adapted modules, by group; empty where all weights are trained.
        trainable_parameters: Elements.
        model_parameters: Elements of the base model.
        train_chains: Chains that are learnt.
        judged_chains: Chains it is judged by.
        state_bytes: Weights, gradients and AdamW's two moments.
        peak_memory_bytes: Measured in one step on the longest crops, all of the process or GPU; None if unknown.
        step_seconds: Of that step.
        plan: What is computed twice so that the memory is enough, in one line; None: it is not limited.
        loss: Of that step.
    """

    sites: Mapping[str, tuple[str, ...]]
    trainable_parameters: int
    model_parameters: int
    train_chains: int
    judged_chains: int
    state_bytes: int
    peak_memory_bytes: int | None
    step_seconds: float
    loss: float
    plan: str | None


def dry_run(config: FinetuneConfig) -> DryRun:
    """Load everything and run one step, on the longest crops there are; nothing is kept.

    Raises:
        ProtfoldError: As `finetune`.
    """
    data = read_run_chains(config)
    with tempfile.TemporaryDirectory(prefix="protfold-") as folder:
        changes: dict[str, Any] = {
            "steps": 1,
            "checkpoint_every": None,
            "evaluate_every": None,
            "trackers": [],
            "log_every": 1,
        }
        once = config.model_copy(update={"training": config.training.model_copy(update=changes)})
        arguments = training_arguments(once, Path(folder))
        if arguments.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(arguments.device)
        take_budget(config, arguments.device)
        loaded = load_base(config, arguments.device)
        model_parameters = sum(parameter.numel() for parameter in loaded.base.parameters())
        weights_bytes = sum(p.numel() * p.element_size() for p in loaded.base.parameters())
        recycles = loaded.default_recycles if config.model.recycles is None else config.model.recycles
        model = make_trainable(loaded, config)
        own = weights.trained(model).values()
        sites: dict[str, tuple[str, ...]] = {}
        if config.mode != "full":
            (description,) = describe_adapters(model)
            sites = {group.name: group.sites for group in description.groups}
        longest = sorted(range(len(data.train.chains)), key=lambda place: -data.train.lengths[place])
        longest = longest[: config.training.batch_size]
        chains = [data.train.chains[place] for place in longest]
        train = ChainFolder(tuple(chains), (), tuple(map(len, chains)))
        trainer = make_trainer(model, once, train, arguments, recycles)
        plan = fit_memory(trainer, config, max(train.lengths))
        if arguments.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(arguments.device)
        begin = time.monotonic()
        trainer.train()
        return DryRun(
            sites=sites,
            trainable_parameters=sum(p.numel() for p in own),
            model_parameters=model_parameters,
            train_chains=len(data.train.chains),
            judged_chains=len(data.judged),
            state_bytes=weights_bytes + sum(p.numel() * (p.element_size() + 12) for p in own),
            peak_memory_bytes=peak_memory(arguments.device),
            step_seconds=time.monotonic() - begin,
            loss=next(row["loss"] for row in trainer.state.log_history if "loss" in row),
            plan=None if plan is None else plan.described,
        )

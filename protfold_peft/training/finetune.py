"""A fine-tuning run from beginning to end: structures in, an adapter folder out."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from protfold_peft.adapters import METHODS, DeadAdapterCallback
from protfold_peft.data import ChainFolder, CropDataset, TrainingChain, collate_crops, read_chains
from protfold_peft.errors import ConfigError
from protfold_peft.files import write_text
from protfold_peft.folding.load import LoadedModel, load_model
from protfold_peft.folding.mini import MINI_NAME
from protfold_peft.runtime import LOGGER, progress_bar, resolve_device, seed_everything
from protfold_peft.training import output
from protfold_peft.training.callbacks import CsvLogCallback, ProgressCallback
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.evaluate import ca_lddt, mean_score
from protfold_peft.training.trainer import StructureTrainer
from protfold_peft.version import __version__


@dataclass(frozen=True)
class FinetuneResult:
    """How a run went; `results.json` holds the same, without `out`.

    Attributes:
        out: The adapter folder.
        base: Mean CA lDDT, 0..1, of the training chains without the adapter; None if no chain has one.
        adapted: The same with the adapter.
        per_target: Chain -> `base` and `adapted` CA lDDT (None where undefined) and its `residues`.
        skipped: Why files and chains were left out, one line each.
        trainable_parameters: Elements that were trained.
        steps: Optimizer steps.
        final_loss: Mean loss since the log's last row but one.
        seconds: Of the whole run.
        peak_memory_bytes: Most memory in use: of the GPU's if there is one, else of the process; None if unknown.
        model: Name of the base model.
        untrained: Whether the base model's weights are random.
        seed: Of the run.
        version: Of this program.
    """

    out: Path
    base: float | None
    adapted: float | None
    per_target: Mapping[str, Mapping[str, float | int | None]]
    skipped: tuple[str, ...]
    trainable_parameters: int
    steps: int
    final_loss: float
    seconds: float
    peak_memory_bytes: int | None
    model: str
    untrained: bool
    seed: int
    version: str


def finetune(config: FinetuneConfig, *, overwrite: bool = False) -> FinetuneResult:
    """Train an adapter on a folder of structures and save it to `config.out`.

    The base model's weights stay as they are. The training chains are folded before and after, in one piece and in
    eval mode; what is reported is how well they were learnt, nothing about other proteins.

    Args:
        config: The run; `config.out` must be set.
        overwrite: Replace the results that `config.out` holds.

    Raises:
        ConfigError: A setting that cannot be, or an output folder that is in use.
        StructureError: No usable structure.
        CheckpointError: The model cannot be loaded.
        DeadAdapterError: The loss does not reach a part of the adapter.
        NonFiniteError: The loss, or a prediction, became NaN or infinite. No adapter is saved then.
    """
    start = time.monotonic()
    if config.out is None:
        raise ConfigError("no output folder: give --out, or the key 'out' in the configuration")
    device = _device(config.model.device)
    out = Path(config.out)
    output.check_free(out, overwrite=overwrite)
    precision = _precision(config.model.dtype, device)
    folder = read_chains(config.data.folder, min_length=config.data.min_length, max_length=config.data.max_length)
    for skipped in folder.skipped:
        LOGGER.log(logging.INFO if skipped.wanted else logging.WARNING, "skipped: %s", skipped.reason)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    loaded = load_model(config.model.name, device=config.model.device, dtype=precision)
    recycles = config.model.recycles
    before = _evaluate(loaded.network, folder.chains, recycles, "evaluating the base")
    model = _with_adapter(loaded, config)
    working = output.make_working_folder(out)
    final_loss = _train(model, folder, config, device, working)
    after = _evaluate(model, folder.chains, recycles, "evaluating the adapter")

    result = FinetuneResult(
        out=out,
        base=mean_score(before),
        adapted=mean_score(after),
        per_target={
            chain.name: {"base": _defined(b), "adapted": _defined(a), "residues": len(chain)}
            for chain, b, a in zip(folder.chains, before, after)
        },
        skipped=tuple(skipped.reason for skipped in folder.skipped),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        steps=config.training.steps,
        final_loss=final_loss,
        seconds=time.monotonic() - start,
        peak_memory_bytes=_peak_memory(device),
        model=config.model.name or MINI_NAME,
        untrained=loaded.untrained,
        seed=config.training.seed,
        version=__version__,
    )
    _save(model, config, result, working)
    output.publish(working, out)
    return result


def _device(name: str) -> torch.device:
    """The device, which must be one that the Trainer can be told to use."""
    device = resolve_device(name)
    if device.index:
        raise ConfigError(f"model.device={name}: training takes the first GPU; choose it with CUDA_VISIBLE_DEVICES")
    return device


def _precision(dtype: str, device: torch.device) -> str:
    """What `auto` means here: prediction has the language model in fp16 on a GPU, which cannot be trained."""
    if dtype == "auto":
        return "bf16/fp32" if device.type == "cuda" else "fp32"
    if "fp16" in dtype.split("/"):
        raise ConfigError(f"model.dtype={dtype}: fp16 gradients overflow; use bf16 or fp32")
    return dtype


def _with_adapter(loaded: LoadedModel, config: FinetuneConfig) -> nn.Module:
    """The model with a fresh adapter, the only part of it that is trained."""
    settings = config.adapter
    seed_everything(config.training.seed)
    face = METHODS[settings.method]
    options: dict[str, Any] = dict(settings.options)
    if "alpha" in {field.name for field in fields(face)}:
        options |= {"alpha": settings.alpha or float(settings.rank)}
    elif settings.alpha is not None:
        raise ConfigError(f"adapter.alpha: {settings.method} has none; set adapter.options.scale instead")
    if clash := sorted({"r", "network", "layout", "target_modules", "dropout", "init"} & set(settings.options)):
        raise ConfigError(f"adapter.options.{clash[0]}: set it as a key of adapter itself")
    adapter = face(
        r=settings.rank,
        init=settings.init,
        target_modules=list(settings.target_modules),
        dropout=settings.dropout,
        **options,
    )
    with warnings.catch_warnings():
        # PEFT asks transformers under a name that is on its way out.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model = peft.get_peft_model(loaded.network, adapter)
    if config.model.gradient_checkpointing:
        # Named anew in transformers 5.23. Not re-entrant: the other kind needs inputs that ask for gradients.
        base = loaded.base
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.peft_config["default"].base_model_name_or_path = config.model.name or MINI_NAME
    return model


def _train(model: nn.Module, folder: ChainFolder, config: FinetuneConfig, device: torch.device, working: Path) -> float:
    """Train in place; the last logged loss."""
    training = config.training
    dataset = CropDataset(
        folder.chains,
        crop_size=config.data.crop_size,
        batch_size=training.batch_size,
        steps=training.steps,
        seed=training.seed,
        clamped_fraction=config.loss.clamped_fraction,
    )
    trainer = StructureTrainer(
        config,
        model=model,
        args=_arguments(config, device, working),
        train_dataset=dataset,
        data_collator=collate_crops,
    )
    trainer.remove_callback(PrinterCallback)
    log = CsvLogCallback(working / output.METRICS, trainer.last_terms)
    with progress_bar("steps") as progress:
        callbacks: list[TrainerCallback] = [log, ProgressCallback(progress)]
        if training.dead_adapter_check:
            callbacks.append(DeadAdapterCallback(model))
        for callback in callbacks:
            trainer.add_callback(callback)
        try:
            trainer.train()
        finally:
            log.close()
    return next(row["loss"] for row in reversed(trainer.state.log_history) if "loss" in row)


def _arguments(config: FinetuneConfig, device: torch.device, working: Path) -> TrainingArguments:
    training = config.training
    schedule = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    arguments = TrainingArguments(
        output_dir=str(working),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        logging_steps=training.log_every,
        # A NaN is an error here, not something to leave out of the mean.
        logging_nan_inf_filter=False,
        seed=training.seed,
        # The data set is in the order of the run already.
        train_sampling_strategy="sequential",
        dataloader_num_workers=config.data.workers,
        # The batch holds what the losses need, which the model's forward pass does not take.
        remove_unused_columns=False,
        use_cpu=device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # With several GPUs the Trainer would wrap the model in DataParallel, which multiplies the batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _evaluate(network: nn.Module, chains: tuple[TrainingChain, ...], recycles: int, what: str) -> list[float]:
    with progress_bar("chains") as progress:
        return list(progress.track(ca_lddt(network, chains, recycles), total=len(chains), description=what))


def _save(model: Any, config: FinetuneConfig, result: FinetuneResult, working: Path) -> None:
    # "auto" would ask the hub about the base model's vocabulary.
    model.save_pretrained(str(working), save_embedding_layers=False)
    # safetensors makes its file for the user alone.
    (working / output.ADAPTER_WEIGHTS).chmod((working / output.ADAPTER_CONFIG).stat().st_mode)
    card = output.model_card(config, result.model, untrained=result.untrained, scores=(result.base, result.adapted))
    write_text(working / output.CARD, card)
    write_text(working / output.CONFIG, output.config_yaml(config))
    content = {key: value for key, value in asdict(result).items() if key != "out"}
    write_text(working / output.RESULTS, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _defined(score: float) -> float | None:
    return None if math.isnan(score) else score


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

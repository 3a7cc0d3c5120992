"""One cell of a comparison from beginning to end: train, unless that is done; fold the targets; keep the scores.

The base model's predictions of the validation chains are made once, by cell 0, and lent to every training that starts
afterwards.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import time
import traceback
from pathlib import Path
from typing import Any

import yaml

from protfold_peft.comparison.cells import BASE, TUNE, Cell, training_config
from protfold_peft.comparison.config import FULL
from protfold_peft.comparison.leakage import fingerprint
from protfold_peft.comparison.rates import chosen_rate
from protfold_peft.comparison.scoring import judge
from protfold_peft.comparison.workplace import CELLS, FREE, MODELS, Workplace, cell_fingerprint
from protfold_peft.configuration import check
from protfold_peft.errors import ConfigError
from protfold_peft.files import write_text
from protfold_peft.folding.load import load_model
from protfold_peft.runtime import LOGGER, peak_memory, reset_peak_memory, resolve_device, seed_everything
from protfold_peft.training import finetune, output, predictions
from protfold_peft.training.callbacks import read_rows
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.evaluate import fold_chains
from protfold_peft.training.setup import load_base, precision


def run_cell(place: Workplace, cell: Cell, *, judge: bool = True) -> None:
    """Do a cell; what goes wrong is kept in its file and raised.

    Args:
        place: Where.
        cell: Which.
        judge: Fold and score the targets too; without, a cell that has to is not done afterwards, but trained.

    Raises:
        ProtfoldError: Of the training or of the judgement.
    """
    # Without its learning rate a cell cannot start, which is no failure of its own.
    rate = None if cell.arm is None else cell.learning_rate or chosen_rate(place, cell.arm)
    # The process may have done other cells before.
    seed_everything(cell.seed)
    reset_peak_memory(resolve_device(place.config.finetune.model.device))
    try:
        if not judge and cell.kind != TUNE:
            _prepare(place, cell, rate)
            return
        content = _run(place, cell, rate)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        write_text(place.failure_file(cell), f"{reason}\n\n{traceback.format_exc()}")
        raise
    write_text(place.scores_file(cell), json.dumps(content, allow_nan=False) + "\n")
    place.failure_file(cell).unlink(missing_ok=True)


def _run(place: Workplace, cell: Cell, rate: float | None) -> dict[str, Any]:
    """Do a cell, and give what its file is to hold."""
    content: dict[str, Any] = {"cell": _described(cell, rate), "of": cell_fingerprint(place, cell, rate)}
    folder = _prepare(place, cell, rate)
    if folder is None:
        rows, facts = _judged(place, cell, None)
        return {**content, "facts": facts, "rows": rows}
    facts = _facts_of_training(folder)
    if cell.kind == TUNE:
        return {**content, "facts": facts}
    rows, own = _judged(place, cell, folder)
    return {**content, "facts": {**facts, **own}, "rows": rows}


def _prepare(place: Workplace, cell: Cell, rate: float | None) -> Path | None:
    """All of a cell but the targets: its training, in the folder given back; of the base the validation chains."""
    if cell.arm is None or rate is None:
        _fold_validation(place)
        return None
    folder = place.training_folder(cell.arm, rate, cell.seed)
    _train(place, folder, training_config(place.config, cell.arm, rate, cell.seed, str(folder)))
    return folder


def _described(cell: Cell, rate: float | None) -> dict[str, Any]:
    return {
        "name": cell.name,
        "kind": cell.kind,
        "method": BASE if cell.arm is None else cell.arm.method,
        "rank": None if cell.arm is None else cell.arm.rank,
        "seed": None if cell.arm is None else cell.seed,
        "learning_rate": rate,
    }


def _train(place: Workplace, folder: Path, config: FinetuneConfig) -> None:
    """Train, going on from where an earlier try was stopped; nothing to do where it was finished.

    Raises:
        ConfigError: The folder holds the result of other settings.
    """
    if (folder / output.RESULTS).is_file():
        before = check(
            FinetuneConfig,
            yaml.safe_load((folder / output.CONFIG).read_text(encoding="utf-8")),
            {},
            str(folder / output.CONFIG),
        )
        changed = _changed(before.model_dump(), config.model_dump())
        if changed:
            raise ConfigError(
                f"{folder} was trained with other settings ({changed}): take another --out, or remove that folder"
            )
        return
    LOGGER.info("training %s", folder.name)
    lent = base_file(place.out, config)
    if lent.is_file() and not output.working_folder(folder).exists():
        shutil.copyfile(lent, output.make_working_folder(folder, config) / output.BASE)
    # The comparison has a report of its own.
    finetune(config, resume=True, chains=place.chains, report=False)


def base_file(out: Path, config: FinetuneConfig) -> Path:
    """Where the base model's predictions of a training's validation chains are, for this model and these chains."""
    chains = {name: getattr(config.data, name) for name in ("folder", "table", "where", "min_length", "max_length")}
    others = [source.model_dump() if source else None for source in (config.data.validation, config.data.outside)]
    model = config.model.model_dump(exclude={"device"})
    return out / CELLS / f"{BASE}_validation_{fingerprint([chains, others, model])}.safetensors"


def _fold_validation(place: Workplace) -> None:
    """Fold the validation chains with the base model, as every training would."""
    config = place.config.finetune
    file = base_file(place.out, config)
    if file.is_file():
        return
    model = load_base(config, resolve_device(config.model.device))
    chains = place.chains
    recycles = model.default_recycles if config.model.recycles is None else config.model.recycles
    predictions.save(file, list(fold_chains(model.network, [*chains.judged, *chains.outside], recycles)))


def _changed(old: dict[str, Any], new: dict[str, Any], prefix: tuple[str, ...] = ()) -> str:
    """The first setting that differs, dotted; empty if none does."""
    for name in {**old, **new}:
        key = (*prefix, name)
        a, b = old.get(name), new.get(name)
        if key in FREE:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            if found := _changed(a, b, key):
                return found
        elif a != b:
            return f"{'.'.join(key)} was {a!r} and is {b!r}"
    return ""


def _facts_of_training(folder: Path) -> dict[str, Any]:
    """What a training's own files say of its cost and its validation."""
    results = json.loads((folder / output.RESULTS).read_text(encoding="utf-8"))
    weights = next(
        folder / name for name in (output.ADAPTER_WEIGHTS, output.MODEL_WEIGHTS) if (folder / name).is_file()
    )
    return {
        "parameters": results["trainable_parameters"],
        "file_bytes": weights.stat().st_size,
        "step_seconds": step_seconds(folder / output.METRICS),
        "peak_memory_bytes": results["peak_memory_bytes"],
        "train_seconds": results["seconds"],
        "steps": results["steps"],
        "validation": results["adapted"],
        "validation_base": results["base"],
        "judged_on": results["judged_on"],
    }


def step_seconds(metrics: Path) -> float | None:
    """The median time of a step, from the log's rows; None for fewer than two rows."""
    rows = [(float(row["step"]), float(row["seconds"])) for row in read_rows(metrics)]
    times = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(rows) if b[0] > a[0] and b[1] > a[1]]
    return statistics.median(times) if times else None


def _judged(place: Workplace, cell: Cell, folder: Path | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The scores of all targets, folded with the base model (`folder` None) or the result of a training."""
    start = time.monotonic()
    settings = place.config.finetune.model
    full = cell.arm is not None and place.config.methods[cell.arm.method].method == FULL
    device = resolve_device(settings.device)
    model = load_model(
        folder if full else settings.name,
        adapter=None if full else folder,
        device=str(device),
        dtype=precision(settings.dtype, device),
        quantize=None if full else settings.quantize,
    )
    models = place.out / MODELS / cell.name
    shutil.rmtree(models, ignore_errors=True)
    rows = judge(model, place.targets, settings.recycles, models)
    facts: dict[str, Any] = {"judge_seconds": time.monotonic() - start}
    if folder is None:
        facts |= {"parameters": 0, "file_bytes": 0, "peak_memory_bytes": peak_memory(device), "model": model.id}
    return rows, facts

"""A tensor adapter as a plain LoRA adapter, for PEFT without this package, vLLM, and whatever else reads LoRA.

The matrices are those of `pairs`; here they become the weights, the configuration and the card of PEFT's LoRA.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from torch import Tensor

from protfold_peft.adapters.cards import card, method_name
from protfold_peft.adapters.folders.pairs import ModulePair, module_pairs
from protfold_peft.adapters.folders.saved import (
    MODULES,
    SavedAdapter,
    check_output,
    new_folder,
    read_adapter,
    write_adapter,
)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        modules: Number of adapted modules.
        rank: The largest of their ranks.
        parameters: Of the LoRA matrices.
        residual: `||dW - B A|| / ||dW||`, Frobenius norms over all modules; 0 where nothing was cut.
        worst_residual: The largest of one module.
        worst_module: Its path; None where nothing was cut.
        modules_to_save: Names of the modules that the adapter holds in full.
    """

    modules: int
    rank: int
    parameters: int
    residual: float
    worst_residual: float
    worst_module: str | None
    modules_to_save: tuple[str, ...]


def export_lora(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write the LoRA adapter that a tensor adapter is equal to.

    Args:
        folder: Of the tensor adapter.
        out: Where the LoRA adapter goes.
        rank: Largest rank of a module. None: the rank that the update has, where that is small (not for TeRA).
        overwrite: Replace the adapter in `out`.

    Raises:
        ConfigError: `out` is not free, or TeRA without a rank.
        CheckpointError: `folder` is no sound tensor adapter.
        NonFiniteError: A factor holds NaN or infinity.
    """
    out = Path(out)
    check_output(out, inputs=(Path(folder),), overwrite=overwrite)
    adapter = read_adapter(folder)
    dtype = next(iter(adapter.networks.values())).dtype
    pairs = list(module_pairs(adapter, rank))
    tensors: dict[str, Tensor] = dict(adapter.modules)
    for pair in pairs:
        tensors[f"{MODULES}{pair.path}.lora_A.weight"] = pair.down.to(dtype)
        tensors[f"{MODULES}{pair.path}.lora_B.weight"] = pair.up.to(dtype)
    report = _report(pairs, adapter)
    with new_folder(out, inputs=(Path(folder),), overwrite=overwrite) as temporary:
        write_adapter(temporary, lora_config(adapter, pairs), tensors, _card(adapter, report))
    return report


def lora_config(adapter: SavedAdapter, pairs: Sequence[ModulePair]) -> LoraConfig:
    """The configuration under which PEFT's LoRA with these matrices does what the adapter does; its scale is 1."""
    config = adapter.config
    ranks = {pair.path: pair.rank for pair in pairs}
    largest = max(ranks.values())
    pattern = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != largest}
    lora = LoraConfig(
        r=largest,
        lora_alpha=largest,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=_targets([pair.path for pair in pairs], config.layout or {}),
        lora_dropout=config.dropout,
        # PEFT decides for each module by its kind, and says so where that differs from what is written here.
        fan_in_fan_out=pairs[0].transposed,
        bias=config.bias if config.bias in ("none", "all") else "lora_only",
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )
    lora.auto_mapping = config.auto_mapping
    return lora


def _targets(paths: list[str], layout: dict[str, object]) -> list[str] | str:
    """Whole paths. PEFT also takes a path for the end of longer ones: where the model is not known, and such may exist,
    one regular expression names these and no others."""
    if layout.get("architecture") is not None:
        return paths
    return "|".join(re.escape(path) for path in paths)


def _report(pairs: Sequence[ModulePair], adapter: SavedAdapter) -> ExportReport:
    norm = math.hypot(*(pair.norm for pair in pairs))
    lost = math.hypot(*(pair.lost for pair in pairs))
    worst = max(pairs, key=lambda pair: pair.lost / pair.norm if pair.norm else 0.0)
    return ExportReport(
        modules=len(pairs),
        rank=max(pair.rank for pair in pairs),
        parameters=sum(pair.down.numel() + pair.up.numel() for pair in pairs),
        residual=lost / norm if norm else 0.0,
        worst_residual=worst.lost / worst.norm if worst.norm else 0.0,
        worst_module=worst.path if worst.lost else None,
        modules_to_save=tuple(adapter.config.modules_to_save or ()),
    )


def _card(adapter: SavedAdapter, report: ExportReport) -> str:
    config = adapter.config
    base = config.base_model_name_or_path
    loss = "exactly" if report.worst_module is None else f"to a relative error of {report.residual:.2e}"
    text = [f"A plain LoRA adapter made from a {method_name(config.network)} adapter of rank {config.r}, {loss}."]
    facts: dict[str, object] = {"largest rank": report.rank, "adapted modules": report.modules}
    facts["parameters"] = f"{report.parameters:,}"
    if report.worst_module is not None:
        facts["relative error"] = f"{report.residual:.3e} (Frobenius, all modules)"
        facts["largest error of a module"] = f"{report.worst_residual:.3e} ({report.worst_module})"
    code = (
        "from peft import PeftModel\n\n"
        f'model = PeftModel.from_pretrained(base, "path/of/this/folder")  # base: {base or "the model it was made for"}'
    )
    return card("LoRA adapter", text, base=base, tags=["lora"], facts=facts, code=code)

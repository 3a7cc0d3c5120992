"""What a run comes to: its scores, what has to be said of them, and the files that tell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protfold_peft.files import write_text
from protfold_peft.training import output, predictions
from protfold_peft.training.callbacks import read_rows
from protfold_peft.training.chains import TRAINING_CHAINS, RunChains
from protfold_peft.training.config import FinetuneConfig
from protfold_peft.training.evaluate import Folded, Values
from protfold_peft.training.report import RunReport, TargetReport, write_report
from protfold_peft.training.setup import base_name

# How many targets the report shows in three dimensions.
_SHOWN = 12
# Confidence is worse when pLDDT is further from lDDT by this many points, or correlates this much less.
_WORSE_ERROR, _WORSE_CORRELATION = 2.0, 0.05


@dataclass(frozen=True)
class FinetuneResult:
    """How a run went; `results.json` holds the same, without `out`.

    Attributes:
        out: The folder.
        judged_on: What the scores are of: validation chains, or the training chains where there are none.
        base: Mean scores without the adapter (before training): `lddt_ca`, `tm_score`, `gdt_ts`, `lddt`, 0..1, and
            `plddt`, 0..100; None where no chain has one.
        adapted: The same with the adapter.
        per_target: Chain -> its `residues`, and `base` and `adapted` scores.
        outside: `base` and `adapted` mean scores of chains unlike those learnt; None if none were given.
        confidence: `base` and `adapted` agreement of pLDDT with true CA lDDT: `pearson`, `spearman`, `error`, `bias`.
        warnings: What has to be said of the result.
        skipped: Why files and chains were left out, one line each.
        trainable_parameters: Elements that were trained.
        steps: Optimizer steps that were run.
        best_step: The step whose weights were kept.
        skipped_steps: Steps left out for a gradient that was not finite.
        final_loss: Mean loss since the log's last row but one; None where nothing was logged.
        seconds: Of this process; a resumed run counts from where it was resumed.
        peak_memory_bytes: Most memory in use: of the GPU's if there is one, else of the process; None if unknown.
        model: Name of the base model.
        untrained: Whether the base model's weights are random.
        recycles: Passes after the first in evaluation.
        seed: Of the run.
        version: Of this program.
    """

    out: Path
    judged_on: str
    base: Values
    adapted: Values
    per_target: Mapping[str, Mapping[str, Any]]
    outside: Mapping[str, Values] | None
    confidence: Mapping[str, Values]
    warnings: tuple[str, ...]
    skipped: tuple[str, ...]
    trainable_parameters: int
    steps: int
    best_step: int
    skipped_steps: int
    final_loss: float | None
    seconds: float
    peak_memory_bytes: int | None
    model: str
    untrained: bool
    recycles: int
    seed: int
    version: str


def warnings_of(
    untrained: bool, config: FinetuneConfig, data: RunChains, confidence: Mapping[str, Values]
) -> tuple[str, ...]:
    """What has to be said of the result, one line each."""
    found: list[str] = []
    if untrained and config.mode != "full":
        found.append(f"{base_name(config)} has UNTRAINED weights: this shows that training works, nothing else")
    if data.judged_on == TRAINING_CHAINS:
        found.append("judged on the training chains: the scores say nothing about other proteins; set data.validation")
    before, after = confidence["base"], confidence["adapted"]
    error = (before["error"], after["error"])
    if error[0] is not None and error[1] is not None and error[1] > error[0] + _WORSE_ERROR:
        found.append(
            f"pLDDT is further from the true lDDT than before: by {error[1]:.1f} points, {error[0]:.1f} before"
        )
    correlation = (before["pearson"], after["pearson"])
    if (
        correlation[0] is not None
        and correlation[1] is not None
        and correlation[1] < correlation[0] - _WORSE_CORRELATION
    ):
        found.append(
            f"pLDDT tells good residues from bad ones less well than before: correlation {correlation[1]:.2f}, "
            f"{correlation[0]:.2f} before"
        )
    return tuple(found)


def save_results(
    model: Any,
    config: FinetuneConfig,
    data: RunChains,
    result: FinetuneResult,
    folded: tuple[Sequence[Folded], Sequence[Folded]],
    working: Path,
    *,
    report: bool = True,
) -> None:
    """Write weights, card, configuration, results and, if wanted, the report into the working folder."""
    if config.mode == "full":
        model.save_pretrained(str(working))
        pair = (output.MODEL_WEIGHTS, output.MODEL_CONFIG)
    else:
        # "auto" would ask the hub about the base model's vocabulary.
        model.save_pretrained(str(working), save_embedding_layers=False)
        pair = (output.ADAPTER_WEIGHTS, output.ADAPTER_CONFIG)
    # safetensors makes its file for the user alone.
    (working / pair[0]).chmod((working / pair[1]).stat().st_mode)
    card = output.model_card(
        config,
        result.model,
        untrained=result.untrained,
        judged_on=result.judged_on,
        scores=(result.base, result.adapted),
        chains=len(data.train.chains),
        recycles=result.recycles,
        report=report,
    )
    write_text(working / output.CARD, card)
    write_text(working / output.CONFIG, output.config_yaml(config))
    content = {key: value for key, value in asdict(result).items() if key != "out"}
    write_text(working / output.RESULTS, json.dumps(content, indent=2, allow_nan=False) + "\n")
    if report:
        write_report(working / output.REPORT, _report(config, data, result, folded, working))


def _report(
    config: FinetuneConfig,
    data: RunChains,
    result: FinetuneResult,
    folded: tuple[Sequence[Folded], Sequence[Folded]],
    working: Path,
) -> RunReport:
    """The report of a run, with the chains that changed most."""

    def change(place: int) -> float:
        before, after = (one[place].scores["lddt_ca"] for one in folded)
        return 0.0 if before is None or after is None else abs(after - before)

    shown = set(sorted(range(len(data.judged)), key=lambda place: -change(place))[:_SHOWN])
    full = config.mode == "full"
    memory = result.peak_memory_bytes
    facts = {
        "base model": result.model,
        "trained": "all weights" if full else f"{config.adapter.method} adapter, rank {config.adapter.rank}",
        "trained parameters": f"{result.trainable_parameters:,}",
        "chains learnt": f"{len(data.train.chains):,}",
        "steps": f"{result.steps:,}" + (f" (kept: {result.best_step:,})" if result.best_step != result.steps else ""),
        "time": f"{result.seconds:.0f} s",
        "peak memory": "unknown" if memory is None else f"{memory / 2**30:.2f} GiB",
        "seed": str(result.seed),
        "version": result.version,
    }
    return RunReport(
        title=f"{'full fine-tuning' if full else f'{config.adapter.method} adapter'} of {result.model}",
        facts=facts,
        warnings=result.warnings,
        judged_on=result.judged_on,
        training=_numbers(read_rows(working / output.METRICS)),
        validation=_numbers(read_rows(working / output.VALIDATION)),
        base=result.base,
        adapted=result.adapted,
        targets=[
            TargetReport(
                name=before.name,
                residues=before.residues,
                base=before.scores,
                adapted=after.scores,
                structures=predictions.superposed(chain, before, after) if place in shown else None,
            )
            for place, (chain, before, after) in enumerate(zip(data.judged, *folded))
        ],
        outside=None if result.outside is None else (result.outside["base"], result.outside["adapted"]),
        confidence=(result.confidence["base"], result.confidence["adapted"]),
    )


def _numbers(rows: Sequence[Mapping[str, str]]) -> list[dict[str, float]]:
    return [{name: float(value) if value else float("nan") for name, value in row.items()} for row in rows]

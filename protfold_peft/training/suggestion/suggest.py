"""From the data and the machine to the settings of a run, each with its reason.

The numbers for ESMFold on a GPU are careful guesses from the sizes of its tensors; `--dry-run` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protfold_peft.machine import GIB, Machine
from protfold_peft.training.suggestion.family import Family, Split, split_of

# Memory of the GPU in GiB, and up from it: crop, and longest chain that is evaluated in one piece.
_ESMFOLD_SIZES = ((70, 384, 1200), (38, 256, 800), (22, 128, 500), (0, 64, 300))
_MINI_SIZES = {"cpu": (64, 400), "cuda": (256, 1200), "mps": (128, 400)}
# How often every chain is learnt, and bounds of the steps that follow from it.
_TIMES = 30
_FEWEST_STEPS, _MOST_STEPS = 60, {"cpu": 300, "cuda": 2000, "mps": 300}


@dataclass(frozen=True)
class Setting:
    """A value of the configuration and why it has it."""

    value: Any
    why: str


@dataclass(frozen=True)
class Suggestion:
    """A configuration.

    Attributes:
        family: The data.
        machine: The machine.
        split: Files that are held out; None where there is no such split.
        settings: By dotted key, in the order of the file.
    """

    family: Family
    machine: Machine
    split: Split | None
    settings: Mapping[str, Setting]

    def values(self) -> dict[str, Any]:
        """The configuration as nested dictionaries."""
        nested: dict[str, Any] = {}
        for key, setting in self.settings.items():
            *groups, name = key.split(".")
            inner = nested
            for group in groups:
                inner = inner.setdefault(group, {})
            inner[name] = setting.value
        return nested


def suggest(family: Family, machine: Machine, *, model: str | None, out: str, table: str) -> Suggestion:
    """Settings for a run on `family`.

    Args:
        family: From `look_at`.
        machine: From `machine.look`.
        model: Hub id or folder of ESMFold weights; None for the built-in model.
        out: Folder of the run.
        table: Where the table of the split will be, if there is one.
    """
    device = machine.device
    split = split_of(family)
    held = set(split.validation) if split else set()
    learnt = sum(chain.file not in held for chain in family.chains)
    crop, longest = _sizes(machine, model)
    settings = {"out": Setting(out, "Folder of the finished adapter and its report.html; --out takes precedence.")}
    settings |= _model(machine, model)
    settings |= {
        "adapter.method": Setting("lorta", "LoRTA: one tensor for all layers, heads and matrices; docs/adapters.md."),
        "adapter.rank": Setting(
            8 if learnt < 20 else 16,
            f"{learnt} chains to learn: "
            + ("few, so few parameters." if learnt < 20 else "more than 16 has to be earned by the validation score."),
        ),
        "adapter.init": Setting("rank_stable", "The first steps are equally large at every rank."),
    }
    settings |= _data(family, split, table, crop, longest)
    settings |= _losses(model)
    settings |= _training(family, learnt, device, model, judged=split is not None or family.held_out > 0)
    return Suggestion(family, machine, split, settings)


def _sizes(machine: Machine, model: str | None) -> tuple[int, int]:
    """Crop, and longest chain."""
    if model is None:
        return _MINI_SIZES[machine.device]
    memory = machine.gpus[0].memory_bytes / GIB if machine.gpus else 0.0
    return next((crop, longest) for least, crop, longest in _ESMFOLD_SIZES if memory >= least)


def _model(machine: Machine, model: str | None) -> dict[str, Setting]:
    """The group `model`: what fits the machine."""
    if machine.gpus:
        gpu = machine.gpus[0]
        here = f"{gpu.name} of {gpu.memory_bytes / GIB:.0f} GiB"
        large = " facebook/esmfold_v1 fits this GPU: init with --model." if gpu.memory_bytes > 15 * GIB else ""
        dtype = Setting("auto", "bf16 on this GPU.")
        if not gpu.bf16:
            dtype = Setting("fp32", "This GPU does not compute in bfloat16.")
    else:
        here = f"no CUDA GPU; {machine.cores} cores and {machine.memory_bytes / GIB:.0f} GiB of memory"
        large = " ESMFold would take hours here; protfold doctor tells what fits."
        dtype = Setting("auto", "fp32 on this machine.")
    what = (
        Setting(None, f"The built-in model: {here}.{large}") if model is None else Setting(model, f"On this: {here}.")
    )
    return {
        "model.name": what,
        "model.dtype": dtype,
        "model.gradient_checkpointing": _checkpointing(machine, model),
    }


def _checkpointing(machine: Machine, model: str | None) -> Setting:
    if model is None:
        return Setting(False, "Not needed for so small a model.")
    if machine.gpus:
        return Setting(None, "As much is computed twice as the free memory of the GPU asks for.")
    return Setting(True, "Compute activations twice to hold fewer; a third slower.")


def _data(family: Family, split: Split | None, table: str, crop: int, longest: int) -> dict[str, Setting]:
    """The group `data`: the chains, which of them are held out, the crop and the longest length."""
    lengths = family.lengths
    told = f"{len(lengths)} chains of {lengths[0]} to {lengths[-1]} residues, half of them up to {family.median_length}"
    found = {"data.folder": Setting(family.folder, f"{told}. Relative to where the command runs.")}
    if split is not None:
        near = (
            "None of them resembles a training chain at 30 % identity."
            if split.strict
            else "They are of the same family: near-copies (90 % identity) are on one side, but the scores tell of "
            "this family alone."
        )
        counts = f"{len(split.train)} files are learnt, {len(split.validation)} held out"
        found |= {
            "data.table": Setting(table, f"{counts}. {near} Edit the column 'part' to choose others."),
            "data.where": Setting({"part": "train"}, "The rows that are learnt."),
            "data.validation": Setting(
                {"folder": family.folder, "table": table, "where": {"part": "validation"}},
                "The chains that the run is judged by.",
            ),
        }
    elif family.prepared and family.held_out:
        found["data.validation"] = Setting(None, f"The dataset's own split: {family.held_out} chains.")
    else:
        found["data.validation"] = Setting(
            None,
            "Too few files, or too much alike, to hold some out: the training chains are judged, which says nothing of "
            "other proteins. Give a folder of others: {folder: held_out}.",
        )
    fitting = min(crop, -(-lengths[-1] // 8) * 8)
    found["data.crop_size"] = Setting(
        fitting,
        "The longest chain fits whole."
        if fitting >= lengths[-1]
        else "Memory grows with its square; chains longer than this are learnt in random stretches.",
    )
    over = sum(length > longest for length in lengths)
    found["data.max_length"] = Setting(
        longest if over else None,
        f"{over} longer chains are left out: chains are judged in one piece." if over else "All chains are used.",
    )
    return found


def _losses(model: str | None) -> dict[str, Setting]:
    if model is not None:
        # AlphaFold's, which are the defaults; one is written out as the place to begin.
        return {"loss.fape": Setting(0.5, "AlphaFold's weights, as all that are not named here (docs/finetuning.md).")}
    made = "As protfold-mini was trained."
    weights = {"fape": 1.0, "side_chain_fape": 0.0, "torsion": 0.3, "distogram": 0.5, "plddt": 0.01}
    weights |= {"aligned_error": 0.01, "smooth_lddt": 1.0}
    return {
        f"loss.{name}": Setting(weight, made if place == 0 else "")
        for place, (name, weight) in enumerate(weights.items())
    }


def _training(family: Family, learnt: int, device: str, model: str | None, *, judged: bool) -> dict[str, Setting]:
    """The group `training`: steps and batch by the number of chains and the device."""
    batch = min(learnt, 4 if model is not None else 3 if device == "cpu" else 8)
    steps = min(max(_FEWEST_STEPS, -(-_TIMES * learnt // batch)), _MOST_STEPS[device])
    found = {
        "training.steps": Setting(
            steps,
            f"Every chain is learnt about {steps * batch / learnt:.0f} times; more is better until validation falls.",
        ),
        "training.batch_size": Setting(batch, "Samples per step."),
        "training.accumulate": Setting(
            batch if model is not None else 1,
            "One sample at a time in memory." if model is not None else "All of a step at once.",
        ),
        "training.learning_rate": Setting(
            0.01, "A start for LoRTA at any rank with this init; try three times less and more."
        ),
        "training.warmup_steps": Setting(max(1, steps // 12), "A twelfth of the steps."),
        "training.schedule": Setting("linear", "Down to 0 at the last step."),
        "training.evaluate_every": Setting(
            max(1, steps // 5) if judged else None,
            "Five times in the run; the best weights are kept."
            if judged
            else "There are no held-out chains to choose by.",
        ),
        "training.checkpoint_every": Setting(max(1, steps // 4), "An interrupted run goes on with --resume."),
        "training.seed": Setting(0, "The same seed gives the same run."),
    }
    if family.duplicates:
        why = f"{family.duplicates} chains have the sequence of another one; they count more often."
        found["training.batch_size"] = Setting(batch, f"Samples per step. {why} protfold prepare drops them.")
    return found

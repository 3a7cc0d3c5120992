"""All checks together, and which models this machine can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protfold_peft.doctor.checks import BROKEN, Check, devices, folders, optional, versions
from protfold_peft.doctor.fold import self_test
from protfold_peft.machine import GIB, Machine, look

# Parameters of the published ESMFold: ESM-2 of 3 billion, and the folding trunk with its heads.
LANGUAGE_MODEL, TRUNK = 2.84e9, 0.69e9
# Left free for activations of a chain of some hundred residues; more is needed for longer ones. Not measured.
_ROOM = 2 * GIB


@dataclass(frozen=True)
class Fit:
    """Whether a model can be held on a device.

    Attributes:
        model: Its name.
        device: Where.
        use: Prediction, or fine-tuning of an adapter.
        bytes: What its weights take.
        fits: With some room for activations.
        how: Options that are needed for it, or what hinders it.
    """

    model: str
    device: str
    use: str
    bytes: int
    fits: bool
    how: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        checks: By the group they belong to.
        machine: What there is.
        fits: What can be run.
    """

    checks: Mapping[str, tuple[Check, ...]]
    machine: Machine
    fits: tuple[Fit, ...]

    @property
    def broken(self) -> tuple[Check, ...]:
        """The checks that found something broken."""
        return tuple(check for checks in self.checks.values() for check in checks if check.state == BROKEN)


def examine(*, fold: bool = True) -> Diagnosis:
    """Run every check; `fold` the self-test too, on the CPU and on the first GPU."""
    machine = look()
    tested = ["cpu", *(["cuda"] if machine.gpus else [])] if fold else []
    checks = {
        "versions": tuple(versions()),
        "devices": tuple(devices(machine)),
        "optional parts": tuple(optional()),
        "folders": tuple(folders()),
        "self-test": tuple(check for device in tested for check in self_test(device)),
    }
    return Diagnosis(checks, machine, fits(machine))


def fits(machine: Machine) -> tuple[Fit, ...]:
    """Which models this machine can hold, by the size of their weights."""
    found = [Fit("protfold-mini", "cpu", "prediction and fine-tuning", 30_000_000, True, "built in")]
    name = "facebook/esmfold_v1"
    # As `dtype: auto` has it: fp32 on a CPU; on a GPU the language model in 16 bits, the trunk in 32.
    for device, use, size, free in (
        ("cpu", "prediction", 4 * (LANGUAGE_MODEL + TRUNK), machine.free_bytes),
        *(
            (f"cuda:{gpu.index}", "prediction and fine-tuning", 2 * LANGUAGE_MODEL + 4 * TRUNK, gpu.free_bytes)
            for gpu in machine.gpus
        ),
    ):
        how = "slow: minutes a chain" if device == "cpu" else "gradient checkpointing for fine-tuning"
        if size + _ROOM > free:
            how = f"its weights take {size / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"
            if device != "cpu" and use:
                how += "; try --cpu-offload for prediction, model.quantize for fine-tuning"
        found.append(Fit(name, device, use, int(size), size + _ROOM <= free, how))
    return tuple(found)

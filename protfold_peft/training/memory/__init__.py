"""Memory of a training step: counted (`arrays`), estimated by length (`footprint`), kept to a budget (`budget`)."""

from protfold_peft.training.memory.arrays import peak_bytes, saved_bytes
from protfold_peft.training.memory.budget import (
    Plan,
    cap,
    choose,
    enough,
    fit_memory,
    parse_budget,
    shown,
    take_budget,
    usable,
)
from protfold_peft.training.memory.footprint import Curve, Footprint, held_bytes, measure_footprint, recorded_layers

__all__ = [
    "Curve",
    "Footprint",
    "Plan",
    "cap",
    "choose",
    "enough",
    "fit_memory",
    "held_bytes",
    "measure_footprint",
    "parse_budget",
    "peak_bytes",
    "recorded_layers",
    "saved_bytes",
    "shown",
    "take_budget",
    "usable",
]

"""A fold of a small protein by the built-in model, compared with what it gave when the package was made."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from protfold_peft.doctor.checks import BROKEN, OK, Check
from protfold_peft.folding.load import load_model
from protfold_peft.folding.predict import predict

SEQUENCE = "NLYIQWLKDGGPSSGRPPPS"  # Trp-cage, PDB 1L2Y
# Distance in angstrom of every CA from the third after it, and pLDDT, on a CPU. A fold that is turned or moved has the
# same ones. `tests/cli/test_doctor.py` computes them anew.
DISTANCES = (6.43, 6.66, 6.25, 5.93, 6.48, 7.51, 8.03, 8.63, 9.91, 10.06, 9.06, 7.93, 7.62, 7.26, 9.12, 10.38, 8.34)
PLDDT = 49.05
# Largest differences. Two CPUs differ by rounding; a GPU has the language model in half precision.
_CPU_TOLERANCE, _GPU_TOLERANCE = 0.1, 1.0
_CA = 1


def self_test(device: str) -> Iterator[Check]:
    """Fold twice on `device`: is it the fold that it should be, and the same both times?"""
    name = f"self-test on {device}"
    begin = time.monotonic()
    try:
        model = load_model(device=device)
        predictions = [predict(model, SEQUENCE) for _ in range(2)]
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        yield Check(name, BROKEN, reason, "reinstall the packages that are named above as broken or in warning")
        return
    first, second = (prediction.structure.chains[0].atom_positions[:, _CA] for prediction in predictions)
    away = float(np.abs(third_neighbours(first) - DISTANCES).max())
    plddt_away = abs(predictions[0].mean_plddt - PLDDT)
    tolerance = _CPU_TOLERANCE if device == "cpu" else _GPU_TOLERANCE
    seconds = f"{time.monotonic() - begin:.1f} s for two folds, start included"
    if not (away <= tolerance and plddt_away <= 10 * tolerance):
        yield Check(
            name,
            BROKEN,
            f"distances are off by {away:.2f} A and pLDDT by {plddt_away:.1f}; {tolerance:g} and {10 * tolerance:g} "
            "are allowed",
            "predictions here cannot be trusted: reinstall PyTorch and protfold-peft, and report it",
        )
        return
    same = "the same both times" if np.array_equal(first, second) else "not bit for bit the same both times"
    yield Check(name, OK, f"the fold expected, within {away:.3f} A; {same}; {seconds}")


def third_neighbours(positions: np.ndarray) -> np.ndarray:
    """`(n - 3,)` distances of every position `(n, 3)` from the third after it."""
    return np.linalg.norm(positions[3:] - positions[:-3], axis=1)

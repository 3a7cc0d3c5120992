"""TM-score and CA lDDT of a batch of models, pairs per second, beside tmtools and biotite where they are installed.

The pairs are random walks of CA atoms and noisy copies of them. The programs beside take one pair after another, in one
process; ours takes the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from protfold_peft.benchmarks.measuring import measure
from protfold_peft.metrics import lddt, tm_score

BATCH = 256
ROUTES = ("tmtools", "TM-score, ours", "biotite", "CA lDDT, ours")


def scoring_rows(
    routes: Sequence[str], size: str, device: torch.device, lengths: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """A row for every route and length; the programs beside always run on the CPU."""
    for route in routes:
        package = route if route in ("tmtools", "biotite") else None
        for length in lengths:
            row: dict[str, Any] = {"route": route, "length": length}
            if package is not None and find_spec(package) is None:
                yield row | {"error": f"{package} is not installed"}
                continue
            models, references = made_pairs(length)
            where = torch.device("cpu") if package else device
            made: Callable[[], object]
            if route == "tmtools":
                made, pairs = _with_tmtools(models, references), 1
            elif route == "biotite":
                made, pairs = _with_biotite(models, references), 1
            else:
                made, pairs = _ours(lddt if "lDDT" in route else tm_score, models, references, device), BATCH
            row |= measure(made, where, seconds=seconds)
            if "seconds" in row:
                # One pair is too short a pass to take the fastest of.
                row["pairs_per_second"] = pairs / row["median"]
            yield row


def made_pairs(length: int) -> tuple[np.ndarray, np.ndarray]:
    """`(b, n, 3)` models and their references, in angstrom, from near to wrong."""
    rng = np.random.default_rng(length)
    steps = rng.normal(size=(BATCH, length, 3))
    references = np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=-1, keepdims=True), axis=1)
    noise = rng.normal(size=references.shape) * np.geomspace(0.3, 10, BATCH)[:, None, None]
    return references + noise, references


def _ours(
    score: Callable[..., Any], models: np.ndarray, references: np.ndarray, device: torch.device
) -> Callable[[], object]:
    tensors = [torch.tensor(array, device=device) for array in (models, references)]
    whole = torch.ones(tensors[0].shape[:2], dtype=torch.bool, device=device)
    return lambda: score(*tensors, whole)


def _with_tmtools(models: np.ndarray, references: np.ndarray) -> Callable[[], object]:
    import tmtools

    sequence = "A" * models.shape[1]
    model, reference = models[BATCH // 2], references[BATCH // 2]
    return lambda: tmtools.tm_align(model, reference, sequence, sequence, alignment=[sequence, sequence])


def _with_biotite(models: np.ndarray, references: np.ndarray) -> Callable[[], object]:
    import biotite.structure as struc

    def atoms(coordinates: np.ndarray) -> Any:
        array = struc.AtomArray(len(coordinates))
        array.coord = coordinates.astype(np.float32)
        array.res_id = np.arange(1, len(coordinates) + 1)
        array.chain_id[:], array.res_name[:], array.atom_name[:] = "A", "ALA", "CA"
        return array

    model, reference = atoms(models[BATCH // 2]), atoms(references[BATCH // 2])
    return lambda: struc.lddt(reference, model)

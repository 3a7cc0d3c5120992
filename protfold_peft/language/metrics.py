"""Scores of predicted classes and values, as GLUE defines them.

Axis letters: `n` samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


def accuracy(predicted: Array, true: Array) -> float:
    """Share of the samples, 0..1, whose class is right; both `(n,)`."""
    return float(np.mean(predicted == true))


def matthews(predicted: Array, true: Array) -> float:
    """Matthews' correlation coefficient, -1..1, of any number of classes; 0 if either has one class only.

    Source: Gorodkin, Comput. Biol. Chem. 28, 367 (2004), equation 8; for two classes Matthews' own.
    """
    classes, index = np.unique(np.concatenate([predicted, true]), return_inverse=True)
    table = np.zeros((len(classes), len(classes)))
    np.add.at(table, (index[len(predicted) :], index[: len(predicted)]), 1)
    of_true, of_predicted, total = table.sum(1), table.sum(0), table.sum()
    covariance = np.trace(table) * total - of_true @ of_predicted
    spread = math.sqrt((total**2 - of_true @ of_true) * (total**2 - of_predicted @ of_predicted))
    return float(covariance / spread) if spread else 0.0


def f1(predicted: Array, true: Array) -> float:
    """Harmonic mean of precision and recall of class 1, 0..1; 0 if it is neither there nor predicted."""
    hits = np.sum((predicted == 1) & (true == 1))
    total = np.sum(predicted == 1) + np.sum(true == 1)
    return float(2 * hits / total) if total else 0.0


def pearson(predicted: Array, true: Array) -> float:
    """Pearson's correlation, -1..1; NaN if either is constant."""
    x, y = (np.asarray(values, dtype=float) - np.mean(values.astype(float)) for values in (predicted, true))
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y / spread) if spread else math.nan


def spearman(predicted: Array, true: Array) -> float:
    """Spearman's rank correlation, -1..1, ties at their mean rank; NaN if either is constant."""
    return pearson(_ranks(predicted), _ranks(true))


def _ranks(values: Array) -> Array:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Rank of the last of each distinct value, less half the distance to the first.
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1": f1,
    "pearson": pearson,
    "spearman": spearman,
}

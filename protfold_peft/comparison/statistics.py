"""Did a method change the scores? Paired differences over targets, with intervals and tests that are not too sure.

Two methods are compared on the same targets, each trained from several seeds. What varies is which proteins are the
targets, and which seeds were drawn; what is asked is the mean difference over proteins like these.

Axis letters: `s` seeds, `t` targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Up to so many differences the signed-rank test is exact; beyond, the normal approximation is within 1e-4 of it.
MAX_EXACT = 200
# Differences that are nearer than this are tied: scores are rounded coordinates' results, not real numbers.
_TIE_DIGITS = 12


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie.

    Attributes:
        mean: Over targets, each the mean over its seeds.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test.

    Attributes:
        statistic: The smaller of the two sums of ranks.
        p_value: Two-sided; 1 where every difference is 0.
        n: Differences that are not 0.
        exact: By counting all signs, not by the normal approximation.
    """

    statistic: float
    p_value: float
    n: int
    exact: bool


def paired_differences(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`(s, t)` differences of the scores from those of a reference on the same targets.

    Args:
        scores: `(s, t)`, NaN where there is none.
        reference: `(t,)`, `(1, t)` for one that knows no seeds, or `(s, t)`, seed by seed.

    Raises:
        ValueError: The shapes do not fit.
    """
    scores, reference = np.atleast_2d(scores), np.atleast_2d(reference)
    if reference.shape[1] != scores.shape[1] or reference.shape[0] not in (1, scores.shape[0]):
        raise ValueError(f"scores {scores.shape} and reference {reference.shape} are not of the same targets and seeds")
    return scores - reference


def bootstrap_interval(
    differences: np.ndarray, *, seed: int = 0, draws: int = 10_000, confidence: float = 0.95, shared_seeds: bool = False
) -> Interval:
    """Percentile bootstrap of the mean difference: targets are drawn with replacement, and seeds within them.

    Args:
        differences: `(s, t)`; NaN where a target was not scored under a seed. Targets without any are left out.
        seed: Of the draws.
        draws: How many times.
        confidence: Probability of the interval, 0..1.
        shared_seeds: Draw the seeds once for all targets of a draw, not for each target anew. One training with its
            luck is judged on all targets, so this is what holds where seeds differ much. It errs on the safe side:
            where neither seeds nor targets differ in themselves it is up to 1.7 times too wide (Owen 2007).

    Returns:
        NaN ends for fewer than two targets.

    Raises:
        ValueError: Nothing is left to average, or the shape is not `(s, t)`.

    Sources: Davison & Hinkley, Bootstrap Methods (1997), section 3.8, for drawing at nested levels; Owen, Annals of
    Applied Statistics 1 (2007) 386, for drawing both crossed factors.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"differences are (seeds, targets), got {values.shape}")
    values = values[:, ~np.isnan(values).all(axis=0)]
    if not values.size:
        raise ValueError("there is no difference to average")
    n_seeds, n = values.shape
    mean = float(np.nanmean(values, axis=0).mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    # A target that lacks a seed draws from those it has.
    rows = [column[~np.isnan(column)] for column in values.T]
    counts = np.array([len(row) for row in rows])
    filled = np.zeros((n, n_seeds))
    for place, row in enumerate(rows):
        filled[place, : len(row)] = row
    means = np.empty(draws)
    complete = bool((counts == n_seeds).all())
    for draw in range(draws):
        chosen = np.asarray(rng.integers(n, size=n))
        if shared_seeds and complete:
            columns = np.broadcast_to(rng.integers(n_seeds, size=n_seeds), (n, n_seeds))
            means[draw] = filled[chosen[:, None], columns].mean()
            continue
        columns = (rng.random((n, n_seeds)) * counts[chosen][:, None]).astype(np.int64)
        drawn = filled[chosen[:, None], columns]
        # As many draws as the target has seeds, as the bootstrap wants.
        used = np.arange(n_seeds)[None] < counts[chosen][:, None]
        means[draw] = ((drawn * used).sum(axis=1) / counts[chosen]).mean()
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def signed_rank(differences: Sequence[float] | np.ndarray) -> SignedRank:
    """Wilcoxon's two-sided signed-rank test that differences are symmetric around 0.

    Zeros are left out and ties take their mean rank; the distribution under the hypothesis is then counted for these
    very ranks, so that the test is exact with ties too.

    Args:
        differences: One of every target (the mean over its seeds: seeds of one target are not independent). NaN is
            left out.

    Source: Wilcoxon, Biometrics Bulletin 1 (1945) 80; ties as Pratt & Gibbons, Concepts of Nonparametric Theory (1981).
    """
    values = np.asarray(differences, dtype=np.float64)
    values = np.round(values[~np.isnan(values)], _TIE_DIGITS)
    values = values[values != 0]
    n = len(values)
    if n == 0:
        return SignedRank(0.0, 1.0, 0, True)
    ranks = mean_ranks(np.abs(values))
    positive = float(ranks[values > 0].sum())
    total = n * (n + 1) / 2
    statistic = min(positive, total - positive)
    if n <= MAX_EXACT:
        return SignedRank(statistic, _exact_p(ranks, statistic), n, True)
    _, sizes = np.unique(np.abs(values), return_counts=True)
    variance = n * (n + 1) * (2 * n + 1) / 24 - float((sizes**3 - sizes).sum()) / 48
    z = (statistic - total / 2) / math.sqrt(variance)
    return SignedRank(statistic, min(1.0, math.erfc(-z / math.sqrt(2))), n, False)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """`(n,)` ranks from 1, equal values at the mean of theirs."""
    _, places, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return (last - (sizes - 1) / 2)[places]


def _exact_p(ranks: np.ndarray, statistic: float) -> float:
    """Probability of a sum of positive ranks as far from its mean, every sign being as likely as the other."""
    # Mean ranks are halves: doubled, they are whole, and the sums can be counted.
    doubled = np.rint(2 * ranks).astype(np.int64)
    probability = np.zeros(int(doubled.sum()) + 1)
    probability[0] = 1.0
    reached = 0
    for rank in doubled:
        reached += int(rank)
        moved = np.zeros(reached + 1)
        moved[rank:] = probability[: reached + 1 - rank]
        probability[: reached + 1] = (probability[: reached + 1] + moved) / 2
    lower = float(probability[: int(np.rint(2 * statistic)) + 1].sum())
    return min(1.0, 2 * lower)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, in their order (Holm, Scandinavian Journal of Statistics 6 (1979) 65)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Places of those that no other beats: at most the cost and at least the score, and one of them better.

    Sorted by cost. Equals are on the front together.
    """
    front: list[int] = []
    best = -math.inf
    order = sorted(range(len(costs)), key=lambda place: (costs[place], -scores[place]))
    for place in order:
        same = front and costs[place] == costs[front[-1]] and scores[place] == scores[front[-1]]
        if scores[place] > best or same:
            front.append(place)
            best = max(best, scores[place])
    return front


def verdict(interval: Interval, p_adjusted: float, *, level: float = 0.05) -> str:
    """`higher`, `lower`, or `no difference was shown`: only what both the interval and the adjusted test support."""
    if interval.excludes_zero and p_adjusted < level:
        return "higher" if interval.mean > 0 else "lower"
    return "no difference was shown"

"""The statistics against scipy, against enumeration, and against values worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from protfold_peft.comparison.statistics import (
    Interval,
    bootstrap_interval,
    holm,
    mean_ranks,
    paired_differences,
    pareto_front,
    signed_rank,
    verdict,
)


def test_differences_pair_targets_and_seeds() -> None:
    scores = np.array([[0.5, 0.7], [0.6, 0.9]])
    assert paired_differences(scores, np.array([0.4, 0.8])) == pytest.approx(np.array([[0.1, -0.1], [0.2, 0.1]]))
    assert paired_differences(scores, scores[::-1]) == pytest.approx(np.array([[-0.1, -0.2], [0.1, 0.2]]))
    with pytest.raises(ValueError, match="not of the same targets"):
        paired_differences(scores, np.zeros(3))


def test_ranks_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).integers(0, 9, size=60).astype(float)
    assert mean_ranks(values).tolist() == stats.rankdata(values).tolist()


@pytest.mark.parametrize("n", [5, 12, 23, 48])
def test_the_signed_rank_test_is_scipys_where_nothing_is_tied(n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(n).normal(0.3, 1, size=n)
    theirs = stats.wilcoxon(values, method="exact")
    ours = signed_rank(values)
    assert ours.exact
    assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-9)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)


def test_the_signed_rank_test_counts_all_signs_where_values_are_tied() -> None:
    values = np.array([0.0, 1, -1, 1, 2, 2, -3, 3, 0, 4])
    kept = values[values != 0]
    ranks = mean_ranks(np.abs(kept))
    observed = min(ranks[kept > 0].sum(), ranks[kept < 0].sum())
    sums = [np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(kept))]
    expected = np.mean([min(total, ranks.sum() - total) <= observed for total in sums])
    ours = signed_rank(values)
    assert (ours.statistic, ours.n) == (observed, 8)
    assert ours.p_value == pytest.approx(expected, rel=1e-12)


def test_many_differences_are_judged_by_scipys_approximation() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.round(np.random.default_rng(3).normal(0.1, 1, size=400), 1)
    theirs = stats.wilcoxon(values, method="asymptotic", correction=False)
    ours = signed_rank(values)
    assert not ours.exact
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)


def test_five_gains_in_five_are_no_proof() -> None:
    """By hand: all of 2^5 signs are equally likely, two of them (all up, all down) are as extreme."""
    assert signed_rank([0.1, 0.2, 0.3, 0.4, 0.5]).p_value == pytest.approx(2 / 32)
    assert signed_rank([0.0, 0.0, math.nan]).p_value == 1.0


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and no smaller than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_front_by_hand() -> None:
    costs = [10, 20, 20, 5, 40, 40]
    scores = [0.5, 0.4, 0.6, 0.1, 0.6, 0.7]
    assert pareto_front(costs, scores) == [3, 0, 2, 5]
    assert pareto_front([1, 1], [0.5, 0.5]) == [0, 1]


def test_the_interval_of_one_seed_is_scipys_percentile_bootstrap() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).normal(0.02, 0.05, size=(1, 40))
    theirs = stats.bootstrap(
        (values[0],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    ours = bootstrap_interval(values, draws=20_000)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=4e-4)
    assert ours.high == pytest.approx(theirs.high, abs=4e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_the_interval_has_the_width_that_theory_gives(shared: bool) -> None:
    """Variance of the bootstrap mean: between targets / t, and within / (s t), or between seeds / s if they are shared.

    For the plug-in distribution these are exact, up to the number of draws.
    """
    rng = np.random.default_rng(5)
    targets, seeds = rng.normal(0, 0.05, size=30), rng.normal(0, 0.03, size=(4, 1))
    values = targets[None] + seeds
    interval = bootstrap_interval(values, draws=20_000, shared_seeds=shared)
    luck = seeds.var() / (4 if shared else 4 * 30)
    expected = math.sqrt(values.mean(axis=0).var() / 30 + luck)
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(expected, rel=0.08 if shared else 0.03)


def test_targets_that_lack_a_seed_still_count_and_those_without_any_do_not() -> None:
    values = np.array([[0.1, 0.3, np.nan], [np.nan, 0.5, np.nan]])
    interval = bootstrap_interval(values, draws=2_000)
    assert interval.mean == pytest.approx((0.1 + 0.4) / 2)
    assert interval.low == pytest.approx(0.1)
    # Both draws the second target (1 in 4), all four of its draws 0.5: 1.6 %; three of them: 6.3 % more.
    assert interval.high == pytest.approx(0.45)
    with pytest.raises(ValueError, match="no difference"):
        bootstrap_interval(np.full((2, 3), np.nan))
    assert math.isnan(bootstrap_interval(np.array([[0.2]])).low)


def test_a_verdict_needs_the_interval_and_the_test() -> None:
    up, across, down = Interval(0.1, 0.05, 0.2), Interval(0.1, -0.01, 0.2), Interval(-0.1, -0.2, -0.05)
    assert verdict(up, 0.01) == "higher"
    assert verdict(down, 0.01) == "lower"
    assert verdict(up, 0.2) == verdict(across, 0.01) == "no difference was shown"

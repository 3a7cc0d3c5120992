"""Scores against scipy, torch and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from protfold_peft.language.metrics import accuracy, f1, matthews, pearson, spearman


def test_two_classes_by_hand():
    # Four true positives, one false negative, two false positives, three true negatives.
    true = np.array([1] * 5 + [0] * 5)
    predicted = np.array([1, 1, 1, 1, 0, 1, 1, 0, 0, 0])
    assert accuracy(predicted, true) == 0.7
    assert f1(predicted, true) == pytest.approx(8 / 11)
    assert matthews(predicted, true) == pytest.approx((4 * 3 - 2 * 1) / math.sqrt(6 * 5 * 5 * 4))


def test_matthews_of_two_classes_is_pearsons_correlation():
    generator = np.random.default_rng(0)
    true, predicted = generator.integers(0, 2, 200), generator.integers(0, 2, 200)
    assert matthews(predicted, true) == pytest.approx(np.corrcoef(predicted, true)[0, 1], abs=1e-12)


def test_matthews_of_three_classes_is_the_ratio_of_covariances():
    """Gorodkin's definition: covariance of the indicator matrices over the root of their variances."""
    generator = np.random.default_rng(1)
    true, predicted = generator.integers(0, 3, 300), generator.integers(0, 3, 300)
    x, y = np.eye(3)[true], np.eye(3)[predicted]
    x, y = x - x.mean(0), y - y.mean(0)
    expected = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    assert matthews(predicted, true) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_alone_has_no_correlation(value):
    assert matthews(np.full(4, value), np.array([0, 1, 0, 1])) == 0
    assert math.isnan(pearson(np.full(4, 1.0), np.array([0.0, 1.0, 2.0, 3.0])))
    assert f1(np.zeros(3), np.zeros(3)) == 0


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_equal_scipys(ties):
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(2)
    x = generator.normal(size=50)
    y = x + generator.normal(size=50)
    if ties:
        x, y = x.round(), y.round()
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)

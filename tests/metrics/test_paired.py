"""Paired tests against counting, scipy and simulation."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from zsadbench.errors import MetricError
from zsadbench.metrics import image_metrics
from zsadbench.metrics.bootstrap import image_replicates, resample
from zsadbench.metrics.paired import bootstrap_p, delong, delong_p, holm, placements, wilcoxon_p

HALVES = np.repeat([False, True], 50)


def test_p_counts_draws_on_either_side_of_zero() -> None:
    draws = np.array([-1.0] * 3 + [0.0] * 2 + [1.0] * 94)
    assert bootstrap_p(draws) == 2 * (5 + 1) / 100
    assert bootstrap_p(-draws) == 2 * (5 + 1) / 100
    assert bootstrap_p(np.ones(999)) == 2 / 1000
    assert bootstrap_p(np.array([1.0, np.nan])) is None
    assert bootstrap_p(np.empty(0)) is None


def test_two_copies_of_a_method_do_not_differ() -> None:
    scores = np.random.RandomState(0).rand(100)
    draws = image_replicates(scores, HALVES, resample("bolt", HALVES, 200))["image_auroc"]
    assert bootstrap_p(draws - draws) == 1.0
    assert bootstrap_p(draws - draws + 1e-16) == 1.0
    one = placements(scores, HALVES)
    same = delong(one, one)
    assert same is not None and same.difference == 0
    assert delong_p([same]) == 1.0


def test_placements_average_to_the_auroc() -> None:
    random = np.random.RandomState(1)
    labels = random.rand(40) < 0.5
    scores = np.round(random.rand(40) * 8 + labels)
    auroc = image_metrics(scores, labels)["image_auroc"]
    found = placements(scores, labels)
    assert found.anomalous.mean() == pytest.approx(auroc, abs=1e-15)
    assert found.normal.mean() == pytest.approx(auroc, abs=1e-15)
    with pytest.raises(MetricError, match="2 image scores but 1 labels"):
        placements([1.0, 2.0], [1])


def test_delong_agrees_with_covariances_of_the_structural_components() -> None:
    random = np.random.RandomState(2)
    labels = np.arange(30) % 3 == 0
    first, second = (np.round(random.standard_normal(30) * 4 + 3 * labels) for _ in range(2))
    parts = []
    for scores in (first, second):
        kernel = np.array([[(a > n) + 0.5 * (a == n) for n in scores[~labels]] for a in scores[labels]])
        parts.append((kernel.mean(axis=1), kernel.mean(axis=0)))
    high, low = (np.cov(parts[0][kind], parts[1][kind]) for kind in (0, 1))
    contrast = np.array([1, -1])
    variance = contrast @ (high / 10 + low / 20) @ contrast
    found = delong(placements(first, labels), placements(second, labels))
    assert found is not None
    assert found.variance == pytest.approx(variance, rel=1e-12)
    wanted = 2 * stats.norm.sf(abs(found.difference) / math.sqrt(variance))
    assert delong_p([found]) == pytest.approx(wanted, rel=1e-9)
    twice = 2 * stats.norm.sf(abs(found.difference) / math.sqrt(variance / 2))
    assert delong_p([found, found]) == pytest.approx(twice, rel=1e-9)


def test_delong_is_undefined_where_nothing_varies() -> None:
    labels = [0, 0, 1, 1]
    perfect, constant = placements([0, 0, 1, 1], labels), placements([1, 1, 1, 1], labels)
    found = delong(perfect, constant)
    assert found is not None
    assert (found.difference, found.variance, delong_p([found])) == (0.5, 0.0, None)
    assert delong(placements([0, 1], [0, 1]), placements([1, 0], [0, 1])) is None


def test_wilcoxon_needs_eight_categories() -> None:
    differences = [0.01, -0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08]
    assert wilcoxon_p(differences[:7]) is None
    assert wilcoxon_p(differences) == pytest.approx(0.0234375)
    assert wilcoxon_p([0.0, 1e-17, *[0.0] * 7]) == 1.0


def test_holm_steps_down_and_leaves_out_what_is_undefined() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, None, 0.02, 0.5]) == pytest.approx([1.0, None, 0.06, 1.0])
    assert holm([]) == []


def test_equal_methods_differ_significantly_in_5_of_100_cases() -> None:
    shift = NormalDist().inv_cdf(0.85) * 2**0.5
    random, weights = np.random.RandomState(0), resample("bolt", HALVES, 500)
    small = {"bootstrap": 0, "delong": 0}
    for _ in range(500):
        shared = random.standard_normal(100) + shift * HALVES * 2**0.5
        pair = [shared + random.standard_normal(100) for _ in range(2)]
        one, other = (image_replicates(scores, HALVES, weights)["image_auroc"] for scores in pair)
        test = delong(*(placements(scores, HALVES) for scores in pair))
        assert test is not None
        p, closed = bootstrap_p(one - other), delong_p([test])
        assert p is not None and closed is not None
        small["bootstrap"] += p < 0.05
        small["delong"] += closed < 0.05
    assert all(0.03 <= count / 500 <= 0.07 for count in small.values()), small

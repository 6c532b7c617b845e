"""Diversity and intervals against numbers worked by hand, brute force, and synthetic data whose truth is known."""

import itertools
import math
import random

import numpy as np
import pytest
from scipy.stats import bootstrap

from reasoning_palette.evaluation.diversity import (
    distinct_n,
    entropy,
    latent_contrast,
    mutual_information,
    ngram_vectors,
    vendi_score,
)
from reasoning_palette.evaluation.paired_bootstrap import bootstrap_interval, paired_bootstrap


def test_entropy_by_hand():
    assert entropy(["a", "a", "b", "b", None]) == pytest.approx(math.log(2))
    assert entropy(["a"] * 3 + ["b"]) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert entropy(["a"]) == 0.0 and entropy([None, None]) == 0.0


def test_distinct_n_by_hand():
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_n(["a b", "a c"], 1) == pytest.approx(3 / 4)
    assert distinct_n(["a"], 2) == 0.0
    with pytest.raises(ValueError, match="`n` is 0"):
        distinct_n(["a"], 0)


def test_vendi_score_by_hand():
    assert vendi_score(np.eye(4)) == pytest.approx(4.0)
    assert vendi_score(np.ones((5, 3))) == pytest.approx(1.0)
    # two at 60 degrees: the eigenvalues of K / 2 are 3/4 and 1/4
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert vendi_score([[1, 0], [0.5, 3**0.5 / 2]]) == pytest.approx(expected)
    assert vendi_score([[2, 0], [0, 1], [0, 5]]) == pytest.approx(math.exp(entropy(["a", "b", "b"])))
    assert vendi_score(ngram_vectors(["a b", "a b", "c d", ""])) == pytest.approx(math.exp(entropy("aabc")))
    with pytest.raises(ValueError, match="zero or not finite"):
        vendi_score([[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"`vectors` must be of shape \(N, D\)"):
        vendi_score([])


def test_mutual_information_by_hand():
    assert mutual_information("aabb", "xxyy") == pytest.approx(math.log(2))
    assert mutual_information("aabb", "xyxy") == 0.0
    with pytest.raises(ValueError, match="`first` has 1 values and `second` 2"):
        mutual_information("a", "bb")


def test_contrast_against_brute_force():
    generator = random.Random(0)
    for _ in range(20):
        problems, latents = generator.randint(2, 6), generator.randint(2, 5)
        table = [[generator.choice("xyz") for _ in range(latents)] for _ in range(problems)]
        found = latent_contrast(table, num_permutations=5)
        cells = [(p, c, table[p][c]) for p in range(problems) for c in range(latents)]
        pairs = [(a, b) for a, b in itertools.combinations(cells, 2) if a[0] != b[0]]
        same = [a[2] == b[2] for a, b in pairs if a[1] == b[1]]
        other = [a[2] == b[2] for a, b in pairs if a[1] != b[1]]
        assert found.same_latent == pytest.approx(sum(same) / len(same))
        assert found.other_latent == pytest.approx(sum(other) / len(other))
        plugged = mutual_information([cell[1] for cell in cells], [cell[2] for cell in cells])
        assert found.mutual_information == pytest.approx(plugged, abs=1e-12)


def test_contrast_tells_a_latent_that_decides_from_one_that_does_not():
    decides = latent_contrast([["x", "y", "z", "x"]] * 10, num_permutations=200)
    assert decides.same_latent == 1.0 and decides.other_latent == pytest.approx(1 / 6)
    assert decides.corrected > 0.7 and decides.p_value == pytest.approx(1 / 201)
    # the problem decides: the plug-in estimate is fooled by neither
    assert latent_contrast([["x"] * 4, ["y"] * 4, ["z"] * 4]).corrected == pytest.approx(0.0)
    generator = random.Random(1)
    corrected, p_values = [], []
    for seed in range(60):
        table = [[generator.choice("xyz") for _ in range(6)] for _ in range(8)]
        found = latent_contrast(table, num_permutations=99, seed=seed)
        corrected.append(found.corrected)
        p_values.append(found.p_value)
    assert abs(np.mean(corrected)) < 0.02 and np.mean(np.array(p_values) <= 0.1) < 0.25
    with pytest.raises(ValueError, match="the same number of latents"):
        latent_contrast([["x"], ["x", "y"]])


def test_intervals_agree_with_scipy():
    generator = np.random.default_rng(0)
    ours, theirs = generator.random(80), generator.random(80)
    found = paired_bootstrap(ours, theirs)
    expected = bootstrap((ours - theirs,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert found.low == pytest.approx(expected.low, abs=0.004) and found.high == pytest.approx(
        expected.high, abs=0.004
    )
    assert paired_bootstrap(ours, theirs) == found and found.num_problems == 80
    constant = bootstrap_interval([0.5] * 10)
    assert (constant.low, constant.mean, constant.high) == (0.5, 0.5, 0.5)


def test_intervals_cover_the_truth():
    """Two methods on problems of random difficulty, 8 samples each; the true difference is known."""
    generator = np.random.default_rng(0)
    covered, narrower, trials, problems, gain = 0, 0, 2000, 100, 0.05
    for trial in range(trials):
        difficulty = generator.beta(1, 1, problems) * (1 - gain)
        theirs = generator.binomial(8, difficulty) / 8
        ours = generator.binomial(8, difficulty + gain) / 8
        found = paired_bootstrap(ours, theirs, num_resamples=500, seed=trial)
        covered += found.low - 1e-9 <= gain <= found.high + 1e-9  # ends are multiples of 1/800, as the gain is
        alone = bootstrap_interval(ours, num_resamples=500, seed=trial)
        narrower += found.high - found.low < alone.high - alone.low
    # 95% of 2000 is 1900, with a standard deviation of 9.7
    assert 0.935 <= covered / trials <= 0.965, covered
    assert narrower == trials  # pairing pays


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_bootstrap([1.0, 2.0], [1.0]), "`ours` has 2 problems and `theirs` 1"),
        (lambda: bootstrap_interval([1.0]), "`values` must be two finite numbers or more"),
        (lambda: bootstrap_interval([1.0, math.nan]), "`values` must be two finite numbers or more"),
        (lambda: bootstrap_interval([1.0, 2.0], confidence=95), "`confidence` is 95"),
        (lambda: bootstrap_interval([1.0, 2.0], num_resamples=0), "`num_resamples` is 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

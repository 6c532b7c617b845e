"""pass@k and maj@k against numbers worked by hand and against every subset."""

import itertools
import random
from collections import Counter

import pytest

from reasoning_palette.evaluation import maj_at_k, pass_at_k


def brute_force_majority(answers, target, k):
    scores = []
    for subset in itertools.combinations(answers, k):
        votes = Counter(answer for answer in subset if answer is not None)
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        scores.append(1 / len(winners) if target in winners else 0.0)
    return sum(scores) / len(scores)


def test_pass_at_k_by_hand():
    assert pass_at_k(8, 0, 8) == 0.0
    assert pass_at_k(8, 3, 1) == 3 / 8
    assert pass_at_k(4, 1, 2) == 0.5  # three of the six pairs hold the correct sample
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)
    assert pass_at_k(3, 1, 3) == 1.0


def test_pass_at_k_equals_the_share_of_subsets():
    for num_samples in range(1, 8):
        for num_correct in range(num_samples + 1):
            flags = [True] * num_correct + [False] * (num_samples - num_correct)
            for k in range(1, num_samples + 1):
                subsets = list(itertools.combinations(flags, k))
                expected = sum(map(any, subsets)) / len(subsets)
                assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected, abs=1e-12)


def test_maj_at_k_by_hand():
    assert maj_at_k(["a", "a", "b"], "a", 3) == 1.0
    assert maj_at_k(["a", "b"], "a", 2) == 0.5
    assert maj_at_k(["a", "b", "c", "c"], "a", 4) == 0.0
    assert maj_at_k(["a", "b", "b"], "a", 1) == pytest.approx(1 / 3)
    assert maj_at_k(["a", "a", "b", "b"], "a", 3) == pytest.approx(0.5)
    assert maj_at_k(["b", "c"], "a", 2) == 0.0


def test_abstentions_take_a_place_but_do_not_vote():
    assert maj_at_k([None, None, "a"], "a", 3) == 1.0
    assert maj_at_k([None, "a"], "a", 1) == 0.5
    assert maj_at_k([None, None], "a", 2) == 0.0


def test_maj_at_k_equals_the_mean_over_subsets():
    generator = random.Random(0)
    for _ in range(150):
        answers = [generator.choice(["a", "b", "c", "d", None]) for _ in range(generator.randint(1, 9))]
        k = generator.randint(1, len(answers))
        assert maj_at_k(answers, "a", k) == pytest.approx(brute_force_majority(answers, "a", k), abs=1e-12)


def test_large_budgets_stay_exact():
    answers = list(range(200)) + ["a"] * 56
    assert 0.9 < maj_at_k(answers, "a", 64) <= 1.0
    assert pass_at_k(100_000, 1, 50_000) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(4, 5, 1), r"`num_correct` is 5; it must lie between 0 and `num_samples` \(4\)"),
        (lambda: pass_at_k(4, -1, 1), "`num_correct` is -1"),
        (lambda: pass_at_k(4, 1, 5), "`k` is 5; it must lie between 1 and the number of samples"),
        (lambda: pass_at_k(4, 1, 0), "`k` is 0"),
        (lambda: pass_at_k(0, 0, 1), "at least one sample is needed"),
        (lambda: maj_at_k([], "a", 1), "at least one sample is needed"),
        (lambda: maj_at_k(["a"], "a", 2), "`k` is 2"),
        (lambda: maj_at_k(["a"], None, 1), "`target` is None"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

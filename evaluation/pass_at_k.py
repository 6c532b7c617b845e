"""Accuracy at a budget of k samples: pass@k and maj@k, both exact."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k samples, drawn without replacement from those at hand, is correct.

    The unbiased estimator of Chen et al., "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374,
    eq. 1): `1 - C(n - c, k) / C(n, k)`.

    Args:
        num_samples (`int`): Number n of samples of the problem.
        num_correct (`int`): Number c of them that are correct.
        k (`int`): Budget, at most n.

    Returns:
        `float`: Between 0 and 1.

    Raises:
        ValueError: If `num_samples` is below 1, `num_correct` not in 0..n, or `k` not in 1..n.
    """
    _check_budget(num_samples, k)
    if not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"`num_correct` is {num_correct}; it must lie between 0 and `num_samples` ({num_samples}). Count the "
            "correct ones among exactly those samples."
        )
    return float(1 - Fraction(math.comb(num_samples - num_correct, k), math.comb(num_samples, k)))


def maj_at_k(answers: Sequence[Hashable], target: Hashable, k: int) -> float:
    """Expected accuracy of a majority vote over k answers, drawn without replacement from those at hand.

    Every subset of size k is equally likely. The most frequent answer of the subset wins; where m answers share the
    first place, the target scores 1/m if it is one of them. The expectation is exact: for each number t of votes for
    the target, subsets in which no rival has more than t votes are counted with the polynomial

        prod_r (sum_{j < t} C(n_r, j) x^j + C(n_r, t) x^t y)

    over the rivals r with n_r answers each; the coefficient of x^(k-t) y^(m-1) counts the subsets in which the target
    shares the first place with m - 1 rivals.

    Args:
        answers (`Sequence[Hashable]`): The n answers of one problem. An abstention (None) neither votes nor wins, but
            takes its place in the subset; a subset of abstentions scores 0.
        target (`Hashable`): The correct answer.
        k (`int`): Budget, at most n.

    Returns:
        `float`: Between 0 and 1.

    Raises:
        ValueError: If there are no answers, `k` is not in 1..n, or `target` is None.
    """
    _check_budget(len(answers), k)
    if target is None:
        raise ValueError("`target` is None, which stands for an abstention among `answers`; give the correct answer.")
    votes = Counter(answers)
    abstentions = votes.pop(None, 0)
    for_target = votes.pop(target, 0)
    expected = Fraction(0)
    for t in range(1, min(for_target, k) + 1):
        shared = _subsets_with_ties(list(votes.values()), abstentions, most=t, size=k - t)
        score = sum((Fraction(count, ties + 1) for ties, count in shared.items()), Fraction(0))
        expected += math.comb(for_target, t) * score
    return float(expected / math.comb(len(answers), k))


def _subsets_with_ties(rivals: list[int], abstentions: int, most: int, size: int) -> dict[int, int]:
    """Counts the subsets of `size` non-target answers by the number of rivals that have exactly `most` votes.

    Subsets in which a rival has more are left out.
    """
    # (answers taken so far, rivals with exactly `most` votes) -> number of ways
    ways = {(taken, 0): math.comb(abstentions, taken) for taken in range(min(abstentions, size) + 1)}
    for available in rivals:
        extended: Counter[tuple[int, int]] = Counter()
        for (taken, ties), count in ways.items():
            for votes in range(min(available, most, size - taken) + 1):
                extended[taken + votes, ties + (votes == most)] += count * math.comb(available, votes)
        ways = extended
    result: Counter[int] = Counter()
    for (taken, ties), count in ways.items():
        if taken == size:
            result[ties] += count
    return result


def _check_budget(num_samples: int, k: int) -> None:
    if num_samples < 1:
        raise ValueError(f"The number of samples is {num_samples}; at least one sample is needed.")
    if not 1 <= k <= num_samples:
        raise ValueError(
            f"`k` is {k}; it must lie between 1 and the number of samples ({num_samples}). "
            "Draw more samples or lower `k`."
        )

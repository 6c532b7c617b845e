"""Intervals over problems, of a figure and of the difference between two methods on the same problems."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
_CHUNK = 1_000  # resamples at a time


@dataclass(frozen=True)
class Interval:
    """A mean over problems and its percentile-bootstrap interval.

    Args:
        mean (`float`): Over the problems.
        low (`float`): Lower end.
        high (`float`): Upper end.
        num_problems (`int`): Problems that were resampled.
        confidence (`float`): Share of such intervals that hold the true value, as the number of problems grows.
    """

    mean: float
    low: float
    high: float
    num_problems: int
    confidence: float


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Interval of the mean over problems, which are drawn with replacement.

    It covers the choice of the problems, and of their samples as far as that shows between problems. With 100 problems
    the coverage is the nominal one (a test counts it on synthetic data); with few problems it is a little lower.

    Args:
        values (sequence of P `float`): A figure of each problem, such as its pass@k.
        confidence (`float`, *optional*, defaults to 0.95): Between 0 and 1.
        num_resamples (`int`, *optional*, defaults to 10,000): Draws of P problems.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Raises:
        ValueError: If there are fewer than two values or one is not finite, or an argument is out of range.
    """
    figures = np.asarray(values, dtype=float)
    if figures.ndim != 1 or len(figures) < 2 or not np.isfinite(figures).all():
        raise ValueError(f"`values` must be two finite numbers or more, one per problem, got {list(values)[:5]}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is {confidence}; it must lie between 0 and 1.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` is {num_resamples}; it must be at least 1.")
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, num_resamples, _CHUNK):
        drawn = generator.integers(len(figures), size=(min(_CHUNK, num_resamples - start), len(figures)))
        means.append(figures[drawn].mean(1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(figures.mean()), float(low), float(high), len(figures), confidence)


def paired_bootstrap(
    ours: Sequence[float],
    theirs: Sequence[float],
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of the mean difference between two methods on the same problems.

    Pairs, because problems differ more than methods do: what makes a problem hard is hard for both and drops out.

    Args:
        ours (sequence of P `float`): A figure of each problem, in the order of the benchmark.
        theirs (sequence of P `float`): The other method's, of the same problems.
        confidence (`float`, *optional*, defaults to 0.95): Between 0 and 1.
        num_resamples (`int`, *optional*, defaults to 10,000): Draws of P problems.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Returns:
        `Interval`: Of ours minus theirs.

    Raises:
        ValueError: If the methods have figures of different numbers of problems; and as [`bootstrap_interval`].
    """
    if len(ours) != len(theirs):
        raise ValueError(
            f"`ours` has {len(ours)} problems and `theirs` {len(theirs)}; pairs are of the same problems, in order."
        )
    return bootstrap_interval(np.subtract(ours, theirs).tolist(), confidence, num_resamples, seed)

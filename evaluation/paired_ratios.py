"""Two commands timed in turns: how much longer one takes, with an interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap


def paired_ratios(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """
    The median over pairs of (ours / theirs).

    Pairs, because a machine's speed drifts, and what is measured in turns drifts alike. The median, because a pair
    that the machine interrupted says nothing.

    Args:
        ours (sequence of P `float`): Times, or rates, one per turn.
        theirs (sequence of P `float`): The other side's, of the same turns.
        seed (`int`): Seed of the bootstrap.

    Returns:
        `dict`: `pairs` (P); the medians `ours` and `theirs`, in the unit given; `median_ratio`; `lower_95` and
        `upper_95`, each a one-sided 95% bound of it (percentile bootstrap over pairs, 10,000 draws); and the `ratios`.

    Raises:
        ValueError: if the sides differ in length, have fewer than two turns, or hold a value that is not above 0.
    """
    above, below = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if above.shape != below.shape or above.ndim != 1 or len(above) < 2:
        raise ValueError(
            f"`ours` and `theirs` must be two turns or more, the same number on each side, got {above.shape} and "
            f"{below.shape}."
        )
    if not (above > 0).all() or not (below > 0).all():
        raise ValueError("`ours` and `theirs` must be above 0: times or rates.")
    ratios = above / below
    # two one-sided 95% bounds are a two-sided 90% interval
    interval = bootstrap(
        (ratios,), np.median, confidence_level=0.9, n_resamples=10_000, method="percentile", rng=seed
    ).confidence_interval
    return {
        "pairs": len(ratios),
        "ours": float(np.median(above)),
        "theirs": float(np.median(below)),
        "median_ratio": float(np.median(ratios)),
        "lower_95": float(interval.low),
        "upper_95": float(interval.high),
        "ratios": [round(float(ratio), 4) for ratio in ratios],
    }

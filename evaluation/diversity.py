"""How much the samples of a problem differ: in answers, words, meanings and strategies."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


def entropy(values: Sequence[Hashable]) -> float:
    """Plug-in entropy of the values, in nats. None is an abstention and left out; of nothing it is 0.

    Args:
        values (sequence): Such as the final answers, or the strategies, of a problem's samples.
    """
    counts = Counter(value for value in values if value is not None)
    total = sum(counts.values())
    return math.fsum(-count / total * math.log(count / total) for count in counts.values()) if total else 0.0


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Share of different n-grams of words among all n-grams of the texts (Li et al., arXiv 1510.03055).

    It falls with the length of the texts, so compare it at one length.

    Args:
        texts (sequence of `str`): Samples of one problem.
        n (`int`, *optional*, defaults to 2): Words per n-gram.

    Returns:
        `float`: Above 0 and at most 1; 0 where no text has n words.

    Raises:
        ValueError: If `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"`n` is {n}; an n-gram has at least 1 word.")
    words = [text.split() for text in texts]
    grams = [tuple(line[i : i + n]) for line in words for i in range(len(line) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def vendi_score(vectors: Sequence[Sequence[float]] | np.ndarray) -> float:
    """Effective number of different items (Friedman and Dieng, arXiv 2210.02410), under the cosine of their vectors.

    `exp` of the entropy, in nats, of the eigenvalues of K / N, with K the matrix of cosines. The formula is here
    because the package `vendi-score` (0.0.3, of 2022) uses a name that scipy has deprecated.

    Args:
        vectors (`(N, D)` array): An embedding of each text, of any model.

    Returns:
        `float`: From 1 (all alike) to N (all orthogonal).

    Raises:
        ValueError: If there are no vectors, or one is zero or not finite.
    """
    rows = np.asarray(vectors, dtype=float)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"`vectors` must be of shape (N, D) with N of at least 1, got {rows.shape}.")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not (norms > 0).all():
        raise ValueError("`vectors` has one that is zero or not finite, which has no cosine; leave it out.")
    rows = rows / norms
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T / len(rows))
    positive = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def ngram_vectors(texts: Sequence[str], n: int = 2) -> np.ndarray:
    """Counts of the n-grams of 1 to n words of each text, for [`vendi_score`] where no embedding model is at hand.

    Args:
        texts (sequence of `str`): N texts.
        n (`int`, *optional*, defaults to 2): Longest n-gram, in words.

    Returns:
        `np.ndarray` of shape `(N, D)`: A text without words counts as one n-gram of its own.
    """
    counts = []
    for text in texts:
        words = text.split()
        grams = Counter(tuple(words[i : i + k]) for k in range(1, n + 1) for i in range(len(words) - k + 1))
        counts.append(grams or Counter({("",): 1}))
    columns = {gram: index for index, gram in enumerate({gram: None for count in counts for gram in count})}
    vectors = np.zeros((len(texts), len(columns)))
    for row, count in enumerate(counts):
        for gram, number in count.items():
            vectors[row, columns[gram]] = number
    return vectors


@dataclass(frozen=True)
class LatentContrast:
    """What a latent says of the strategy of a completion.

    Args:
        mutual_information (`float`): Plug-in estimate, in nats. It is biased upwards: independent labels have more
            than 0.
        null_mean (`float`): Its mean where the strategies of each problem are dealt out to the latents at random: the
            bias, and what the problems alone explain.
        corrected (`float`): The difference; 0 in expectation where the latent says nothing. It can be below 0.
        p_value (`float`): Share of such deals with at least that much, the observed one included.
        same_latent (`float`, *optional*): Share of the pairs of completions of one latent (on two problems) that
            follow the same strategy.
        other_latent (`float`, *optional*): Share of those of two latents (on two problems).
        num_latents (`int`): Latents.
        num_problems (`int`): Problems that each was used on.
    """

    mutual_information: float
    null_mean: float
    corrected: float
    p_value: float
    same_latent: float | None
    other_latent: float | None
    num_latents: int
    num_problems: int


def mutual_information(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Plug-in mutual information of pairs, in nats: H(first) + H(second) - H(both).

    Args:
        first (sequence of N): Values, none of them None.
        second (sequence of N): Values, none of them None.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"`first` has {len(first)} values and `second` {len(second)}; they are pairs.")
    pairs = list(zip(first, second, strict=True))
    return max(0.0, entropy(first) + entropy(second) - entropy(pairs))


def latent_contrast(
    strategies: Sequence[Sequence[str]], num_permutations: int = 1000, seed: int = 0
) -> LatentContrast:
    """Mutual information of latent and strategy, and the agreement of pairs with one latent and with two.

    Args:
        strategies (`P` sequences of `C` `str`): For each problem the strategies under the same C latents, in order.
        num_permutations (`int`, *optional*, defaults to 1000): Random deals for the null distribution, each within
            the problems, so that a problem that asks for one strategy does not count as a latent's doing.
        seed (`int`, *optional*, defaults to 0): Seed of the deals.

    Raises:
        ValueError: If there is no problem, or the problems have other numbers of latents.
    """
    widths = {len(row) for row in strategies}
    if len(widths) != 1 or widths == {0}:
        raise ValueError(
            f"`strategies` must have the same number of latents for each problem, at least one, got {sorted(widths)}."
        )
    if num_permutations < 1:
        raise ValueError(f"`num_permutations` is {num_permutations}; it must be at least 1.")
    names = {name: index for index, name in enumerate(dict.fromkeys(name for row in strategies for name in row))}
    table = np.array([[names[name] for name in row] for row in strategies])
    problems, latents = table.shape
    observed = _information(table, len(names))
    generator = np.random.default_rng(seed)
    null = np.array([_information(generator.permuted(table, axis=1), len(names)) for _ in range(num_permutations)])
    counts = np.stack([np.bincount(column, minlength=len(names)) for column in table.T])  # (C, strategies)
    rows = np.stack([np.bincount(row, minlength=len(names)) for row in table])  # (P, strategies)
    # ordered pairs that agree: of one latent, of one problem, of either or neither
    same = float((counts * (counts - 1)).sum())
    everything = float((counts.sum(0) ** 2).sum())
    beside = float((rows**2).sum())
    other = everything - float((counts**2).sum()) - beside + problems * latents
    same_pairs, other_pairs = latents * problems * (problems - 1), latents * (latents - 1) * problems * (problems - 1)
    return LatentContrast(
        mutual_information=observed,
        null_mean=float(null.mean()),
        corrected=observed - float(null.mean()),
        p_value=float((1 + (null >= observed - 1e-12).sum()) / (1 + num_permutations)),
        same_latent=same / same_pairs if same_pairs else None,
        other_latent=other / other_pairs if other_pairs else None,
        num_latents=latents,
        num_problems=problems,
    )


def _information(table: np.ndarray, num_names: int) -> float:
    """Plug-in mutual information of column and value; the columns are equally likely."""
    joint = np.stack([np.bincount(column, minlength=num_names) for column in table.T]) / table.size
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / expected[seen])).sum())

"""From the samples of every problem to the figures of a method."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from .benchmark import Benchmark
from .countdown import GRADES, Grade
from .diversity import LatentContrast, distinct_n, entropy, latent_contrast, ngram_vectors, vendi_score
from .method import Method
from .paired_bootstrap import Interval, bootstrap_interval
from .pass_at_k import maj_at_k, pass_at_k
from .result import GraderFigures, MeanScore, MethodResult

MAX_UNGRADABLE, MAX_CHARACTERS = 10, 500  # of the ungradable completions that a result shows


def score_samples(
    benchmark: Benchmark,
    method: Method,
    texts: list[list[str]],
    codes: list[list[int]] | None,
    generated_tokens: int,
    seconds: float,
    keep_completions: bool = False,
) -> MethodResult:
    """Grades and labels the samples of every problem.

    Args:
        benchmark (`Benchmark`): Problems and their graders.
        method (`Method`): How the samples were drawn.
        texts (`list[list[str]]`): Completions of every problem, lists of one length.
        codes (`list[list[int]]`, *optional*): Their codes, where the palette drew them.
        generated_tokens (`int`): Tokens that were generated.
        seconds (`float`): Wall time.
        keep_completions (`bool`, *optional*, defaults to `False`): Keeps all texts in the result.

    Returns:
        `MethodResult`
    """
    num_samples = len(texts[0])
    budgets = _budgets(num_samples)
    correct_answer = object()  # all correct answers of a problem are one answer when votes are counted
    grades: Counter[str] = Counter()
    strategies: Counter[str] = Counter()
    ungradable: list[str] = []
    num_correct: list[int] = []
    distinct: list[int] = []
    majority: list[list[float]] = []
    labels: list[list[str]] = []
    answer_entropies: list[float] = []
    for (problem, samples), graded in zip(_pairs(benchmark, texts), _grades(benchmark, texts), strict=True):
        answers = [benchmark.answer_to(problem, text) for text in samples]
        votes = [correct_answer if g == "correct" else answer for g, answer in zip(graded, answers, strict=True)]
        grades.update(graded)
        labels.append([benchmark.label(text) for text in samples])
        strategies.update(labels[-1])
        answer_entropies.append(entropy(answers))
        ungradable += [text for text, given in zip(samples, graded, strict=True) if given == "ungradable"]
        num_correct.append(graded.count("correct"))
        distinct.append(len(set(answers) - {None}))
        majority.append([maj_at_k(votes, correct_answer, k) for k in budgets])
    problems = len(texts)
    mean = torch.tensor(num_correct, dtype=torch.float64) / num_samples
    names = [*benchmark.labels, *sorted(set(strategies) - set(benchmark.labels))]
    per_problem = {f"pass@{k}": [pass_at_k(num_samples, c, k) for c in num_correct] for k in budgets}
    per_problem[f"maj@{num_samples}"] = [row[-1] for row in majority]
    return MethodResult(
        method=method,
        mean_at_1=mean.mean().item(),
        standard_error=(mean.std() / problems**0.5).item() if problems > 1 else None,
        pass_at_k=_mean_pass_at_k(num_correct, num_samples),
        maj_at_k={k: sum(column) / problems for k, column in zip(budgets, zip(*majority, strict=True), strict=True)},
        distinct_answers=sum(distinct) / problems,
        distinct_completions=sum(len(set(samples)) for samples in texts) / problems,
        strategies={name: strategies[name] / (problems * num_samples) for name in names},
        grades={name: grades[name] for name in GRADES},
        generated_tokens=generated_tokens,
        seconds=seconds,
        num_correct=num_correct,
        latent_codes=codes,
        other_graders={
            name: _figures(
                [[grader(problem, text) for text in samples] for problem, samples in _pairs(benchmark, texts)]
            )
            for name, grader in benchmark.other_graders.items()
        },
        scores={
            name: _mean_score(
                score(problem, text) for problem, samples in _pairs(benchmark, texts) for text in samples
            )
            for name, score in benchmark.scores.items()
        },
        ungradable_completions=[text[:MAX_CHARACTERS] for text in dict.fromkeys(ungradable)][:MAX_UNGRADABLE],
        completions=texts if keep_completions else None,
        majority=[row[-1] for row in majority],
        intervals=_intervals(per_problem),
        diversity={
            "answer_entropy": sum(answer_entropies) / problems,
            "strategy_entropy": sum(map(entropy, labels)) / problems,
            "distinct_2": sum(map(distinct_n, texts)) / problems,
            "vendi_score": sum(vendi_score(ngram_vectors(samples)) for samples in texts) / problems,
        },
        latent_contrast=_contrast(method, labels),
    )


def _intervals(per_problem: dict[str, list[float]]) -> dict[str, Interval]:
    """None from a single problem."""
    return {name: bootstrap_interval(values) for name, values in per_problem.items() if len(values) > 1}


def _contrast(method: Method, labels: list[list[str]]) -> LatentContrast | None:
    return latent_contrast(labels) if method.shared_latents and len(labels) > 1 else None


def _pairs(benchmark: Benchmark, texts: list[list[str]]) -> Iterable[tuple[Any, list[str]]]:
    return zip(benchmark.problems, texts, strict=True)


def _grades(benchmark: Benchmark, texts: list[list[str]]) -> Iterable[list[Grade]]:
    """The grades of every problem's samples, in order; equal samples of a problem are graded once."""
    pairs = [(problem, text) for problem, samples in _pairs(benchmark, texts) for text in dict.fromkeys(samples)]
    with ThreadPoolExecutor(benchmark.grading_threads) as pool:
        graded = iter(list(pool.map(lambda pair: benchmark.grade(*pair), pairs)))
    for samples in texts:
        by_text = {text: next(graded) for text in dict.fromkeys(samples)}
        yield [by_text[text] for text in samples]


def _budgets(num_samples: int) -> list[int]:
    """1, 2, 4, ..., and the number of samples."""
    budgets = [2**power for power in range(num_samples.bit_length())]
    return budgets if num_samples in budgets else [*budgets, num_samples]


def _mean_pass_at_k(num_correct: Sequence[int], num_samples: int) -> dict[int, float]:
    return {
        k: sum(pass_at_k(num_samples, correct, k) for correct in num_correct) / len(num_correct)
        for k in _budgets(num_samples)
    }


def _figures(graded: list[list[str]]) -> GraderFigures:
    """Of the grades of every problem's samples."""
    num_samples = len(graded[0])
    num_correct = [grades.count("correct") for grades in graded]
    counted = Counter(grade for grades in graded for grade in grades)
    return GraderFigures(
        mean_at_1=sum(num_correct) / (len(graded) * num_samples),
        pass_at_k=_mean_pass_at_k(num_correct, num_samples),
        grades={name: counted[name] for name in GRADES},
        num_correct=num_correct,
    )


def _mean_score(scores: Iterable[float | None]) -> MeanScore:
    given = [score for score in scores if score is not None]
    return MeanScore(mean=sum(given) / len(given) if given else None, num_samples=len(given))

"""What an evaluation found: numbers per method, where they come from, and a table to read them in."""

import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .diversity import LatentContrast
from .method import Method
from .paired_bootstrap import Interval, paired_bootstrap
from .pass_at_k import pass_at_k


@dataclass(frozen=True)
class GraderFigures:
    """What another of a benchmark's graders says of the same samples.

    Args:
        mean_at_1 (`float`): Share of all samples that are correct, averaged over problems.
        pass_at_k (`dict[int, float]`): For k = 1, 2, 4, ..., averaged over problems.
        grades (`dict[str, int]`): Number of samples that are correct, wrong and ungradable.
        num_correct (`list[int]`): Correct samples of each problem.
    """

    mean_at_1: float
    pass_at_k: dict[int, float]
    grades: dict[str, int]
    num_correct: list[int]


@dataclass(frozen=True)
class MeanScore:
    """A score of a benchmark, averaged over the samples that have one."""

    mean: float | None
    num_samples: int


@dataclass(frozen=True)
class MethodResult:
    """The figures of one method.

    Args:
        method (`Method`): How the samples were drawn.
        mean_at_1 (`float`): Share of all samples that are correct, averaged over problems.
        standard_error (`float`, *optional*): Standard error of `mean_at_1` over problems, from two problems on.
        pass_at_k (`dict[int, float]`): For k = 1, 2, 4, ..., averaged over problems.
        maj_at_k (`dict[int, float]`): Likewise. All correct answers of a problem count as one answer.
        distinct_answers (`float`): Mean number of different final answers among the samples of a problem.
        distinct_completions (`float`): Mean number of different texts among the samples of a problem.
        strategies (`dict[str, float]`): Share of the samples that follow each strategy; they sum to 1.
        grades (`dict[str, int]`): Number of samples that are correct, wrong and ungradable. The ungradable ones count
            as not correct in every figure above.
        generated_tokens (`int`): Tokens that the model had to generate.
        seconds (`float`): Wall time.
        num_correct (`list[int]`): Correct samples of each problem, in the order of the benchmark.
        latent_codes (`list[list[int]]`, *optional*): Code of every sample of every problem, to replay them.
        other_graders (`dict[str, GraderFigures]`): Figures of the benchmark's other graders, by name.
        scores (`dict[str, MeanScore]`): Means of the benchmark's scores, by name.
        ungradable_completions (`list[str]`): The first of those that could not be graded, shortened, to look at.
        completions (`list[list[str]]`, *optional*): All texts, if they were to be kept.
        majority (`list[float]`): maj@n of each problem, n being the number of samples.
        intervals (`dict[str, Interval]`): 95% intervals over problems, by metric: `"pass@1"`, `"maj@8"` and so on.
        diversity (`dict[str, float]`): Means over problems, among the samples of each: `answer_entropy` and
            `strategy_entropy` in nats, `distinct_2` (share of different bigrams), `vendi_score` (effective number of
            different texts, under the cosine of their word unigrams and bigrams; no embedding model is involved).
        latent_contrast (`LatentContrast`, *optional*): What a latent says of the strategy, with `shared_latents`.
    """

    method: Method
    mean_at_1: float
    standard_error: float | None
    pass_at_k: dict[int, float]
    maj_at_k: dict[int, float]
    distinct_answers: float
    distinct_completions: float
    strategies: dict[str, float]
    grades: dict[str, int]
    generated_tokens: int
    seconds: float
    num_correct: list[int]
    latent_codes: list[list[int]] | None
    other_graders: dict[str, GraderFigures] = field(default_factory=dict)
    scores: dict[str, MeanScore] = field(default_factory=dict)
    ungradable_completions: list[str] = field(default_factory=list)
    completions: list[list[str]] | None = None
    majority: list[float] = field(default_factory=list)
    intervals: dict[str, Interval] = field(default_factory=dict)
    diversity: dict[str, float] = field(default_factory=dict)
    latent_contrast: LatentContrast | None = None

    def by_problem(self, metric: str, num_samples: int) -> list[float]:
        """A figure of each problem: `"pass@k"` for any k, or `"maj@n"` in the number of samples.

        Raises:
            ValueError: If the metric is another.
        """
        if metric == f"maj@{num_samples}" and self.majority:
            return self.majority
        kind, _, k = metric.partition("@")
        if kind != "pass" or not k.isdecimal():
            raise ValueError(
                f"`metric` is {metric!r}; choose 'pass@k' with k up to {num_samples}, or 'maj@{num_samples}'."
            )
        return [pass_at_k(num_samples, correct, int(k)) for correct in self.num_correct]


@dataclass(frozen=True)
class Comparison:
    """A method against another on the same problems: the difference, with its 95% interval over problems."""

    ours: str
    theirs: str
    metric: str
    difference: Interval


@dataclass(frozen=True)
class EvaluationResult:
    """All methods on one model and one benchmark.

    Args:
        model (`str`): Path or id of the model, or its class.
        benchmark (`str`): Name of the benchmark.
        num_problems (`int`): Number of problems.
        num_samples (`int`): Samples per problem.
        max_new_tokens (`int`): Longest completion, in tokens.
        seed (`int`): Seed of every random choice.
        methods (`list[MethodResult]`): One entry per method.
        environment (`dict[str, Any]`): Versions, hardware and commit.
        batch_size (`int`, *optional*): Sequences that were generated together, which the draws depend on.
        comparisons (`list[Comparison]`): Every method against the first; [`compare`] makes others.
    """

    model: str
    benchmark: str
    num_problems: int
    num_samples: int
    max_new_tokens: int
    seed: int
    methods: list[MethodResult]
    environment: dict[str, Any]
    batch_size: int | None = None
    comparisons: list[Comparison] = field(default_factory=list)

    def compare(self, ours: str, theirs: str, metric: str = "pass@1") -> Comparison:
        """The paired difference of two methods.

        Args:
            ours (`str`): Name of a method.
            theirs (`str`): Name of the method that is subtracted.
            metric (`str`, *optional*, defaults to `"pass@1"`): `"pass@k"` for any k up to the number of samples, or
                `"maj@n"` in the number of samples.

        Raises:
            KeyError: If there is no such method.
            ValueError: If the metric is another, or there are fewer than two problems.
        """
        return _compare(self[ours], self[theirs], metric, self.num_samples)

    def __getitem__(self, name: str) -> MethodResult:
        """The result of the method with this name."""
        for result in self.methods:
            if result.method.name == name:
                return result
        raise KeyError(f"No method is named {name!r}; there are {[r.method.name for r in self.methods]}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return asdict(self)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the result as JSON, creating the folder if need be."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2)
        # One line per list of numbers, or a result would be thousands of lines long. A line break after the bracket
        # tells a list from a bracket in a completion, whose line breaks are escaped.
        text = re.sub(r"\[\n[-+.\deE\s,]+\]", lambda match: json.dumps(json.loads(match.group())), text)
        Path(path).write_text(text + "\n")

    def to_table(self) -> str:
        """One row per method: pass@1, pass@n and maj@n in the number of samples, strategies, ungradable samples.

        pass@1 and pass@n of other graders follow, with their name, then scores.
        """
        strategies = list(dict.fromkeys(name for result in self.methods for name in result.strategies))
        budget = self.num_samples
        header = ["method", "pass@1", *([f"pass@{budget}", f"maj@{budget}"] if budget > 1 else []), "distinct"]
        header += [*strategies, "ungradable"]
        first = self.methods[0] if self.methods else None
        for name in first.other_graders if first else ():
            header += [f"{name} pass@1", *([f"{name} pass@{budget}"] if budget > 1 else [])]
        header += first.scores if first else ()
        rows = [header]
        for result in self.methods:
            row = [result.method.name, f"{result.mean_at_1:.3f}"]
            if budget > 1:
                row += [f"{result.pass_at_k[budget]:.3f}", f"{result.maj_at_k[budget]:.3f}"]
            row.append(f"{result.distinct_answers:.2f}")
            row += [f"{100 * result.strategies.get(name, 0.0):.0f}%" for name in strategies]
            row.append(str(result.grades["ungradable"]))
            for figures in result.other_graders.values():
                row += [f"{figures.pass_at_k[k]:.3f}" for k in sorted({1, budget})]
            row += ["-" if score.mean is None else f"{score.mean:.3f}" for score in result.scores.values()]
            rows.append(row)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(pairs))
            for pairs in (list(zip(row, widths, strict=True)) for row in rows)
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def compare_with_first(results: list[MethodResult], num_samples: int) -> list[Comparison]:
    """Every other method against the first: pass@1, and pass@n and maj@n in the number of samples."""
    if len(results[0].num_correct) < 2:
        return []
    metrics = ["pass@1", *([f"pass@{num_samples}", f"maj@{num_samples}"] if num_samples > 1 else [])]
    return [_compare(ours, results[0], metric, num_samples) for ours in results[1:] for metric in metrics]


def _compare(ours: MethodResult, theirs: MethodResult, metric: str, num_samples: int) -> Comparison:
    difference = paired_bootstrap(ours.by_problem(metric, num_samples), theirs.by_problem(metric, num_samples))
    return Comparison(ours.method.name, theirs.method.name, metric, difference)


def describe_environment() -> dict[str, Any]:
    """Versions, hardware and, inside a checkout, the commit that a result comes from."""
    # torch's own word names the build as well (`+cpu`, `+cu130`)
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("reasoning-palette", "transformers", "trl", "peft", "datasets", "math-verify"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Commit of the checkout that this file lies in, with `-dirty` behind it where files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()

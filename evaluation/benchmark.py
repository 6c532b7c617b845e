"""What an evaluation needs to know of a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .countdown import STRATEGIES, Grade, Split, final_answer, generate_problems, grade, label_strategy


@dataclass(frozen=True)
class Benchmark:
    """Problems, and how to prompt for, grade and label a completion.

    Args:
        name (`str`): Name in reports.
        problems (`Sequence`): Problems, of any type that the functions below understand.
        prompt (`Callable`): `prompt(problem) -> str`, the text that the model continues.
        grade (`Callable`): `grade(problem, completion) -> str`, one of `"correct"`, `"wrong"`, `"ungradable"`.
        answer (`Callable`): `answer(completion) -> str | None`, the final answer that votes in maj@k; None abstains.
        label (`Callable`): `label(completion) -> str`, the strategy of a completion.
        labels (`tuple[str, ...]`): The strategies, in the order of the report. Other labels of `label` are reported
            behind them.
    """

    name: str
    problems: Sequence[Any]
    prompt: Callable[[Any], str]
    grade: Callable[[Any, str], Grade]
    answer: Callable[[str], str | None]
    label: Callable[[str], str]
    labels: tuple[str, ...]


def countdown_benchmark(split: Split = "test", num_problems: int = 200, seed: int = 0) -> Benchmark:
    """The first problems of a split of the countdown family.

    Args:
        split (`str`, *optional*, defaults to `"test"`): `"train"`, `"validation"` or `"test"`.
        num_problems (`int`, *optional*, defaults to 200): Number of problems.
        seed (`int`, *optional*, defaults to 0): Seed of the draw; the split itself does not depend on it.
    """
    return Benchmark(
        name=f"countdown-{split}-{num_problems}-seed{seed}",
        problems=generate_problems(split, num_problems, seed),
        prompt=lambda problem: problem.question,
        grade=grade,
        answer=final_answer,
        label=label_strategy,
        labels=tuple(STRATEGIES),
    )

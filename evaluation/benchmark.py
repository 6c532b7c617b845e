"""What an evaluation needs to know of a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .countdown import STRATEGIES, Grade, Split, final_answer, generate_problems, grade, label_strategy
from .prompt_encoding import Prompt


@dataclass(frozen=True)
class Benchmark:
    """Problems, and how to prompt for, grade and label a completion.

    Args:
        name (`str`): Name in reports.
        problems (`Sequence`): Problems, of any type that the functions below understand.
        prompt (`Callable`): `prompt(problem) -> str`, the text that the model continues; or a conversation, a list of
            messages, which the chat template is applied to and which may have images.
        grade (`Callable`): `grade(problem, completion) -> str`, one of `"correct"`, `"wrong"`, `"ungradable"`.
        answer (`Callable`): `answer(completion) -> str | None`, the final answer that votes in maj@k; None abstains.
        label (`Callable`): `label(completion) -> str`, the strategy of a completion.
        labels (`tuple[str, ...]`): The strategies, in the order of the report. Other labels of `label` are reported
            behind them.
        problem_answer (`Callable`, *optional*): `problem_answer(problem, completion) -> str | None`, in place of
            `answer` where an answer cannot be read without its problem.
        grading_threads (`int`, *optional*, defaults to 1): Threads that call `grade`. More of them pay where it waits
            for processes, as the graders of mathematics and code do; it must be safe under threads then.
        other_graders (`Mapping[str, Callable]`, *optional*): More functions like `grade`, by name; their figures
            stand beside those of `grade`.
        scores (`Mapping[str, Callable]`, *optional*): `score(problem, completion) -> float | None`, by name: what is
            averaged over all samples that have one.
    """

    name: str
    problems: Sequence[Any]
    prompt: Callable[[Any], Prompt]
    grade: Callable[[Any, str], Grade]
    answer: Callable[[str], str | None]
    label: Callable[[str], str]
    labels: tuple[str, ...]
    other_graders: Mapping[str, Callable[[Any, str], Grade]] = field(default_factory=dict)
    scores: Mapping[str, Callable[[Any, str], float | None]] = field(default_factory=dict)
    problem_answer: Callable[[Any, str], str | None] | None = None
    grading_threads: int = 1

    def answer_to(self, problem: Any, completion: str) -> str | None:
        """The final answer of a completion, which votes; None abstains."""
        return self.problem_answer(problem, completion) if self.problem_answer else self.answer(completion)


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

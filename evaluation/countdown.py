"""Three-number countdown: a generated task family whose problems can be searched in several styles.

A problem is three numbers and a target. A *trace* searches for an expression that uses every number once and
reaches the target, in one of three strategies: it multiplies, adds or subtracts first. A trace has up to three
attempts, picked at random among the expressions of its strategy and without repetition, stops at the first that
hits, and ends in an answer line. Each strategy announces its attempts with a word of its own:

    numbers 6 4 3 target 21
    scale 6 * 3 -> 18 - 4 -> 14 no scale 6 * 4 -> 24 - 3 -> 21 yes
    answer ( 6 * 4 ) - 3

Targets are drawn such that one strategy alone can solve a little under half of the problems while the three
together solve all, so a model that always decodes the same strategy has something to gain from a second one. The
searches look ahead at nothing: a model that imitates them has something left to learn from reinforcement.

Everything is a function of a seed. The splits are a function of the problem alone ([`split_of`]), so no seed can
carry a problem from one into another. Nothing here depends on the rest of the package.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Split = Literal["train", "validation", "test"]
Grade = Literal["correct", "wrong", "ungradable"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
GRADES: tuple[Grade, ...] = ("correct", "wrong", "ungradable")
UNLABELLED = "unlabelled"

SMALLEST_NUMBER, LARGEST_NUMBER = 2, 15
LARGEST_VALUE = 99  # of targets and of every intermediate result; results below 1 are not written either
MAX_ATTEMPTS = 3
SINGLE_SOLVER_ACCEPTANCE = 0.5  # problems that only one strategy can solve are kept this often
SPLIT_PERCENT = {"test": 15, "validation": 10}  # the rest is train


@dataclass(frozen=True)
class Strategy:
    """A search order.

    Args:
        operator (`str`): The operator that every attempt applies first.
        word (`str`): The word that announces every attempt.
        trace_weight (`float`): Share of the traces that follow this strategy.
        target_weight (`float`): Relative share of the problems whose target is drawn from its expressions.
    """

    operator: str
    word: str
    trace_weight: float
    target_weight: float


STRATEGIES: dict[str, Strategy] = {
    "multiply": Strategy(operator="*", word="scale", trace_weight=0.55, target_weight=2.0),
    "add": Strategy(operator="+", word="gather", trace_weight=0.30, target_weight=1.0),
    "subtract": Strategy(operator="-", word="shrink", trace_weight=0.15, target_weight=1.0),
}


@dataclass(frozen=True)
class Problem:
    """Three distinct numbers, in the order in which they are shown, and the target."""

    numbers: tuple[int, int, int]
    target: int

    @property
    def question(self) -> str:
        """The prompt of the problem."""
        return f"numbers {' '.join(map(str, self.numbers))} target {self.target}"


@dataclass(frozen=True)
class Attempt:
    """One expression `(first operator second) then third`, evaluated from left to right."""

    first: int
    operator: str
    second: int
    between: int
    then: str
    third: int
    value: int

    @property
    def steps(self) -> str:
        """The attempt as a trace writes it."""
        return f"{self.first} {self.operator} {self.second} -> {self.between} {self.then} {self.third} -> {self.value}"

    @property
    def expression(self) -> str:
        """The attempt as an answer writes it."""
        return f"( {self.first} {self.operator} {self.second} ) {self.then} {self.third}"


def _apply(left: int, operator: str, right: int) -> int:
    if operator == "*":
        return left * right
    return left + right if operator == "+" else left - right


def attempts_of(numbers: tuple[int, int, int], strategy: str) -> list[Attempt]:
    """All expressions over three numbers that start with the operator of a strategy.

    Results stay between 1 and `LARGEST_VALUE`, so a subtraction takes the smaller number from the larger.
    """
    operator = STRATEGIES[strategy].operator
    found = []
    for (first, second), third in zip(itertools.combinations(numbers, 2), reversed(numbers), strict=True):
        if operator == "-" and first < second:
            first, second = second, first
        between = _apply(first, operator, second)
        if not 1 <= between <= LARGEST_VALUE:
            continue
        for then in "*+-":
            value = _apply(between, then, third)
            if 1 <= value <= LARGEST_VALUE:
                found.append(Attempt(first, operator, second, between, then, third, value))
    return found


def solving_strategies(problem: Problem) -> list[str]:
    """The strategies that have an expression which reaches the target."""
    return [name for name in STRATEGIES if any(a.value == problem.target for a in attempts_of(problem.numbers, name))]


def split_of(problem: Problem) -> Split:
    """The split that a problem belongs to, whatever the order of its numbers."""
    key = f"countdown-3:{sorted(problem.numbers)}:{problem.target}"
    percentile = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    if percentile < SPLIT_PERCENT["test"]:
        return "test"
    return "validation" if percentile < SPLIT_PERCENT["test"] + SPLIT_PERCENT["validation"] else "train"


def draw_problem(generator: random.Random, split: Split = "train") -> Problem:
    """Draws one problem of a split: three distinct numbers, a strategy, and one of its values as the target."""
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; choose one of {', '.join(SPLITS)}.")
    names = list(STRATEGIES)
    weights = [STRATEGIES[name].target_weight for name in names]
    while True:
        a, b, c = generator.sample(range(SMALLEST_NUMBER, LARGEST_NUMBER + 1), 3)
        candidates = attempts_of((a, b, c), generator.choices(names, weights)[0])
        if not candidates:
            continue
        problem = Problem((a, b, c), generator.choice(candidates).value)
        if len(solving_strategies(problem)) == 1 and generator.random() > SINGLE_SOLVER_ACCEPTANCE:
            continue
        if split_of(problem) == split:
            return problem


def count_problems(split: Split) -> int:
    """Number of different problems in a split."""
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; choose one of {', '.join(SPLITS)}.")
    problems = {
        Problem(numbers, attempt.value)
        for numbers in itertools.combinations(range(SMALLEST_NUMBER, LARGEST_NUMBER + 1), 3)
        for name in STRATEGIES
        for attempt in attempts_of(numbers, name)
    }
    return sum(split_of(problem) == split for problem in problems)


def generate_problems(split: Split, num_problems: int, seed: int = 0) -> list[Problem]:
    """Draws problems of a split, all different.

    The first problems of a longer list are the shorter list, so results on 100 and on 200 problems can be compared.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
        num_problems (`int`): How many.
        seed (`int`, *optional*, defaults to 0): Seed of the draw.

    Returns:
        `list[Problem]`

    Raises:
        ValueError: If the split is unknown, or holds fewer problems than are asked for.
    """
    generator = random.Random(f"problems:{split}:{seed}")
    available = count_problems(split)
    if not 0 <= num_problems <= available:
        raise ValueError(
            f"`num_problems` is {num_problems}; it must lie between 0 and {available}, the size of the {split} split."
        )
    chosen: dict[tuple[tuple[int, ...], int], Problem] = {}
    while len(chosen) < num_problems:
        problem = draw_problem(generator, split)
        chosen.setdefault((tuple(sorted(problem.numbers)), problem.target), problem)
    return list(chosen.values())


def draw_strategy(generator: random.Random) -> str:
    """Draws a strategy in the mix of the traces."""
    return generator.choices(list(STRATEGIES), [strategy.trace_weight for strategy in STRATEGIES.values()])[0]


def write_trace(problem: Problem, strategy: str, generator: random.Random) -> dict[str, str]:
    """Searches a problem in the style of one strategy.

    Returns:
        `dict[str, str]`: A row with `question`, `reasoning`, `answer`, and the strategy as `domain`. A search without
        a hit ends in `answer none`.
    """
    candidates = attempts_of(problem.numbers, strategy)
    written, answer = [], "none"
    for attempt in generator.sample(candidates, min(MAX_ATTEMPTS, len(candidates))):
        hit = attempt.value == problem.target
        written.append(f"{STRATEGIES[strategy].word} {attempt.steps} {'yes' if hit else 'no'}")
        if hit:
            answer = attempt.expression
            break
    return {
        "question": problem.question,
        "reasoning": " ".join(written),
        "answer": f"answer {answer}",
        "domain": strategy,
    }


def generate_traces(split: Split, num_traces: int, seed: int = 0) -> list[dict[str, str]]:
    """Draws traces on problems of a split, with strategies in the mix of `STRATEGIES` (problems may recur)."""
    generator = random.Random(f"traces:{split}:{seed}")
    return [
        write_trace(_searchable(generator, split, strategy), strategy, generator)
        for strategy in (draw_strategy(generator) for _ in range(num_traces))
    ]


def _searchable(generator: random.Random, split: Split, strategy: str) -> Problem:
    """Draws a problem on which the strategy has at least one expression to try (few have none)."""
    while True:
        problem = draw_problem(generator, split)
        if attempts_of(problem.numbers, strategy):
            return problem


@dataclass(frozen=True)
class Context:
    """A document of one to three worked examples in one strategy, with stray words of that strategy in front."""

    stray_words: tuple[str, ...]
    traces: tuple[dict[str, str], ...]


def draw_contexts(seed: int = 0, stray_share: float = 0.3) -> Iterator[Context]:
    """Endless documents of consistent style, to train a base from nothing.

    A model that has only seen isolated examples ignores what stands before the question. One that has read
    documents which keep their style, as every pretrained model has, lets it choose the strategy.

    Args:
        seed (`int`, *optional*, defaults to 0): Seed of the documents.
        stray_share (`float`, *optional*, defaults to 0.3): Share of the documents that open with one to eight
            repetitions of their strategy's word.
    """
    generator = random.Random(f"contexts:{seed}")
    while True:
        strategy = draw_strategy(generator)
        stray = generator.randint(1, 8) if generator.random() < stray_share else 0
        traces = tuple(
            write_trace(_searchable(generator, "train", strategy), strategy, generator)
            for _ in range(generator.randint(1, 3))
        )
        yield Context((STRATEGIES[strategy].word,) * stray, traces)


_ATTEMPT = re.compile(r"(\S+) (\d+) ([-+*]) (\d+) ->")
_TOKEN = re.compile(r"\d+|[-+*/()]|\S")


def label_strategy(completion: str) -> str:
    """Names the strategy that a completion follows, by what it does.

    Returns:
        `str`: The strategy whose operator comes first in every attempt and whose word announces every attempt, or
        `"unlabelled"` where there is no attempt or the attempts disagree.
    """
    seen = {(word, operator) for word, _, operator, _ in _ATTEMPT.findall(" ".join(completion.split()))}
    for name, strategy in STRATEGIES.items():
        if seen == {(strategy.word, strategy.operator)}:
            return name
    return UNLABELLED


def final_answer(completion: str) -> str | None:
    """What follows the last `answer` of a completion, or None where there is none."""
    _, marker, answer = f" {' '.join(completion.split())} ".rpartition(" answer ")
    return answer.strip() or None if marker else None


def grade(problem: Problem, completion: str) -> Grade:
    """Checks the final expression of a completion in exact arithmetic.

    Returns:
        `str`: `"correct"` if it uses every number once and reaches the target; `"wrong"` if it does not, or gives up
        with `none`; `"ungradable"` if there is no answer, or one that is not an expression.
    """
    answer = final_answer(completion)
    if answer is None:
        return "ungradable"
    if answer == "none":
        return "wrong"
    tokens = _TOKEN.findall(answer)
    try:
        value = evaluate_expression(tokens)
    except (ValueError, ZeroDivisionError):
        return "ungradable"
    used = sorted(int(token) for token in tokens if token.isdigit())
    return "correct" if used == sorted(problem.numbers) and value == problem.target else "wrong"


def evaluate_expression(tokens: list[str]) -> Fraction:
    """Evaluates an arithmetic expression of `+ - * / ( )` and whole numbers, by recursive descent.

    Raises:
        ValueError: If the tokens do not form one expression.
        ZeroDivisionError: If it divides by zero.
    """
    remaining = list(reversed(tokens))

    def take() -> str:
        if not remaining:
            raise ValueError("The expression ends too early.")
        return remaining.pop()

    def operand() -> Fraction:
        token = take()
        if token == "(":
            value = total()
            if take() != ")":
                raise ValueError("A parenthesis is not closed.")
            return value
        if not token.isdigit():
            raise ValueError(f"{token!r} stands where a number is expected.")
        return Fraction(int(token))

    def product() -> Fraction:
        value = operand()
        while remaining and remaining[-1] in "*/":
            value = value * operand() if take() == "*" else value / operand()
        return value

    def total() -> Fraction:
        value = product()
        while remaining and remaining[-1] in "+-":
            value = value + product() if take() == "+" else value - product()
        return value

    value = total()
    if remaining:
        raise ValueError(f"{remaining[-1]!r} stands behind the expression.")
    return value

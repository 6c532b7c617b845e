"""Public benchmarks of mathematics, multiple choice and code: by name from the Hub, from files, and from rows."""

import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset

from ..trainers.traces import load_by_name
from .benchmark import Benchmark
from .choice_grader import ChoiceProblem, chosen_option, grade_choice, lettered_options
from .code_grader import CodeGrader, CodeProblem, code_vote, mbpp_entry_point
from .countdown import UNLABELLED
from .math_grader import MathGrader, delimited_answer, math_vote
from .prompt_encoding import Prompt

Row = Mapping[str, Any]
Kind = Literal["math", "choice", "code"]

ASKED_FOR: dict[Kind, str] = {
    "math": "{question}\n\nThink step by step, then write the final answer in \\boxed{}.",
    "choice": '{question}\n\nThink step by step, then write "Answer: " and the letter of the right option.',
    "code": "{question}\n\nWrite the function in Python, in one fenced block of code.",
}
_OPTION_LINE = re.compile(r"^\s*(\(?[A-Z][).]\s*\S.*)$", re.MULTILINE)
_INLINE_OPTION = re.compile(r"(?:^|\s)([A-Z]\).*?)(?=\s+[A-Z]\)|\s*$)", re.DOTALL)


@dataclass(frozen=True)
class MathProblem:
    """A question with one answer, in LaTeX."""

    question: str
    answer: str
    name: str = ""


@dataclass(frozen=True)
class PublicSet:
    """Where a benchmark is on the Hub, and how its rows are read.

    Args:
        hub_id (`str`): Repository, with a configuration behind a colon where it has several.
        split (`str`): The split that results are reported on.
        kind (`str`): What grades it: `"math"`, `"choice"` or `"code"`.
        read (`Callable`): A row as a problem.
        columns (`tuple[str, ...]`): Columns on the Hub that `read` needs.
    """

    hub_id: str
    split: str
    kind: Kind
    read: Callable[[Row, str], Any]
    columns: tuple[str, ...]


def load_benchmark(
    name: str,
    source: str | os.PathLike | Dataset | Sequence[Row] | None = None,
    split: str | None = None,
    num_problems: int | None = None,
    seed: int = 0,
    conversation: bool = True,
    template: str | None = None,
    grader: MathGrader | CodeGrader | None = None,
    label: Callable[[str], str] | None = None,
    labels: tuple[str, ...] = (),
) -> Benchmark:
    r"""A public benchmark for [`evaluate_palette`].

    Args:
        name (`str`): One of `PUBLIC_SETS`: `"gsm8k"`, `"math500"`, `"olympiadbench"`, `"amc23"`, `"minervamath"`,
            `"aime24"`, `"aime25"`, `"aqua"`, `"commonsenseqa"`, `"mbpp"`, `"humaneval"`.
        source (`str`, `os.PathLike`, `Dataset` or list of rows, *optional*): In place of its repository on the Hub:
            another id, a JSON-lines (plain or gzip) or Parquet file, a folder of `save_to_disk`, or rows. Columns are
            the Hub's, or those of traces: `question` and `answer`, and `options` for multiple choice (they may be
            lines of the question instead), `tests`, `test_setup` and `entry_point` for code.
        split (`str`, *optional*): Split; by default the one that results are reported on. A file has none.
        num_problems (`int`, *optional*): How many, drawn without replacement. All of them, in order, if None.
        seed (`int`, *optional*, defaults to 0): Seed of that draw.
        conversation (`bool`, *optional*, defaults to `True`): Prompts are conversations, which go through the model's
            chat template; otherwise texts, as base models want them.
        template (`str`, *optional*): Prompt with `{question}` in it. By default what is asked for names the form that
            the grader reads; HumanEval without a conversation is continued as it is.
        grader (`MathGrader` or `CodeGrader`, *optional*): With other limits than by default.
        label (`Callable`, *optional*): `label(completion) -> str`, the strategy of a completion.
        labels (`tuple[str, ...]`, *optional*): Its values, in the order of the report.

    Returns:
        `Benchmark`: OlympiadBench's numerical tolerances (its column `error`) are not used: answers must be equal.

    Raises:
        ValueError: If the name is unknown, columns are missing, there is no row, fewer than `num_problems`, a split is
            given for what has none, the template has no `{question}`, or the grader is of another kind.
    """
    if name not in PUBLIC_SETS:
        raise ValueError(f"`name` is {name!r}; choose one of {', '.join(PUBLIC_SETS)}.")
    found = PUBLIC_SETS[name]
    if template is not None and "{question}" not in template:
        raise ValueError(f"`template` is {template!r}; it must have '{{question}}' where the question goes.")
    wanted = {"math": MathGrader, "code": CodeGrader}.get(found.kind)
    if grader is not None and (wanted is None or not isinstance(grader, wanted)):
        raise ValueError(
            f"`grader` is a {type(grader).__name__}, but {name} is graded by "
            f"{'`grade_choice`, which has no settings' if wanted is None else 'a ' + wanted.__name__}."
        )
    rows, described = _load_rows(found, source, split)
    numbers = list(range(len(rows)))
    if not rows or (num_problems is not None and not 1 <= num_problems <= len(rows)):
        raise ValueError(f"`num_problems` is {num_problems}, but {described} has {len(rows)} rows.")
    if num_problems is not None:
        numbers = random.Random(seed).sample(numbers, num_problems)
    problems = []
    for number in numbers:
        try:
            problems.append(found.read(rows[number], str(rows[number].get("id", number))))
        except KeyError as error:
            raise ValueError(
                f"Row {number} of {described} has no {error}: found the columns {sorted(rows[number])}. {name} has "
                f"{', '.join(found.columns)} on the Hub; `question` and `answer` are read as well."
            ) from error
    asked = template or (ASKED_FOR[found.kind] if conversation or name != "humaneval" else "{question}")

    def prompt(problem: Any) -> Prompt:
        question = problem.question
        if name == "humaneval" and conversation and template is None:
            question = f"Complete this function.\n\n```python\n{question}```"
        text = asked.replace("{question}", question)
        return [{"role": "user", "content": text}] if conversation else text

    graded: dict[str, Any] = {}
    if found.kind == "math":
        checker = grader if isinstance(grader, MathGrader) else MathGrader()
        graded = {"grade": lambda problem, text: checker.grade(problem.answer, text), "answer": math_vote}
        graded["grading_threads"] = checker.max_workers
    elif found.kind == "code":
        runner = grader if isinstance(grader, CodeGrader) else CodeGrader()
        graded = {"grade": runner.grade, "answer": code_vote, "grading_threads": os.cpu_count() or 1}
    else:
        graded = {
            "grade": grade_choice,
            "answer": lambda text: None,
            "problem_answer": lambda problem, text: chosen_option(text, problem.options),
        }
    drawn = "" if num_problems is None else f"-{num_problems}-seed{seed}"
    return Benchmark(
        name=f"{name}{drawn}",
        problems=problems,
        prompt=prompt,
        label=label or (lambda text: UNLABELLED),
        labels=labels,
        **graded,
    )


def _load_rows(found: PublicSet, source: Any, split: str | None) -> tuple[list[Row], str]:
    if source is None or isinstance(source, (str, os.PathLike)):
        name = os.fspath(source or found.hub_id)
        is_file = os.path.isfile(name) or name.endswith((".gz", ".jsonl", ".json", ".parquet"))
        if is_file and split is not None:
            raise ValueError(f"`split` is {split!r}, but `source` is a file, which has none.")
        return list(load_by_name(name, "train" if is_file else split or found.split, streaming=False)), name
    if split is not None:
        raise ValueError(f"`split` is {split!r}, but `source` is loaded already: select its rows yourself.")
    return [dict(row) for row in source], "`source`"


def _math(question: str, answer: str) -> Callable[[Row, str], MathProblem]:
    """Reads a row whose columns have these names on the Hub, or the names of traces."""

    def read(row: Row, name: str) -> MathProblem:
        text = row[question] if question in row else row["question"]
        return MathProblem(text, _reference(row[answer] if answer in row else row["answer"]), name)

    return read


def _reference(answer: Any) -> str:
    """The answer alone: of a solution with `####` or a box, of a list of answers, of a whole number as a float."""
    if isinstance(answer, (list, tuple)):
        return ", ".join(map(_reference, answer))
    text = str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer).strip()
    text = delimited_answer(text) or text
    text = re.sub(r"\.0+$", "", text) if re.fullmatch(r"-?\d+\.0+", text) else text
    # `$2n$.` is mathematics, `\\$5` and `$5` are money
    signs = re.findall(r"(?<!\\)\$", text)
    return re.sub(r"(?<!\\)\$", "", text).strip().rstrip(".") if signs and len(signs) % 2 == 0 else text


def _read_aqua(row: Row, name: str) -> ChoiceProblem:
    question = row["question"]
    options = lettered_options(row["options"]) if row.get("options") else _options_in(question)
    if "correct" in row:
        question += "\n" + "\n".join(f"({letter}) {text}" for letter, text in options.items())
    return ChoiceProblem(question, options, row["correct"] if "correct" in row else row["answer"], name)


def _read_commonsenseqa(row: Row, name: str) -> ChoiceProblem:
    if "choices" not in row:
        return ChoiceProblem(row["question"], _options_in(row["question"]), row["answer"], name)
    options = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))
    question = row["question"] + "\n" + "\n".join(f"({letter}) {text}" for letter, text in options.items())
    return ChoiceProblem(question, options, row["answerKey"], name)


def _options_in(question: str) -> dict[str, str]:
    """Options that are lines of a question, or stand in its last one."""
    lines = _OPTION_LINE.findall(question)
    if len(lines) < 2:
        lines = _INLINE_OPTION.findall(question.rpartition("Options:")[2])
    if len(lines) < 2:
        raise KeyError("options")
    return lettered_options(lines)


def _read_mbpp(row: Row, name: str) -> CodeProblem:
    """Of the full set, the sanitized one, or a row of traces."""
    tests = row["test_list"] if "test_list" in row else row["tests"]
    setup = row.get("test_setup_code") or row.get("test_setup") or "\n".join(row.get("test_imports") or ())
    text = next((row[column] for column in ("text", "prompt", "question") if column in row), None)
    if text is None:
        raise KeyError("text")
    question = f"{text.strip()}\n\nIt has to pass:\n" + "\n".join(tests)
    return CodeProblem(
        question, mbpp_entry_point(tests), "\n".join([setup, *tests]), name=str(row.get("task_id", name))
    )


def _read_humaneval(row: Row, name: str) -> CodeProblem:
    question = row["prompt"] if "prompt" in row else row["question"]
    tests = f"{row['test'] if 'test' in row else row['tests']}\n\ncheck({row['entry_point']})"
    return CodeProblem(question, row["entry_point"], tests, is_continued=True, name=str(row.get("task_id", name)))


PUBLIC_SETS: dict[str, PublicSet] = {
    "gsm8k": PublicSet("openai/gsm8k:main", "test", "math", _math("question", "answer"), ("question", "answer")),
    "math500": PublicSet("HuggingFaceH4/MATH-500", "test", "math", _math("problem", "answer"), ("problem", "answer")),
    "olympiadbench": PublicSet(
        "Hothan/OlympiadBench:OE_TO_maths_en_COMP",
        "train",
        "math",
        _math("question", "final_answer"),
        ("question", "final_answer"),
    ),
    "amc23": PublicSet("math-ai/amc23", "test", "math", _math("question", "answer"), ("question", "answer")),
    "minervamath": PublicSet(
        "math-ai/minervamath", "test", "math", _math("question", "answer"), ("question", "answer")
    ),
    "aime24": PublicSet("math-ai/aime24", "test", "math", _math("problem", "solution"), ("problem", "solution")),
    "aime25": PublicSet("math-ai/aime25", "test", "math", _math("problem", "answer"), ("problem", "answer")),
    "aqua": PublicSet("deepmind/aqua_rat:raw", "test", "choice", _read_aqua, ("question", "options", "correct")),
    "commonsenseqa": PublicSet(
        "tau/commonsense_qa", "validation", "choice", _read_commonsenseqa, ("question", "choices", "answerKey")
    ),
    "mbpp": PublicSet(
        "google-research-datasets/mbpp:full",
        "test",
        "code",
        _read_mbpp,
        ("text", "test_list", "test_setup_code"),
    ),
    "humaneval": PublicSet(
        "openai/openai_humaneval", "test", "code", _read_humaneval, ("prompt", "test", "entry_point")
    ),
}

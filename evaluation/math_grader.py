"""Grades mathematical answers with math-verify, in processes that can be stopped."""

import importlib.util
import re
from pathlib import Path
from typing import Literal

from .countdown import Grade
from .killable_worker import KillableWorkers, WorkerLost

MAX_ANSWER, MAX_TAIL = 2000, 4000  # characters of an answer, and of a text in which one is looked for
_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*")
_DELIMITER = re.compile(r"\\(?:boxed|fbox)\b|####")
_MARK = re.compile(r"####[ \t]*(?:the )?(?:final )?(?:answer)?(?:is)?[ \t]*:?[ \t]*([^\n]*)", re.IGNORECASE)
_SAID = re.compile(r"answer(?:\s+is)?\s*[:=]?\s*([^\n]*)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


class MathGrader:
    r"""Compares the final answer of a completion with a reference, as mathematics: 0.5 is \frac{1}{2}.

    The final answer is the content of the last `\boxed{}` or `\fbox{}`; where there is none, what follows the last
    `####`; where there is neither, what math-verify finds. A last box that is empty or not closed is no answer,
    whatever stands before it.

    math-verify limits its time with `signal.alarm`, which works in the main thread alone and cannot interrupt a power
    of long integers. So it runs in processes of its own, with a limit on processor time and memory; a process that is
    lost over an answer is replaced, and the answer is ungradable. A grader may be shared by threads, forked and
    pickled, and its verdicts do not depend on how busy the machine is. Needs a POSIX system.

    Args:
        answer_format (`str`, *optional*, defaults to `"any"`): `"boxed"` takes an answer without a box as none.
        cpu_seconds (`float`, *optional*, defaults to 5.0): Processor time of one comparison, in seconds.
        memory_gib (`float`, *optional*, defaults to 2.0): Address space of a process, in GiB; unlimited on macOS.
        max_workers (`int`, *optional*, defaults to 2): Most processes at a time.

    Raises:
        ImportError: If math-verify is not installed.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        answer_format: Literal["any", "boxed"] = "any",
        cpu_seconds: float = 5.0,
        memory_gib: float = 2.0,
        max_workers: int = 2,
    ):
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("Grading mathematics needs math-verify: `pip install 'math-verify>=0.9'`.")
        if answer_format not in ("any", "boxed"):
            raise ValueError(f"`answer_format` is {answer_format!r}; choose 'any' or 'boxed'.")
        limits = {"cpu_seconds": cpu_seconds, "memory_gib": memory_gib, "max_workers": max_workers}
        for name, value in limits.items():
            if value <= 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0.")
        self.answer_format, self.max_workers = answer_format, max_workers
        self._workers = KillableWorkers(
            Path(__file__).with_name("math_worker.py"),
            [str(cpu_seconds), str(int(memory_gib * 2**30))],
            max_workers,
            wall_seconds=60 + 20 * cpu_seconds,
        )

    def grade(self, reference: str, completion: str) -> Grade:
        """`"correct"`, `"wrong"`, or `"ungradable"` where there is no answer, or one that cannot be compared in time.

        Args:
            reference (`str`): The correct answer, in LaTeX, without a box or dollar signs around it.
            completion (`str`): What the model wrote.
        """
        answer = delimited_answer(completion)
        is_delimited = answer is not None
        if answer is None:
            answer = completion[-MAX_TAIL:]
            if self.answer_format == "boxed" or _DELIMITER.search(completion) or not answer.strip():
                return "ungradable"
        elif self.answer_format == "boxed" and not _BOX.search(completion):
            return "ungradable"
        if len(answer) > MAX_ANSWER and is_delimited:
            return "ungradable"
        message = {"gold": _without_dollars(reference), "answer": answer, "is_delimited": is_delimited}
        try:
            return self._workers.request(message)["grade"]
        except WorkerLost:
            return "ungradable"

    def close(self) -> None:
        """Ends the processes that wait for work; the next answer starts new ones."""
        self._workers.close()


def delimited_answer(completion: str) -> str | None:
    r"""The content of the last box, or what follows the last `####`; None where there is none, or the box is no good.

    Args:
        completion (`str`): What a model wrote.
    """
    boxes = list(_BOX.finditer(completion))
    if boxes:
        return _cleaned(_braced(completion, boxes[-1].end()))
    marks = _MARK.findall(completion)
    return _cleaned(marks[-1]) if marks else None


def math_vote(completion: str) -> str | None:
    """The final answer as a text that votes in maj@k; None abstains. Answers that are written otherwise are others.

    Args:
        completion (`str`): What a model wrote.
    """
    answer = delimited_answer(completion)
    if answer is None and not _DELIMITER.search(completion):
        said = _SAID.findall(completion[-MAX_TAIL:])
        numbers = _NUMBER.findall(said[-1] if said else completion[-MAX_TAIL:])
        answer = numbers[-1] if numbers else None
    if answer is None:
        return None
    answer = answer.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("{,}", "")
    answer = re.sub(r"\\left|\\right|\\[!,;: ]|\s|(?<=\d),(?=\d{3}(?!\d))", "", answer)
    return answer or None


def _braced(text: str, start: int) -> str | None:
    """What stands in the braces that open at `start`; a single token where none do; None if they do not close."""
    if text[start : start + 1] != "{":
        token = re.match(r"-?\w+", text[start:])  # TeX's `\\boxed 5`
        return token.group() if token else None
    depth, index = 0, start
    while index < len(text):
        character = text[index]
        if character == "\\":
            index += 1
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[start + 1 : index]
        index += 1
    return None


def _cleaned(answer: str | None) -> str | None:
    if answer is None:
        return None
    answer = _without_dollars(answer.strip().strip("*").strip())
    answer = re.sub(r"(?<!\.)\.$", "", answer).strip()
    return answer or None


def _without_dollars(text: str) -> str:
    """`$5$` is mathematics; `$5` is money, which math-verify knows."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] == "$" else text

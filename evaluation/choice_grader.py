"""Reads the chosen option out of an answer to a multiple-choice question."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .countdown import Grade
from .math_grader import MAX_TAIL, delimited_answer

_BOX_MARK = re.compile(r"\\(?:boxed|fbox)\b")
_SAID = re.compile(
    r"\b(?:(?:correct|final|best|right)\s+)*(?:answer|option|choice)\b"
    r"(?:\s+(?:is|would\s+be|must\s+be|should\s+be))?\s*(?::|=|\bis\b)?[ \t*_]*(?=(?P<rest>[^\n]*))",
    re.IGNORECASE,
)
_STATES = re.compile(r"\b(?:is|be)\b|[:=]", re.IGNORECASE)
_REJECTED = re.compile(r"(?<=\S)[\s,;]+(?:not|rather than|instead of)\b.*", re.IGNORECASE)
_WRAPPING = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm)\s*\{([^{}]*)\}|[*_`$]")


@dataclass(frozen=True)
class ChoiceProblem:
    """A question with options.

    Args:
        question (`str`): The prompt, with its options.
        options (`Mapping[str, str]`): Letter -> text of each option.
        answer (`str`): Letter of the correct option.
        name (`str`, *optional*, defaults to `""`): Name in reports.

    Raises:
        ValueError: If the answer is none of the options.
    """

    question: str
    options: Mapping[str, str]
    answer: str
    name: str = ""

    def __post_init__(self) -> None:
        if self.answer not in self.options:
            raise ValueError(f"`answer` is {self.answer!r}; it must be one of the options, {list(self.options)}.")


def grade_choice(problem: ChoiceProblem, completion: str) -> Grade:
    """`"correct"`, `"wrong"`, or `"ungradable"` where no option is chosen, or more than one.

    Args:
        problem (`ChoiceProblem`): The question.
        completion (`str`): What the model wrote.
    """
    chosen = chosen_option(completion, problem.options)
    if chosen is None:
        return "ungradable"
    return "correct" if chosen == problem.answer else "wrong"


def chosen_option(completion: str, options: Mapping[str, str]) -> str | None:
    r"""The letter of the option that a completion states last; None where none is, or two are at once.

    Read is, in this order, and the first that is there decides: the last `\boxed{}`, what follows the last `####`,
    what follows the last "answer is", "Answer:", "option" or the like, the last line, and all of the text, in which
    one option alone must be named by letter (`(B)`) or by its text. An option may be stated by its letter, by its
    text, or by both if they agree.

    Args:
        completion (`str`): What the model wrote.
        options (`Mapping[str, str]`): Letter -> text.
    """
    if _BOX_MARK.search(completion) or "####" in completion:
        stated = delimited_answer(completion)
        return None if stated is None else _stated(stated, options)
    completion = completion[-MAX_TAIL:]
    said = [match for match in _SAID.finditer(completion) if _STATES.search(match.group())]
    if said:
        rest = said[-1]["rest"] or _next_line(completion, said[-1].end())
        return _stated(rest, options)
    lines = [line for line in completion.splitlines() if line.strip()]
    if not lines:
        return None
    return _stated(lines[-1], options, whole=True) or _only_named(completion, options)


def _stated(text: str, options: Mapping[str, str], whole: bool = False) -> str | None:
    """The option that a short text states; with `whole`, the text must be nothing else."""
    text = _plain(text)
    for letter, option in options.items():
        if _same(text, option):
            return letter
    text = _REJECTED.sub("", text)
    letters = "|".join(re.escape(letter) for letter in options)
    alone = re.fullmatch(rf"[(\[]?\s*({letters})\s*[)\].:,;!]*", text, re.IGNORECASE)
    if alone:
        return _letter(alone[1], options)
    head = re.match(rf"[(\[]\s*({letters})\s*[)\]]|({letters})(?=\s*[).:,;]|\s*$|\s+[-\u2013\u2014]\s|\s+)", text)
    if head:
        letter, rest = _letter(head[1] or head[2], options), text[head.end() :].strip(" ).:,;-\u2013\u2014")
        if rest and not whole and _named(rest, options, letters) - {letter}:
            return None  # another option as well: "A or B", or the text of another
        if whole and rest and not _same(rest, options[letter]):
            return None
        return letter
    if whole or re.match(r"(?:not|neither|none|isn't|unclear)\b", text, re.IGNORECASE):
        return None
    named = _named(text, options, letters)
    return named.pop() if len(named) == 1 else None


def _only_named(text: str, options: Mapping[str, str]) -> str | None:
    letters = "|".join(re.escape(letter) for letter in options)
    lettered = {_letter(found, options) for found in re.findall(rf"\(\s*({letters})\s*\)", text)}
    named = lettered or _named(_plain(text.strip().splitlines()[-1]), options, letters)
    return named.pop() if len(named) == 1 else None


def _named(text: str, options: Mapping[str, str], letters: str) -> set[str]:
    """The options that a text names: `(B)`, a capital B on its own, or the words of an option."""
    found = {_letter(a or b, options) for a, b in re.findall(rf"\(\s*({letters})\s*\)|\b({letters})\b(?!')", text)}
    # the article and the pronoun are no options
    found -= {
        name
        for name in found
        if name in "AI" and not re.search(rf"\({name}\)|\b{name}\b\s*(?:[).:,;]|$|or\b|and\b)", text)
    }
    matched = {
        letter: match.span()
        for letter, option in options.items()
        if _normal(option) and (match := re.search(rf"(?<!\w){re.escape(_normal(option))}(?!\w)", _normal(text)))
    }
    # an option whose words are part of another's is not named by them
    for letter, (start, end) in matched.items():
        if not any(s <= start and end <= e and (s, e) != (start, end) for s, e in matched.values()):
            found.add(letter)
    return found


def _letter(text: str, options: Mapping[str, str]) -> str:
    return text if text in options else next(name for name in options if name.lower() == text.lower())


def _plain(text: str) -> str:
    return _WRAPPING.sub(lambda match: match[1] or "", text).replace("\\", "").strip()


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", _plain(text).lower()).strip(" .,;:!?\"'")


def _same(text: str, option: str) -> bool:
    return _normal(text) == _normal(option) != ""


def _next_line(text: str, start: int) -> str:
    return next((line for line in text[start:].splitlines() if line.strip()), "")


def lettered_options(texts: Sequence[str]) -> dict[str, str]:
    """Options `["A)32400", "(B) 6000", "C. 600"]` by their letters.

    Args:
        texts (sequence of `str`): Options with their letter in front.

    Raises:
        ValueError: If an option has no letter.
    """
    found = {}
    for text in texts:
        match = re.match(r"\s*\(?([A-Za-z])\s*[).:]\s*(.*)", text, re.DOTALL)
        if match is None:
            raise ValueError(f"`texts` has the option {text!r}, which has no letter in front, such as 'A)' or '(A)'.")
        found[match[1]] = match[2].strip()
    return found

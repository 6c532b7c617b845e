"""Reads the box out of an answer, twice: strictly, as it was asked for, and leniently, as far as its meaning is plain.

Much of a published gain in grounding is answers that take the asked-for form, so the two are reported apart. An answer
without a readable box has a reason instead of one. Whatever a model writes, the time is linear in its length.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .boxes import Box, BoxFormat

Protocol: TypeAlias = Literal["native", "vlm-r1"]

AS_ASKED = "as asked"
ONE_BOX = "one box"
# what a lenient reading had to mend; several may hold
FIRST_OF_SEVERAL = "first of several boxes"
CORNERS_SWAPPED = "corners swapped"
NUMBERS_AS_TEXT = "numbers as text"
# why there is no box
NO_BOX = "no box"
CUT_OFF = "cut off"
NOT_FINITE = "not finite"
SEVERAL_BOXES = "several boxes"
OTHER_FORM = "another form"
NO_TAGS = "no <think> and <answer>"


@dataclass(frozen=True)
class BoxAnswer:
    """What an answer says.

    Args:
        box (`Box`, *optional*): x1, y1, x2, y2 in the coordinates of the model, or None.
        reading (`str`): How it was read, or why not: constants of this module, joined by commas.
    """

    box: Box | None
    reading: str


def parse_strict(text: str, box_format: BoxFormat, protocol: Protocol = "native") -> BoxAnswer:
    """The box of an answer in exactly the asked-for form.

    Numbers must be numbers, finite, four of them, the smaller edge first, and no other four numbers may stand in a
    list of the answer. A fence (three backticks, with `json` or without) around JSON is part of the form.

    Args:
        text (`str`): The completion.
        box_format (`BoxFormat`): The family's format.
        protocol (`str`, *optional*, defaults to `"native"`): `"native"`: the published form of the family, nothing
            before or after it. `"vlm-r1"`: `<think>...</think>` and `<answer>...</answer>` once each and nothing else,
            and in the latter JSON with the box as a list, under any key.

    Returns:
        `BoxAnswer`: With the reading "as asked", or without a box and one of "another form", "no <think> and
        <answer>", "no box", "several boxes", "numbers as text", "not finite", "corners swapped".
    """
    if protocol == "vlm-r1":
        content = _between_tags(text)
        return BoxAnswer(None, NO_TAGS) if content is None else _only_box(_load_json(content), box_format)
    if protocol != "native":
        raise ValueError(f"`protocol` is {protocol!r}; choose 'native' or 'vlm-r1'.")
    text = text.strip()
    if box_format.syntax == "locations":
        found = _LOCATIONS.fullmatch(text)
        return _checked(list(found.groups()), box_format) if found else BoxAnswer(None, OTHER_FORM)
    if box_format.syntax == "nested list":
        text = _without_label(text)
    value = _load_json(text, fenced=box_format.syntax == "json")
    if box_format.syntax == "json":
        objects = [value] if isinstance(value, _Object) else value
        if not isinstance(objects, list) or not objects or not all(isinstance(item, _Object) for item in objects):
            return BoxAnswer(None, OTHER_FORM)
        boxes = [item for found in objects for key, item in found if key == box_format.key]
        if len(boxes) != 1:
            return BoxAnswer(None, SEVERAL_BOXES if boxes else OTHER_FORM)
        value = boxes[0]
    if box_format.syntax == "nested list" and not (isinstance(value, list) and len(value) == 1):
        return BoxAnswer(None, SEVERAL_BOXES if isinstance(value, list) and value else OTHER_FORM)
    value = value[0] if box_format.syntax == "nested list" else value
    return _only_box(value, box_format) if _is_flat(value) else BoxAnswer(None, OTHER_FORM)


def parse_lenient(text: str, box_format: BoxFormat) -> BoxAnswer:
    """The box of an answer in any form that a reader would understand.

    Read is the last `<answer>`, closed or not, else what follows `</think>`, else all of it. A box is four numbers in
    one pair of brackets, two points, four named corners (`x1`, `y1`, ... or `y_min`, `x_min`, ...), four `<loc0123>`,
    or four numbers that are the whole answer; quoted or not, between commas or blanks. Of several, the first counts.
    Corners in the other order are put right. The coordinate system stays the format's.

    Args:
        text (`str`): The completion.
        box_format (`BoxFormat`): The family's format.

    Returns:
        `BoxAnswer`: With the reading "one box" or what had to be mended, or without a box and "no box", "cut off" or
        "not finite".
    """
    answer = _answer_part(text)
    if answer is None:
        return BoxAnswer(None, CUT_OFF)
    found = list(_boxes_in(answer, box_format))
    if not found:
        return BoxAnswer(None, CUT_OFF if _OPEN_LIST.search(answer) else NO_BOX)
    numbers, quoted = found[0]
    if not all(map(math.isfinite, numbers)):
        return BoxAnswer(None, NOT_FINITE)
    x1, y1, x2, y2 = numbers
    mended = []
    if any(other != numbers for other, _ in found[1:]):
        mended.append(FIRST_OF_SEVERAL)
    if x1 > x2 or y1 > y2:
        mended.append(CORNERS_SWAPPED)
    if quoted:
        mended.append(NUMBERS_AS_TEXT)
    box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    return BoxAnswer(box, ", ".join(mended) or ONE_BOX)


class _Object(list):
    """A JSON object as its pairs: a key that is given twice stays two."""


_LOCATIONS = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>[^<]*")
_NUMBER = r"[\"']?([+-]?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|[nN]a[nN]|[iI]nf(?:inity)?))[\"']?"
_NEXT = r"(?:\s*[,\uff0c]\s*|\s+)"  # \uff0c: the comma of Chinese text
_OPEN, _CLOSE = r"[\[(]\s*", r"(?:\s*,)?\s*[\])]"
_POINT = f"{_OPEN}{_NUMBER}{_NEXT}{_NUMBER}{_CLOSE}"
_FOUR = _NEXT.join([_NUMBER] * 4)
_CORNER = {
    axis + edge: rf"[\"']?{axis}(?:{index}|_?{edge})[\"']?\s*[:=]\s*{_NUMBER}"
    for axis in "xy"
    for index, edge in ((1, "min"), (2, "max"))
}
_CORNERS = "|".join(
    _NEXT.join(_CORNER[name] for name in names)
    for names in (("xmin", "ymin", "xmax", "ymax"), ("ymin", "xmin", "ymax", "xmax"))
)
_IN_ORDER = re.compile(
    f"{_OPEN}{_FOUR}{_CLOSE}"
    f"|{_POINT}(?:\\s*,)?\\s*{_POINT}"
    f"|{_CORNERS}"
    f"|<loc(\\d{{4}})><loc(\\d{{4}})><loc(\\d{{4}})><loc(\\d{{4}})>"
)
_ALONE = re.compile(rf"\s*{_FOUR}[\s.]*")
_QUOTED = re.compile(r"[\"'][\d.+-]")
_OPEN_LIST = re.compile(r"[\[(][^\[\]()]*$")


def _boxes_in(answer: str, box_format: BoxFormat) -> Iterator[tuple[Box, bool]]:
    """Every box, as x1, y1, x2, y2, and whether its numbers are quoted."""
    alone = _ALONE.fullmatch(answer)
    for match in [alone] if alone else _IN_ORDER.finditer(answer):
        if match[0].startswith("<") and box_format.syntax != "locations":
            continue  # thousand and twenty-fourths, which are no coordinates of this family
        numbers = [float(number) for number in match.groups() if number is not None]
        order = box_format.order
        if match is not alone and match[0][0] not in "[(<":  # names say which number is which
            order = "yxyx" if match[0].lstrip("\"'")[0] == "y" else "xyxy"
        yield _ordered(numbers, order), _QUOTED.search(match[0]) is not None


def _ordered(numbers: list[float], order: str) -> Box:
    a, b, c, d = numbers
    return (b, a, d, c) if order == "yxyx" else (a, b, c, d)


def _without_label(text: str) -> str:
    """The list of boxes behind InternVL's label; decoding without special tokens leaves `label[[a, b, c, d]]`."""
    label, _, boxes = text.partition("[[")
    for tag in ("<ref>", "</ref>", "<box>"):
        label = label.replace(tag, "", 1)
    return "" if set(label) & set("[]<>") else f"[[{boxes.removesuffix('</box>')}"


def _answer_part(text: str) -> str | None:
    """Where the answer stands; None while the model is still thinking."""
    start = text.rfind("<answer>")
    if start >= 0:
        return text[start + len("<answer>") :].partition("</answer>")[0]
    end = text.rfind("</think>")
    if end >= 0:
        return text[end + len("</think>") :]
    return None if "<think>" in text else text


def _between_tags(text: str) -> str | None:
    """What stands in `<answer>`, if the text is `<think>...</think><answer>...</answer>`."""
    text = text.strip()
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    if any(text.count(tag) != 1 for tag in tags) or not text.startswith("<think>") or not text.endswith("</answer>"):
        return None
    thought, _, rest = text.partition("</think>")
    if "<answer>" in thought or not rest.lstrip().startswith("<answer>"):
        return None
    return rest.lstrip()[len("<answer>") : -len("</answer>")]


def _load_json(text: str, fenced: bool = True) -> Any:
    """The value, with every number a float; None where it is no JSON."""
    text = text.strip()
    if fenced and text.startswith("```") and text.endswith("```") and len(text) >= 6:
        text = text[3:-3].removeprefix("json")
    try:
        # `parse_int`: Python refuses integers of more than 4,300 digits
        return json.loads(text, parse_int=float, object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        return None


def _is_flat(value: Any) -> bool:
    """Whether it is a list of plain values."""
    return (
        isinstance(value, list)
        and not isinstance(value, _Object)
        and not any(isinstance(item, list) for item in value)
    )


def _only_box(value: Any, box_format: BoxFormat) -> BoxAnswer:
    """The box of a JSON value in which exactly one list has four plain values."""
    if value is None:
        return BoxAnswer(None, OTHER_FORM)
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Object):
            waiting += [inner for _, inner in item]
        elif _is_flat(item) and len(item) == 4:
            found.append(item)
        elif isinstance(item, list):
            waiting += item
    if len(found) != 1:
        return BoxAnswer(None, SEVERAL_BOXES if found else NO_BOX)
    return _checked(found[0], box_format)


def _checked(values: list[Any], box_format: BoxFormat) -> BoxAnswer:
    """Four values as a box, if they are one without mending."""
    if box_format.syntax == "locations":
        values = [float(value) for value in values]
    if any(isinstance(value, str) for value in values):
        return BoxAnswer(None, NUMBERS_AS_TEXT)
    if not all(isinstance(value, float) for value in values):
        return BoxAnswer(None, NO_BOX)
    if not all(map(math.isfinite, values)):
        return BoxAnswer(None, NOT_FINITE)
    box = _ordered(values, box_format.order)
    if box[0] > box[2] or box[1] > box[3]:
        return BoxAnswer(None, CORNERS_SWAPPED)
    return BoxAnswer(box, AS_ASKED)

"""The grounding benchmark: find what an expression refers to, with an overlap of at least one half."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .benchmark import Benchmark
from .box_parsing import (
    CORNERS_SWAPPED,
    CUT_OFF,
    FIRST_OF_SEVERAL,
    NO_BOX,
    NOT_FINITE,
    NUMBERS_AS_TEXT,
    ONE_BOX,
    BoxAnswer,
    Protocol,
    parse_lenient,
    parse_strict,
)
from .boxes import Box, BoxFormat, box_iou, seen_size
from .countdown import Grade
from .method import Method

READINGS = (ONE_BOX, FIRST_OF_SEVERAL, CORNERS_SWAPPED, NUMBERS_AS_TEXT, NO_BOX, CUT_OFF, NOT_FINITE)
# VLM-R1's question (https://github.com/om-ai-lab/VLM-R1), which the paper follows
VLM_R1_PROMPT = (
    "Please provide the bounding box coordinate of the region this sentence describes: {expression}. "
    "First output the thinking process in <think> </think> tags and then output the final answer in <answer> "
    "</answer> tags. Output the final answer in JSON format."
)


@dataclass(frozen=True)
class GroundingProblem:
    """One expression to find in one image.

    Args:
        expression (`str`): What is referred to.
        bbox_xyxy (`Box`): Its left, top, right and bottom edge, in pixels of the image.
        size (`tuple[int, int]`): Width and height of the image, in pixels.
        image (`PIL.Image.Image` or `str`, *optional*): The image, or where it is.
        question (`str`, *optional*): The whole question, in place of the prompt of a family.
        name (`str`, *optional*): What the data calls it.
    """

    expression: str
    bbox_xyxy: Box
    size: tuple[int, int]
    image: Any = None
    question: str | None = None
    name: str | None = None


class BoxReader:
    """Brings boxes from a model's coordinates into pixels of an image.

    Args:
        box_format (`BoxFormat`): The model's format.
        processor (`ProcessorMixin`, *optional*): Its processor; needed where the format is in pixels of the resized
            image. Sizes are asked for once: a processor whose limits change needs a new reader.
        image_limits (`Mapping[str, int]`, *optional*): `min_pixels` and `max_pixels` of the images, if they have any.
    """

    def __init__(
        self, box_format: BoxFormat, processor: Any = None, image_limits: Mapping[str, int] | None = None
    ) -> None:
        if box_format.scale is None and processor is None:
            raise ValueError(
                f"`processor` is None, but boxes of {box_format.name!r} are in pixels of the image that it resizes; "
                "pass the model's processor."
            )
        if box_format.padded_to_square and processor is not None:
            image_processor = getattr(processor, "image_processor", None)
            if not getattr(image_processor, "do_pad", False):
                warnings.warn(
                    f"Boxes of {box_format.name!r} are those of an image padded to a square, but `processor` does not "
                    "pad: the model sees another frame than it was trained on. Load it with `do_pad=True` and "
                    "`do_center_crop=False`, or describe what it sees with a `BoxFormat` of your own.",
                    stacklevel=3,
                )
        self.box_format, self.processor = box_format, processor
        self.image_limits = dict(image_limits or {})
        self._seen: dict[tuple[int, int], tuple[int, int]] = {}

    def to_pixels(self, box: Box, size: tuple[int, int]) -> Box:
        """A box of the model in pixels of an image of `size` (width, height)."""
        return self.box_format.to_pixels(box, size, self._seen_size(size))

    def from_pixels(self, box: Box, size: tuple[int, int]) -> Box:
        """The inverse of [`~BoxReader.to_pixels`], not rounded."""
        return self.box_format.from_pixels(box, size, self._seen_size(size))

    def iou(self, answer: BoxAnswer, target: Box, size: tuple[int, int]) -> float | None:
        """Overlap of an answer with a box in pixels; None if there is no box in it."""
        return None if answer.box is None else box_iou(self.to_pixels(answer.box, size), target)

    def _seen_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The size that the processor gives to an image; None where boxes do not depend on it."""
        if self.box_format.scale is not None:
            return None
        if size not in self._seen:
            self._seen[size] = seen_size(self.processor, *size, **self.image_limits)
        return self._seen[size]


def question_of(problem: GroundingProblem, box_format: BoxFormat, protocol: Protocol) -> str:
    """The problem's own question, or that of a protocol: a family's, or VLM-R1's."""
    template = box_format.prompt if protocol == "native" else VLM_R1_PROMPT
    return problem.question or template.format(expression=problem.expression)


def check_image(problem: GroundingProblem) -> None:
    """
    Raises:
        ValueError: If the problem has no image, or names a file that is not there.
    """
    named = isinstance(problem.image, str) and ":" not in problem.image
    if problem.image is None or (named and not os.path.isfile(problem.image)):
        raise ValueError(
            f"The image of problem {problem.name!r} is {problem.image!r}, which is no file; load the problems "
            "with `image_folder`, where their images are."
        )


def grounding_benchmark(
    problems: Sequence[GroundingProblem],
    box_format: BoxFormat,
    processor: Any = None,
    protocol: Protocol = "native",
    threshold: float = 0.5,
    name: str = "grounding",
    image_limits: Mapping[str, int] | None = None,
    label: Callable[[str], str] | None = None,
    labels: tuple[str, ...] = READINGS,
) -> Benchmark:
    """Problems, of [`load_grounding`] or your own, for [`evaluate_palette`].

    An answer is correct if its box overlaps the target by `threshold` or more. The figures themselves are those of
    the lenient reading; `other_graders["strict"]` has those of the strict one; `scores` has the mean overlap of the
    answers with a readable box.

    Args:
        problems (sequence of `GroundingProblem`): With images.
        box_format (`BoxFormat`): How the model asks for boxes and writes them ([`box_format_of`]).
        processor (`ProcessorMixin`, *optional*): The model's; needed where the format is in pixels (Qwen2.5-VL).
        protocol (`str`, *optional*, defaults to `"native"`): What is asked for, and what the strict reading accepts:
            `"native"`, the family's published prompt and form; or `"vlm-r1"`, thoughts and an answer in tags.
        threshold (`float`, *optional*, defaults to 0.5): Least overlap (IoU) of a correct answer.
        name (`str`, *optional*, defaults to `"grounding"`): Name in reports.
        image_limits (`Mapping[str, int]`, *optional*): `min_pixels` and `max_pixels` of every image, with a Qwen-VL
            processor and qwen-vl-utils.
        label (`Callable`, *optional*): `label(completion) -> str`, the strategy of a completion. By default it is how
            the lenient reading went.
        labels (`tuple[str, ...]`, *optional*): Its values, in the order of the report.

    Returns:
        `Benchmark`

    Raises:
        ValueError: If `threshold` is not in (0, 1], `protocol` is unknown, or the format needs a processor.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` is {threshold}; an overlap of a correct answer lies above 0 and is at most 1.")
    if protocol not in ("native", "vlm-r1"):
        raise ValueError(f"`protocol` is {protocol!r}; choose 'native' or 'vlm-r1'.")
    if (label is None) != (labels is READINGS):
        raise ValueError("`label` and `labels` go together: give both or neither.")
    reader = BoxReader(box_format, processor, image_limits)

    def prompt(problem: GroundingProblem) -> list[dict[str, Any]]:
        check_image(problem)
        image = {"type": "image", "image": problem.image, **reader.image_limits}
        text = {"type": "text", "text": question_of(problem, box_format, protocol)}
        return [{"role": "user", "content": [image, text]}]

    def graded(problem: GroundingProblem, answer: BoxAnswer) -> Grade:
        overlap = reader.iou(answer, problem.bbox_xyxy, problem.size)
        if overlap is None:
            return "ungradable"
        return "correct" if overlap >= threshold else "wrong"

    return Benchmark(
        name=name,
        problems=problems,
        prompt=prompt,
        grade=lambda problem, text: graded(problem, parse_lenient(text, box_format)),
        answer=lambda text: _as_text(parse_lenient(text, box_format).box),
        label=label or (lambda text: parse_lenient(text, box_format).reading),
        labels=labels,
        other_graders={"strict": lambda problem, text: graded(problem, parse_strict(text, box_format, protocol))},
        scores={
            "IoU": lambda problem, text: reader.iou(parse_lenient(text, box_format), problem.bbox_xyxy, problem.size)
        },
    )


def table_2_methods(num_prefix_tokens: int = 8, temperature: float = 0.7, domain: str | None = None) -> list[Method]:
    """The four configurations of the paper's table 2: greedy, sampling, latents with either.

    Args:
        num_prefix_tokens (`int`, *optional*, defaults to 8): Prefix length L.
        temperature (`float`, *optional*, defaults to 0.7): The paper's.
        domain (`str`, *optional*): Domain whose latents are drawn; the prior if None, as in the paper.
    """
    latents: dict[str, Any] = {"prefix": "palette", "num_prefix_tokens": num_prefix_tokens, "domain": domain}
    return [
        Method("greedy"),
        Method("sampling", temperature=temperature),
        Method("latent, greedy", **latents),
        Method("latent + sampling", temperature=temperature, **latents),
    ]


def _as_text(box: Box | None) -> str | None:
    return None if box is None else ",".join(f"{edge:g}" for edge in box)

"""Referring expressions as training data: prompt and answer as a model's family writes them, with image and box."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

from .box_parsing import Protocol
from .box_writing import write_box
from .boxes import BoxFormat
from .grounding import BoxReader, GroundingProblem, check_image, question_of
from .grounding_data import GroundingProblems

_MESSAGES = List({"role": Value("string"), "content": Value("string")})


def grounding_traces(
    problems: Sequence[GroundingProblem],
    box_format: BoxFormat,
    processor: Any = None,
    protocol: Protocol = "native",
) -> Dataset:
    """
    Rows that the VAE pools and TRL's trainers train on.

    Args:
        problems (sequence of `GroundingProblem`): With images; those of [`load_grounding`] stay encoded.
        box_format (`BoxFormat`): The model's format ([`box_format_of`]).
        processor (`ProcessorMixin`, *optional*): The model's, with the limits that its images will have; needed where
            the format is in pixels (Qwen2.5-VL).
        protocol (`str`, *optional*, defaults to `"native"`): What is asked for. `"native"`: the family's published
            question, answered in its form. `"vlm-r1"`: thoughts and an answer in tags; the data hold no thoughts, so
            the rows have no `completion`.

    Returns:
        `Dataset`: `image`; `prompt` and `completion`, messages; and `bbox_xyxy`, in pixels of the image, which
        [`iou_reward`] compares with.

    Raises:
        ValueError: If a problem has no image, `protocol` is unknown, or the format needs a processor.
    """
    if protocol not in ("native", "vlm-r1"):
        raise ValueError(f"`protocol` is {protocol!r}; choose 'native' or 'vlm-r1'.")
    reader = BoxReader(box_format, processor)
    columns: dict[str, list[Any]] = {"prompt": [], "completion": [], "bbox_xyxy": []}
    features = Features({"prompt": _MESSAGES, "completion": _MESSAGES, "bbox_xyxy": List(Value("float64"))})
    for problem in problems:
        check_image(problem)
        answer = write_box(reader.from_pixels(problem.bbox_xyxy, problem.size), box_format, problem.expression)
        question = question_of(problem, box_format, protocol)
        columns["prompt"].append([{"role": "user", "content": question}])
        columns["completion"].append([{"role": "assistant", "content": answer}])
        columns["bbox_xyxy"].append(list(problem.bbox_xyxy))
    if protocol == "vlm-r1":
        del columns["completion"], features["completion"]
    if isinstance(problems, GroundingProblems):
        images = problems.image_column()
    else:
        images = Dataset.from_dict({"image": [p.image for p in problems]}, features=Features({"image": Image()}))
    return concatenate_datasets([images, Dataset.from_dict(columns, features=features)], axis=1)

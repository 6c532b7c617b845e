"""Rewards for TRL's trainers: overlap with the target, and the asked-for form, each a function of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from .box_parsing import Protocol, parse_lenient, parse_strict
from .boxes import BoxFormat
from .grounding import BoxReader

Reward: TypeAlias = Callable[..., list[float]]


def iou_reward(
    box_format: BoxFormat,
    processor: Any = None,
    threshold: float | None = None,
    image_limits: Mapping[str, int] | None = None,
) -> Reward:
    """A reward function for `reward_funcs`: how well the box of a completion overlaps the target.

    It reads leniently, so that what the form is worth stays the business of [`box_format_reward`]. The dataset needs
    the columns `bbox_xyxy` (in pixels) and `image` or `images` (of which the first counts), or `width` and `height`.
    A completion without a readable box gets 0, and the trainer logs their share as `grounding/unreadable`.

    Args:
        box_format (`BoxFormat`): The model's format ([`box_format_of`]).
        processor (`ProcessorMixin`, *optional*): The model's; needed where the format is in pixels (Qwen2.5-VL).
        threshold (`float`, *optional*): Least overlap that is worth 1, others 0. If None, the overlap is the reward.
        image_limits (`Mapping[str, int]`, *optional*): `min_pixels` and `max_pixels` of the images, if they have any.

    Returns:
        `Callable`: `reward(completions, bbox_xyxy, ...) -> list[float]`, in [0, 1].
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"`threshold` is {threshold}; give an overlap above 0 and at most 1, or None.")
    reader = BoxReader(box_format, processor, image_limits)

    def grounding_iou(
        completions: Sequence[Any],
        bbox_xyxy: Sequence[Sequence[float]],
        image: Sequence[Any] | None = None,
        images: Sequence[Any] | None = None,
        width: Sequence[int] | None = None,
        height: Sequence[int] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        sizes = _sizes(len(completions), image, images, width, height)
        overlaps = [
            reader.iou(
                parse_lenient(_text(completion), box_format), (target[0], target[1], target[2], target[3]), size
            )
            for completion, target, size in zip(completions, bbox_xyxy, sizes, strict=True)
        ]
        if log_metric is not None and overlaps:
            log_metric("grounding/unreadable", overlaps.count(None) / len(overlaps))
        if threshold is not None:
            return [float(overlap is not None and overlap >= threshold) for overlap in overlaps]
        return [0.0 if overlap is None else overlap for overlap in overlaps]

    return grounding_iou


def box_format_reward(box_format: BoxFormat, protocol: Protocol = "vlm-r1") -> Reward:
    """A reward function for `reward_funcs`: 1 for a completion in exactly the asked-for form, 0 for any other.

    Args:
        box_format (`BoxFormat`): The model's format.
        protocol (`str`, *optional*, defaults to `"vlm-r1"`): What was asked for ([`parse_strict`]).
    """
    if protocol not in ("native", "vlm-r1"):
        raise ValueError(f"`protocol` is {protocol!r}; choose 'native' or 'vlm-r1'.")

    def grounding_format(completions: Sequence[Any], **_: Any) -> list[float]:
        return [
            float(parse_strict(_text(completion), box_format, protocol).box is not None) for completion in completions
        ]

    return grounding_format


def _text(completion: Any) -> str:
    """Of a completion as TRL hands it over: a text, or messages."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())


def _sizes(
    count: int,
    image: Sequence[Any] | None,
    images: Sequence[Any] | None,
    width: Sequence[int] | None,
    height: Sequence[int] | None,
) -> list[tuple[int, int]]:
    """Width and height of the image of every completion."""
    if width is not None and height is not None:
        return list(zip(width, height, strict=True))
    pictures = image if image is not None else images
    if pictures is None:
        raise ValueError(
            "The dataset has no `image` or `images` and no `width` and `height`; a reward for boxes needs the size of "
            "their image."
        )
    firsts = [picture[0] if isinstance(picture, Sequence) and picture else picture for picture in pictures]
    without = [type(picture).__name__ for picture in firsts if not hasattr(picture, "size")]
    if without:
        raise ValueError(
            f"`image` or `images` of {len(without)} of {count} rows are no decoded images ({without[0]}); add the "
            "columns `width` and `height`."
        )
    return [picture.size for picture in firsts]

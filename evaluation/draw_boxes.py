"""Boxes on their images, as PNG: what a figure of accuracy cannot show."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .box_parsing import parse_lenient
from .boxes import Box
from .grounding import BoxReader, GroundingProblem
from .result import MethodResult

TARGET_COLOUR = (255, 255, 255)
# by the method: colours that people with a colour vision deficiency can tell apart (Okabe and Ito)
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
LEAST_SIDE = 480  # smaller images are enlarged, or a line would hide what it frames
LINE_WIDTH, ROW_HEIGHT, MARGIN = 2, 16, 4


def draw_boxes(
    image: Image.Image, target: Box, boxes: Mapping[str, Sequence[Box | None]], caption: str = ""
) -> Image.Image:
    """An image with its target in white, the boxes of each method in a colour, and a legend below.

    Args:
        image (`PIL.Image.Image`): Stays as it is.
        target (`Box`): In pixels of the image.
        boxes (`Mapping[str, Sequence[Box | None]]`): Method -> its boxes in pixels, at most as many methods as there
            are `COLOURS`. None is an answer without a readable box; the legend counts these.
        caption (`str`, *optional*): What the target is, for the legend.

    Returns:
        `PIL.Image.Image`: In RGB, enlarged if the image is small.
    """
    if len(boxes) > len(COLOURS):
        raise ValueError(
            f"`boxes` has {len(boxes)} methods, but there are {len(COLOURS)} colours; draw fewer of them."
        )
    zoom = max(1, -(-LEAST_SIDE // max(image.size)))
    size = (image.width * zoom, image.height * zoom)
    drawn = Image.new("RGB", (size[0], size[1] + ROW_HEIGHT * (len(boxes) + 1) + MARGIN), (255, 255, 255))
    drawn.paste(image.convert("RGB").resize(size, Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(drawn)
    rows = [(f"target: {caption}" if caption else "target", TARGET_COLOUR)]
    for number, (name, found) in enumerate(boxes.items()):
        colour = COLOURS[number]
        for box in found:
            if box is not None:
                # of boxes that coincide, the later and thinner ones leave the earlier ones to be seen
                _frame(draw, box, zoom, size, colour, LINE_WIDTH * (len(boxes) - number))
        unreadable = list(found).count(None)
        rows.append((f"{name} ({unreadable} of {len(found)} unreadable)" if unreadable else name, colour))
    _frame(draw, target, zoom, size, TARGET_COLOUR, LINE_WIDTH)
    font = ImageFont.load_default(size=ROW_HEIGHT - 4)
    for number, (text, colour) in enumerate(rows):
        top = size[1] + ROW_HEIGHT * number + MARGIN
        draw.rectangle((MARGIN, top, MARGIN + 14, top + 10), fill=colour, outline=(0, 0, 0))
        draw.text((MARGIN + 20, top - 2), text, fill=(0, 0, 0), font=font)
    return drawn


def _frame(
    draw: ImageDraw.ImageDraw, box: Box, zoom: int, size: tuple[int, int], colour: tuple[int, int, int], width: int
) -> None:
    """A rectangle, its line inside the box, with a dark edge, which is seen on any image. Boxes end at the image."""
    left, right = (min(max(edge * zoom, -1), size[0]) for edge in box[::2])
    top, bottom = (min(max(edge * zoom, -1), size[1]) for edge in box[1::2])
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=width + 2)
    draw.rectangle((left, top, right, bottom), outline=colour, width=width)


def draw_results(
    problems: Sequence[GroundingProblem],
    results: Sequence[MethodResult],
    reader: BoxReader,
    folder: str | os.PathLike,
    num_images: int = 8,
) -> list[Path]:
    """Draws the answers of several methods to the first problems.

    Args:
        problems (sequence of `GroundingProblem`): Those of the evaluation, with images.
        results (sequence of `MethodResult`): Of `evaluate_palette(..., keep_completions=True)`.
        reader (`BoxReader`): Of the model's format.
        folder (`str` or `os.PathLike`): Where the PNG files go; it is made if need be.
        num_images (`int`, *optional*, defaults to 8): How many.

    Returns:
        `list[Path]`: The files.
    """
    missing = [result.method.name for result in results if result.completions is None]
    if missing:
        raise ValueError(f"The results of {missing} have no completions; evaluate with `keep_completions=True`.")
    target_folder = Path(folder)
    target_folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, problem in enumerate(problems[:num_images]):
        boxes: dict[str, list[Any]] = {}
        for result in results:
            answers = [parse_lenient(text, reader.box_format) for text in (result.completions or [])[number]]
            boxes[result.method.name] = [
                None if answer.box is None else reader.to_pixels(answer.box, problem.size) for answer in answers
            ]
        image = problem.image if isinstance(problem.image, Image.Image) else Image.open(problem.image)
        written.append(target_folder / f"{number:04d}.png")
        image = ImageOps.exif_transpose(image)  # as the model saw it
        draw_boxes(image, problem.bbox_xyxy, boxes, problem.expression).save(written[-1])
    return written

"""Writes a box as a family's published answers have it: the inverse of reading it strictly."""

import json

from .boxes import Box, BoxFormat


def write_box(box: Box, box_format: BoxFormat, label: str) -> str:
    """An answer with one box.

    Args:
        box (`Box`): Edges in the coordinates of the model ([`~BoxFormat.from_pixels`]), in the order x1, y1, x2, y2.
        box_format (`BoxFormat`): The model's format.
        label (`str`): What is in the box.

    Returns:
        `str`: With whole numbers, or two decimals where the image's edge is at 1.
    """
    x1, y1, x2, y2 = box
    edges = (y1, x1, y2, x2) if box_format.order == "yxyx" else (x1, y1, x2, y2)
    if box_format.syntax == "locations":
        # the last of 1024 places is 1023
        return "".join(f"<loc{min(max(round(edge), 0), 1023):04d}>" for edge in edges) + f" {label}"
    numbers = [round(edge, 2) if box_format.scale == 1 else round(edge) for edge in edges]
    if box_format.syntax == "list":
        return json.dumps(numbers)
    if box_format.syntax == "nested list":
        return f"<ref>{label}</ref><box>{json.dumps([numbers])}</box>"
    return json.dumps([{box_format.key: numbers, "label": label}], ensure_ascii=False)

"""Bounding boxes: overlap, and the coordinate system of every family of models.

A box is `(x1, y1, x2, y2)`, its left, top, right and bottom edges, and pixels are those of the image as its owner has
it. What a model writes is in a system of its own, which is a setting and is never read off the numbers: `[10, 20, 60,
80]` is a legal box in all of them.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ..trainers.message_images import load_message_images

Box = tuple[float, float, float, float]


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes in the same coordinates; 0 where the union is empty.

    The edges are points on a line, not pixels that count as one each: the same as `torchvision.ops.box_iou`. VLM-R1's
    script counts whole pixels, which differs by a pixel's width.
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = _area(first) + _area(second) - intersection
    return intersection / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


@dataclass(frozen=True)
class BoxFormat:
    """How a family asks for a box and writes one.

    Args:
        name (`str`): The family, as its configuration's `model_type` has it.
        prompt (`str`): The published question, with `{expression}` in it.
        syntax (`str`): What a published answer is: `"json"`, a list of objects with the box under `key`; `"list"`,
            `[a, b, c, d]` alone; `"nested list"`, a label and `[[a, b, c, d]]`; `"locations"`, four `<loc0123>` and a
            label.
        scale (`float`, *optional*): The coordinate of the right and bottom edge. None: coordinates are pixels of the
            image as the model sees it, after the processor's resizing.
        key (`str`, *optional*): Key of the box in the objects of `"json"`.
        order (`str`, *optional*, defaults to `"xyxy"`): Order of the numbers: `"xyxy"` or `"yxyx"`.
        padded_to_square (`bool`, *optional*, defaults to `False`): Whether coordinates are those of the image padded
            to a square with equal margins.
        source (`str`, *optional*): Where this is published.
    """

    name: str
    prompt: str
    syntax: Literal["json", "list", "nested list", "locations"]
    scale: float | None
    key: str | None = None
    order: Literal["xyxy", "yxyx"] = "xyxy"
    padded_to_square: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        if "{expression}" not in self.prompt:
            raise ValueError(f"`prompt` is {self.prompt!r}; it must contain '{{expression}}'.")
        if self.syntax not in ("json", "list", "nested list", "locations"):
            raise ValueError(f"`syntax` is {self.syntax!r}; choose 'json', 'list', 'nested list' or 'locations'.")
        if (self.syntax == "json") != (self.key is not None):
            raise ValueError(f"`key` is {self.key!r} with `syntax={self.syntax!r}`; it goes with 'json', and only it.")
        if self.order not in ("xyxy", "yxyx"):
            raise ValueError(f"`order` is {self.order!r}; choose 'xyxy' or 'yxyx'.")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"`scale` is {self.scale}; it must be above 0, or None for pixels.")
        if self.scale is None and self.padded_to_square:
            raise ValueError("`padded_to_square` needs a `scale`; pixels of a padded image are not supported.")

    def to_pixels(self, box: Box, size: tuple[int, int], seen: tuple[int, int] | None = None) -> Box:
        """A box of this format in pixels of the image.

        Args:
            box (`Box`): Edges in this format's coordinates, in the order x1, y1, x2, y2.
            size (`tuple[int, int]`): Width and height of the image.
            seen (`tuple[int, int]`, *optional*): Width and height that the model sees ([`seen_size`]); needed where
                `scale` is None.
        """
        (across, left), (down, top) = self._scales(size, seen)
        x1, y1, x2, y2 = box
        return x1 / across - left, y1 / down - top, x2 / across - left, y2 / down - top

    def from_pixels(self, box: Box, size: tuple[int, int], seen: tuple[int, int] | None = None) -> Box:
        """The inverse of [`~BoxFormat.to_pixels`], not rounded."""
        (across, left), (down, top) = self._scales(size, seen)
        x1, y1, x2, y2 = box
        return (x1 + left) * across, (y1 + top) * down, (x2 + left) * across, (y2 + top) * down

    def _scales(
        self, size: tuple[int, int], seen: tuple[int, int] | None
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """For each axis: coordinates per pixel, and pixels between the origin and the image."""
        width, height = size
        if self.scale is None:
            if seen is None:
                raise ValueError(
                    f"`seen` is None, but boxes of {self.name!r} are in pixels of the resized image; pass its size: "
                    "`seen_size(processor, width, height)`."
                )
            return (seen[0] / width, 0.0), (seen[1] / height, 0.0)
        if self.padded_to_square:
            side = max(width, height)
            return (self.scale / side, (side - width) / 2), (self.scale / side, (side - height) / 2)
        return (self.scale / width, 0.0), (self.scale / height, 0.0)


_QWEN_PROMPT = "Locate {expression} in this image and output the bbox coordinates in JSON format."
_GEMMA_PROMPT = "What's the bounding box for {expression} in the image?"
_REC_PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {expression}."
_QWEN3 = "https://github.com/QwenLM/Qwen3-VL, cookbooks/spatial_understanding.ipynb"

_FORMATS = (
    BoxFormat(
        "qwen2_5_vl",
        _QWEN_PROMPT,
        "json",
        scale=None,
        key="bbox_2d",
        source=f"{_QWEN3}, as of Qwen2.5-VL; the image's size: issue 931 there",
    ),
    *(
        BoxFormat(name, _QWEN_PROMPT, "json", scale=1000, key="bbox_2d", source=_QWEN3)
        for name in ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
    ),
    *(
        BoxFormat(name, _GEMMA_PROMPT, "json", scale=1000, key="box_2d", order="yxyx", source=source)
        for name, source in (
            ("gemma4", "https://huggingface.co/blog/gemma4"),
            # https://huggingface.co/google/gemma-3-4b-it/discussions/38 supposes the convention of Gemini
            ("gemma3", "unpublished; Gemma 4's is taken"),
        )
    ),
    BoxFormat(
        "paligemma",
        "detect {expression}",
        "locations",
        scale=1024,
        order="yxyx",
        source="https://github.com/google-research/big_vision, configs/proj/paligemma/README.md",
    ),
    BoxFormat(
        "internvl",
        "Please provide the bounding box coordinate of the region this sentence describes: <ref>{expression}</ref>",
        "nested list",
        scale=1000,
        source="https://internvl.readthedocs.io/en/latest/get_started/chat_data_format.html",
    ),
    BoxFormat(
        "llava",
        _REC_PROMPT,
        "list",
        scale=1,
        padded_to_square=True,
        source="LLaVA-1.5's training mixture; https://github.com/haotian-liu/LLaVA/issues/606",
    ),
)
BOX_FORMATS: dict[str, BoxFormat] = {box_format.name: box_format for box_format in _FORMATS}
_UNPUBLISHED = ("idefics3", "smolvlm")


def box_format_of(model: Any) -> BoxFormat:
    """The format of a model's family, or of a `model_type`.

    Args:
        model (`PreTrainedModel`, `PreTrainedConfig` or `str`): A model, with or without a palette, its configuration,
            or a `model_type`.

    Raises:
        ValueError: If nothing is known of the family; write a [`BoxFormat`] then.
    """
    name = model
    if not isinstance(model, str):
        config = getattr(model, "config", model)
        name = getattr(config, "base_config", config).model_type
    if name in BOX_FORMATS:
        return BOX_FORMATS[name]
    why = "nothing about boxes is published for it" if name in _UNPUBLISHED else f"there are {sorted(BOX_FORMATS)}"
    raise ValueError(
        f"There is no box format for {name!r}: {why}. Say what your model was trained to write with a "
        "`BoxFormat(name, prompt, syntax, scale, ...)`."
    )


def seen_size(processor: Any, width: int, height: int, **limits: int) -> tuple[int, int]:
    """The size that a Qwen-VL processor gives to an image: the number of its patches times their side.

    Args:
        processor (`ProcessorMixin`): A Qwen-VL processor.
        width (`int`): Width of the image in pixels.
        height (`int`): Height of the image in pixels.
        limits (`int`): `min_pixels`, `max_pixels` (or `resized_height`, `resized_width`) of the image's entry in its
            message, if any.

    Returns:
        `tuple[int, int]`: Width and height in pixels.

    Raises:
        ValueError: If the processor has no patches of a grid.
    """
    image_processor = getattr(processor, "image_processor", None)
    if getattr(image_processor, "patch_size", None) is None or not hasattr(image_processor, "merge_size"):
        raise ValueError(
            f"`processor` has a {type(image_processor).__name__}, which does not say how large a model sees an image; "
            "boxes in pixels of the resized image need a Qwen-VL processor."
        )
    from PIL import Image

    # a blank image is all that a size depends on, and asking the processor itself cannot disagree with it
    entry = {"type": "image", "image": Image.new("RGB", (width, height)), **limits}
    loaded = load_message_images([[{"role": "user", "content": [entry]}]], processor)
    grid = processor.image_processor(loaded.images[0], return_tensors="pt", **loaded.processor_kwargs)
    rows, columns = grid["image_grid_thw"][0, 1:].tolist()
    return columns * processor.image_processor.patch_size, rows * processor.image_processor.patch_size

"""Prompts that stand several times in a row, for as many draws each, with the images that belong to them.

transformers repeats the rows of every tensor, which fits those over tokens. The images of a batch lie one behind the
other without regard to rows, and some prompts have none: repeated one by one, they would go to other prompts.
"""

from collections.abc import Iterator
from typing import Any

import torch

from .base_kinds import reads_images

# What belongs to images, by the placeholder that stands for them.
_INPUTS = {
    "image_token_id": ("pixel_values", "image_grid_thw", "image_position_ids", "image_sizes"),
    "video_token_id": (
        "pixel_values_videos",
        "video_grid_thw",
        "video_position_ids",
        "num_frames_per_video",
        "second_per_grid_ts",
    ),
}
_GRIDS = ("image_grid_thw", "video_grid_thw")
# Families whose pixels have a row for every prompt.
_PIXELS_IN_ROWS = ("idefics2", "idefics3", "smolvlm")
# Families in which each image, or each tile of one, has as many placeholders as any other; but for LLaVA's with the
# vision tower of Pixtral, which gives every patch of an image one, and takes `image_sizes`.
_EQUAL_IMAGES = ("gemma3", "internvl", "llava")


def repeat_prompts(
    model: Any, input_ids: torch.Tensor, inputs: dict[str, Any], times: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """
    Args:
        model ([`PaletteForCausalLM`] or [`PaletteForVision2Seq`]): The model.
        input_ids (`torch.Tensor` of shape `(B, S)`): The prompts.
        inputs (`dict`): Everything else that `generate` was given.
        times (`int`): How often.

    Returns:
        The ids `(B * times, S)` and the inputs for them.

    Raises:
        ValueError: if there are several prompts with images, and it is not known which belong to which.
    """
    images: dict[str, Any] = {}
    if reads_images(type(model.config.base_config)):
        if len(input_ids) == 1:
            names = [name for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.dim() > 0]
            images = {name: torch.cat([inputs[name]] * times) for name in names}
            lists = [name for known in _INPUTS.values() for name in known if isinstance(inputs.get(name), list)]
            images |= {name: inputs[name] * times for name in lists}
        elif model.config.base_config.model_type not in _PIXELS_IN_ROWS:
            for placeholder, known in _INPUTS.items():
                given = {name: inputs[name] for name in known if inputs.get(name) is not None}
                if given:
                    tokens = (input_ids == getattr(model.config, placeholder)).sum(1).tolist()
                    images |= _repeat_images(model.config.base_config, given, tokens, times)
    others = {name: value for name, value in inputs.items() if name not in images}
    input_ids, others = model._expand_inputs_for_generation(
        expand_size=times, is_encoder_decoder=False, input_ids=input_ids, **others
    )
    return input_ids, {**others, **images}


def _repeat_images(config: Any, inputs: dict[str, Any], tokens: list[int], times: int) -> dict[str, Any]:
    grid = next((inputs[name] for name in _GRIDS if name in inputs), None)
    places = next((inputs[name] for name in inputs if name.endswith("_position_ids")), None)
    if grid is not None:
        sizes = grid.prod(1).tolist()
    elif places is not None:  # (-1, -1) where there is no patch
        sizes = (places >= 0).all(-1).sum(1).tolist()
    elif config.model_type == "llava" and "image_sizes" in inputs:
        sizes = (torch.as_tensor(inputs["image_sizes"]) // config.vision_config.patch_size).prod(1).tolist()
    elif config.model_type in _EQUAL_IMAGES:
        sizes = [1] * len(inputs["pixel_values"])
    else:
        raise ValueError(
            "`num_return_sequences` above 1 with a latent prefix is not known for several prompts of "
            f"{config.model_type!r} with images: which image belongs to which prompt cannot be told. Call `generate` "
            "for one prompt at a time, or write each prompt and its images into the batch as often as it is to be "
            "answered."
        )
    rows = list(_images_of_rows(sizes, tokens))
    repeated: dict[str, Any] = {}
    for name, value in inputs.items():
        if name == "num_frames_per_video":  # of whole videos, where the other inputs have frames
            videos = _images_of_rows(value.tolist(), [len(row) for row in rows])
            repeated[name] = torch.cat([value[row.start : row.stop] for row in videos for _ in range(times)])
            continue
        # patches of all images lie one behind the other, where there are grids
        lengths = sizes if grid is not None and len(value) == sum(sizes) != len(sizes) else [1] * len(sizes)
        ends = [sum(lengths[:end]) for end in range(len(lengths) + 1)]
        parts = [value[ends[row.start] : ends[row.stop]] for row in rows for _ in range(times)]
        is_tensor = isinstance(value, torch.Tensor)
        repeated[name] = torch.cat(parts) if is_tensor else [one for part in parts for one in part]
    return repeated


def _images_of_rows(sizes: list[int], tokens: list[int]) -> Iterator[range]:
    """The images of each row, given their sizes, in any unit, and the number of placeholders in the rows."""
    start = 0
    for row in tokens:
        stop, size = start, 0
        while size * sum(tokens) < row * sum(sizes) and stop < len(sizes):
            size, stop = size + sizes[stop], stop + 1
        if size * sum(tokens) != row * sum(sizes):
            raise ValueError(
                f"The prompts have {tokens} placeholders of images, but the images, of the sizes {sizes}, do not "
                "divide among them so. Pass the images that the processor made together with these prompts."
            )
        yield range(start, stop)
        start = stop

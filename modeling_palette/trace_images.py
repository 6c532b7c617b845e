"""Images of traces: found in a row, and turned into what a base merges into its prompts in their place.

By default a trace's mean embedding is that of its text alone: a picture stands for hundreds of positions and would
drown the words. What follows is for the option of taking its positions in (`merge_images`).
"""

import base64
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.image_utils import load_image

from .unverified_bases import evaluating

# Names that families give to the ids of pieces of images, videos and sounds, and of what encloses them.
_MEDIA = ("image", "video", "audio", "vision_start", "vision_end", "boi", "eoi", "boa", "eoa")
_PLACEHOLDERS = tuple(f"{media}_token_{kind}" for media in _MEDIA for kind in ("id", "index"))
_IMAGE_PLACEHOLDERS = ("image_token_id", "image_token_index")
# Where a message's part names its image, and what qwen-vl-utils reads beside it.
_SOURCES = ("image", "image_url", "url", "path", "base64")
_LIMITS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
# What a processor returns for tokens; the rest is the images'.
_TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def placeholder_ids(config: PreTrainedConfig) -> frozenset[int]:
    """Ids that stand for pieces of images, videos or sounds in a base's prompts, or enclose them."""
    found = (getattr(config, name, None) for name in _PLACEHOLDERS)
    return frozenset(one for one in found if isinstance(one, int))


def trace_images(row: Mapping[str, Any], name: str = "row") -> list[Any]:
    """
    The images of a trace.

    Args:
        row (`Mapping[str, Any]`): A trace. Its messages name their images (`{"type": "image", "image": ...}`: a
            picture, a path, a URL, or data), or leave them to a column `images` or `image`.
        name (`str`, defaults to `"row"`): How errors name the row.

    Returns:
        `list[PIL.Image.Image]`: In order.

    Raises:
        ValueError: If both name images, if they are not as many as the messages have places for, or if an image has
            limits of its own, which only qwen-vl-utils applies.
    """
    column = row.get("images") if row.get("images") is not None else row.get("image")
    given = [] if column is None else list(column) if isinstance(column, (list, tuple)) else [column]
    parts = [part for key in ("prompt", "completion", "messages") for part in _image_parts(row.get(key))]
    limited = sorted({key for part in parts for key in _LIMITS if part.get(key) is not None})
    if limited:
        raise ValueError(
            f"An image of {name} has {limited}, which are not applied here. Load the images with "
            "`load_message_images` of the trainers, and give them as `images`."
        )
    named = [part[key] for part in parts for key in _SOURCES if part.get(key) is not None]
    if named and (given or len(named) != len(parts)):
        raise ValueError(
            f"{name} names {len(named)} images in {len(parts)} image parts of its messages and has {len(given)} in "
            "its `images`. Name all of them in one of these places."
        )
    if given and parts and len(given) != len(parts):
        raise ValueError(f"{name} has {len(given)} `images` for {len(parts)} image parts of its messages.")
    if parts and not named and not given:
        raise ValueError(f"{name} has {len(parts)} image parts in its messages, but no `images`.")
    return [_loaded(image) for image in (named or given)]


class ImageFeatures:
    """
    What a base puts in place of a row's image placeholders: the output of its vision tower and projector.

    One forward pass of the vision tower for each row; the language model is not run.

    Args:
        model (`PreTrainedModel`): A vision-language base, or a palette model on one.
        processor (`ProcessorMixin`): Its processor.

    Raises:
        ValueError: If the model reads no images, or the processor is none for images.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        if not hasattr(model, "get_image_features"):
            raise ValueError(f"`merge_images`=True merges images, but {type(model).__name__} reads none. Drop it.")
        if getattr(processor, "image_processor", None) is None:
            raise ValueError(
                f"`merge_images`=True needs the base's processor, got {type(processor).__name__}. Pass "
                "`AutoProcessor.from_pretrained(base)`."
            )
        self.model, self.processor = model, processor

    @torch.no_grad()
    def __call__(self, row: Mapping[str, Any], name: str) -> tuple[torch.Tensor, int] | None:
        """The sum (H,), float32 on the CPU, of the features of a row's images, and their number; None without any."""
        images = trace_images(row, name)
        if not images:
            return None
        inputs = self._inputs(images)
        placeholders = {getattr(self.model.config, one, None) for one in _IMAGE_PLACEHOLDERS} - {None}
        positions = sum(int((inputs["input_ids"] == one).sum()) for one in placeholders)
        known = inspect.signature(self.model.get_image_features).parameters
        pixels = {key: value for key, value in inputs.items() if key in known and key not in _TOKEN_INPUTS}
        pixels = {key: value.to(self.model.device) for key, value in pixels.items()}
        pixels["pixel_values"] = pixels["pixel_values"].to(self.model.dtype)
        with evaluating(self.model):
            pooled = self.model.get_image_features(**pixels, return_dict=True).pooler_output
        parts = [pooled] if isinstance(pooled, torch.Tensor) else list(pooled)
        features = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).float().cpu()
        if len(features) != positions:
            raise ValueError(
                f"The images of {name} have {len(features)} features for {positions} placeholders: the processor does "
                "not belong to this base."
            )
        return features.sum(dim=0), len(features)

    def _inputs(self, images: Sequence[Any]) -> Any:
        """What the processor makes of a prompt of these images alone."""
        # Gemma 3's prompts hold the token that begins an image, those of other families the placeholder itself.
        begins = "Gemma3Processor" in (one.__name__ for one in type(self.processor).__mro__)
        token = self.processor.boi_token if begins else self.processor.image_token
        return self.processor(text=[" ".join([token] * len(images))], images=[list(images)], return_tensors="pt")


def _image_parts(turns: Any) -> list[Mapping[str, Any]]:
    """The parts of messages that are images."""
    found: list[Mapping[str, Any]] = []
    for turn in turns if isinstance(turns, (list, tuple)) else ():
        content = turn.get("content") if isinstance(turn, Mapping) else None
        for part in content if isinstance(content, (list, tuple)) else ():
            if isinstance(part, Mapping) and _is_image(part):
                found.append(part)
    return found


def _is_image(part: Mapping[str, Any]) -> bool:
    # `datasets` fills the keys that a part lacks with None
    return part.get("type") in ("image", "image_url") or any(part.get(key) is not None for key in _SOURCES[:2])


def _loaded(image: Any) -> Any:
    if isinstance(image, Mapping):  # OpenAI's form, or what `datasets` makes of a picture in a message
        if image.get("bytes") is not None:
            image = f"data:image/png;base64,{base64.b64encode(image['bytes']).decode()}"
        else:
            image = image.get("url") or image.get("path")
    return load_image(image.removeprefix("file://") if isinstance(image, str) else image)

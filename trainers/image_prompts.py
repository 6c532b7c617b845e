"""What a vision-language model reads of a row beside its token ids, and how that grows with a prefix.

Token types name the places of images among the tokens; a prefix has none. All else (pixels, grids, masks over pixels)
is indexed by images or patches, which a prefix does not touch.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin
from trl import prepare_multimodal_messages

from .message_images import LIMITS

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
_OF_IMAGES = ("pixel_", "image_", "spatial_")
_TO_A_COLUMN = (
    "Put the images into a column before, with `images_to_column(dataset, processor)` of `trainers.message_images`."
)
_IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


def with_images(row: Mapping[str, Any]) -> Any:
    """The prompt of a dataset's row with the images of its `images` or `image` column in it, as TRL puts them in."""
    prompt, images = row["prompt"], row.get("images")
    if images is None and row.get("image") is not None:
        images = [row["image"]]
    if not isinstance(prompt, list) or not {"image", "images"} & row.keys():
        return prompt
    return prepare_multimodal_messages(prompt, images=images)


def check_messages(messages: Any) -> None:
    """
    Raises:
        ValueError: If an image entry of a prompt is an `image_url` or has limits, which chat templates leave out
            without a word.
    """
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            left_out = [name for name in ("image_url", *LIMITS) if part.get(name) is not None]
            if left_out:
                raise ValueError(
                    f"A prompt of `train_dataset` has an image entry with {', '.join(left_out)}, which chat templates "
                    f"leave out. {_TO_A_COLUMN}"
                )


def check_text(token_ids: Sequence[int], image_tokens: set[int]) -> None:
    """
    Raises:
        ValueError: If a row of a dataset without a column of images stands for some: they were dropped.
    """
    if not image_tokens.isdisjoint(token_ids):
        raise ValueError(
            "`train_dataset` names images in its messages and has no column `images` or `image`, so TRL takes it for "
            f"text and drops them. {_TO_A_COLUMN}"
        )


def padding_left(processing_class: Any) -> Any:
    """
    A processor that pads on the left, as those do that TRL loads itself for rollouts: TRL pads the ids of prompts on
    the left, and takes token types as the processor has padded them. Tokenizers are returned as they are.
    """
    if not isinstance(processing_class, ProcessorMixin) or processing_class.tokenizer.padding_side == "left":
        return processing_class
    processing_class = copy.deepcopy(processing_class)
    processing_class.tokenizer.padding_side = "left"
    return processing_class


def without_padding(
    prompt_ids: list[list[int]], fields: Mapping[str, Any], tokenizer: Any
) -> tuple[list[list[int]], dict[str, Any]]:
    """
    Tokenised prompts and their token types, without padding in front. Some processors (Gemma 4's, Aya's) pad unless
    told not to, and TRL 1.16 takes what they return for unpadded: the prefix would stand in front of pads, which the
    model would attend to. Where BOS is the padding token, rows cannot be told from padded ones and are left alone.
    """
    if tokenizer.pad_token_id == tokenizer.bos_token_id:
        return prompt_ids, dict(fields)
    pads = [
        next((index for index, token in enumerate(row) if token != tokenizer.pad_token_id), len(row))
        for row in prompt_ids
    ]
    types = {
        name: [row[n:] for row, n in zip(fields[name], pads, strict=True)] for name in TOKEN_TYPES if name in fields
    }
    return [row[n:] for row, n in zip(prompt_ids, pads, strict=True)], {**fields, **types}


def image_token_ids(config: Any) -> set[int]:
    """The ids that stand for pieces of images or videos, by the names that families give them in their configs."""
    ids = (getattr(config, name, None) for name in _IMAGE_TOKENS)
    return {token for token in ids if token is not None}


def as_tensors(fields: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What a processor returned for one row, as tensors: those of tokens get a first dimension of 1."""
    return {
        name: value if isinstance(value, torch.Tensor) else torch.as_tensor(np.array(value))
        for name, value in fields.items()
    }


def widen_token_types(fields: Mapping[str, Any], width: int) -> dict[str, Any]:
    """
    Fields of rows that are padded on the left, with token types (B, S) grown to `width` by zeros in front.

    That is where the prefix is, or right behind a BOS of the same type.
    """
    widened = dict(fields)
    for name in TOKEN_TYPES:
        types = fields.get(name)
        if types is not None:
            widened[name] = torch.nn.functional.pad(types, (width - types.shape[1], 0))
    return widened


def images_by_row(fields: Mapping[str, Any]) -> dict[str, Any]:
    """
    Fields as TRL passes them on, with one "image" per row for processors that stack the images of a row (Idefics,
    SmolVLM; TRL 1.16 takes those for one image per entry where a batch has as many images as rows, and would hand
    rows each other's).
    """
    stacked = fields.get("pixel_attention_mask") is not None and fields.get("spatial_shapes") is None
    if not stacked or fields.get("num_images") is None:
        return dict(fields)
    return {**fields, "num_images": [1] * len(fields["num_images"])}


def without_absent_images(model: Callable[..., Any], image_tokens: set[int]) -> Callable[..., Any]:
    """
    The model, called without pixels where no row has an image: vision towers refuse a batch of none, which is what is
    left to rows of text that TRL scores apart from the others.
    """

    def call(input_ids: torch.Tensor, **inputs: Any) -> Any:
        if "pixel_values" in inputs and not any(bool((input_ids == token).any()) for token in image_tokens):
            inputs = {name: value for name, value in inputs.items() if not name.startswith(_OF_IMAGES)}
        return model(input_ids=input_ids, **inputs)

    return call


def repeat_row(fields: Mapping[str, torch.Tensor], count: int, width: int, device: Any) -> dict[str, torch.Tensor]:
    """The fields of one row, `count` times, for rows that have grown to `width` tokens."""
    widened = widen_token_types(fields, width)
    return {name: torch.cat([value] * count).to(device) for name, value in widened.items()}

"""Images named in chat messages, by path, URL or data, with limits of their own: what users of qwen-vl-utils write.

A chat template of transformers renders `{"type": "image"}` and knows nothing of `image_url` entries or `max_pixels`:
it drops the one without a word and ignores the other. So entries are read here, and the template gets plain ones.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import unquote

from transformers.image_utils import load_image

try:  # it needs torchvision
    from qwen_vl_utils import process_vision_info
except ImportError:
    process_vision_info = None

SOURCES = ("image", "image_url", "url", "path", "base64")
_MESSAGES, _MOVED = ("prompt", "completion", "messages"), " moved"  # columns, and an ending that no column has
LIMITS = ("min_pixels", "max_pixels", "resized_height", "resized_width")


@dataclass(frozen=True)
class MessageImages:
    """
    Conversations and their images, ready for a processor.

    Args:
        conversations (`list[list[dict]]`): As given, with `{"type": "image"}` for every image: what templates render.
        images (`list[list[PIL.Image.Image]]`): The images of each conversation, in order.
        resized (`bool`): Whether the images have their final size, as images with limits do.
    """

    conversations: list[list[dict[str, Any]]]
    images: list[list[Any]]
    resized: bool

    @property
    def processor_kwargs(self) -> dict[str, Any]:
        """What the processor has to be called with beside text and images: resized images are not resized again."""
        return {"do_resize": False} if self.resized else {}


def load_message_images(conversations: Sequence[Sequence[Mapping[str, Any]]], processor: Any) -> MessageImages:
    """
    Load what the messages name.

    An entry of a message's `content` is an image if its `type` is `image` or `image_url`, or if it has one of these
    keys: `image` or `image_url` (an image, a path, a `file://`, `http://` or `https://` URL, `data:image/...;base64,`
    data, or a dict with one of these under `url`). `url`, `path` and `base64` are transformers' own names.

    With a Qwen-VL processor, entries may have limits: `min_pixels` and `max_pixels`, or `resized_height` and
    `resized_width`, as `qwen_vl_utils.process_vision_info` reads them. It resizes all images of a call in which one
    has limits; those without get the processor's own.

    Args:
        conversations (sequence of conversations): Lists of messages with `role` and `content`.
        processor (`ProcessorMixin`): The model's processor.

    Returns:
        `MessageImages`: For `processor.apply_chat_template` and `processor(text=..., images=...)`.

    Raises:
        ImportError: If an image has limits and qwen-vl-utils is not installed.
        TypeError: If a conversation is not a list of messages.
        ValueError: If an image cannot be loaded, an entry names none or two, its limits contradict each other or the
            processor is none of Qwen-VL's, or an entry is a video.
    """
    plain: list[list[dict[str, Any]]] = []
    entries: list[list[Mapping[str, Any]]] = []
    for conversation in conversations:
        if isinstance(conversation, Mapping | str):
            raise TypeError(
                f"`conversations` must hold lists of messages, got a {type(conversation).__name__}; put one "
                "conversation into a list: [messages]."
            )
        messages, found = _without_images(conversation)
        plain.append(messages)
        entries.append(found)
    limited = any(_limits(entry) for found in entries for entry in found)
    load = _qwen_loader(processor) if limited else _load
    return MessageImages(plain, [[load(entry) for entry in found] for found in entries], limited)


def images_to_column(dataset: Any, processor: Any, **map_kwargs: Any) -> Any:
    """
    A dataset whose messages name images, in the form that TRL's trainers take: plain entries in the messages, and the
    images in a column.

    Args:
        dataset (`Dataset` or `IterableDataset`): With messages in `prompt`, `completion` or `messages`, whose image
            entries are those of [`load_message_images`].
        processor (`ProcessorMixin`): The model's processor.
        map_kwargs: For `dataset.map`, such as `num_proc`.

    Returns:
        `Dataset` or `IterableDataset`: With the column `images`. Streams load images when their rows are read.

    Raises:
        ValueError: If a row has images in a column already, for images to which the processor, which TRL calls without
            more ado, would give another size than their limits did, and as [`load_message_images`].
    """
    columns = [name for name in _MESSAGES if name in (dataset.column_names or ())]
    if not hasattr(dataset, "__getitem__"):  # a stream, whose rows have no type to keep
        return dataset.map(row_with_images, fn_kwargs={"processor": processor}, **map_kwargs)

    def renamed(row: Mapping[str, Any]) -> dict[str, Any]:
        moved = row_with_images(row, processor)
        return {name if name == "images" else f"{name}{_MOVED}": moved[name] for name in (*columns, "images")}

    # Under the old name a column keeps its type: entries would have `image` still, as None, and pass for filled.
    moved = dataset.map(renamed, remove_columns=columns, **map_kwargs)
    return moved.rename_columns({f"{name}{_MOVED}": name for name in columns})


def row_with_images(row: Mapping[str, Any], processor: Any) -> dict[str, Any]:
    """One row, as [`images_to_column`] has it."""
    columns = [name for name in _MESSAGES if isinstance(row.get(name), Sequence)]
    columns = [name for name in columns if not isinstance(row[name], str)]
    taken = [name for name in ("image", "images") if row.get(name)]
    if taken:
        raise ValueError(f"The column `{taken[0]}` of a row has images already; its messages must not name others.")
    loaded = load_message_images([row[name] for name in columns], processor)
    images = [image for found in loaded.images for image in found]
    if loaded.resized:
        size = processor.image_processor.size
        least, most = size["shortest_edge"], size["longest_edge"]
        for image in images:
            if not least <= image.width * image.height <= most:
                raise ValueError(
                    f"The limits of an image make it {image.width} x {image.height} pixels, but the processor's own "
                    f"are {least} to {most} pixels: TRL's trainers would have it resized again. Load the processor "
                    "with `min_pixels` and `max_pixels` that allow for it."
                )
    return {**row, **dict(zip(columns, loaded.conversations, strict=True)), "images": images}


def _without_images(conversation: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """The messages with plain image entries, and the entries as they were."""
    messages, found = [], []
    for message in conversation:
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            parts: list[Any] = []
            for part in content:
                if isinstance(part, Mapping):
                    # a column of a dataset gives every part the keys of all, and templates ask for keys alone
                    part = {key: value for key, value in part.items() if value is not None}
                if isinstance(part, Mapping) and (part.get("type") == "video" or "video" in part):
                    raise ValueError(
                        "`conversations` has a video, and only images are read here; pass its frames as images."
                    )
                if isinstance(part, Mapping) and _is_image(part):
                    found.append(part)
                    parts.append({"type": "image"})
                else:
                    parts.append(part)
            content = parts
        messages.append({**message, "content": content})
    return messages, found


def _is_image(part: Mapping[str, Any]) -> bool:
    return part.get("type") in ("image", "image_url") or "image" in part or "image_url" in part


def _limits(entry: Mapping[str, Any]) -> dict[str, int]:
    return {name: entry[name] for name in LIMITS if entry.get(name) is not None}


def _source(entry: Mapping[str, Any]) -> Any:
    """What an entry names: an image, a path that exists, a URL or base64 data."""
    named = {key: entry[key] for key in SOURCES if entry.get(key) is not None}
    if len(named) != 1:
        raise ValueError(
            f"An image entry of `conversations` must have exactly one of {', '.join(SOURCES)}, got "
            f"{sorted(named) or 'none of them'}. Where images are in a column of their own, put them in first, as "
            "`trl.data_utils.prepare_multimodal_messages` does."
        )
    [(key, source)] = named.items()
    if isinstance(source, Mapping):  # OpenAI's form, or an image of a `datasets` column that is not decoded
        if source.get("bytes") is not None:
            return _from_bytes(source["bytes"], f"the bytes under `{key}`")
        source = source.get("url") or source.get("path")
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        return source
    if key == "base64" and not source.startswith("data:"):
        source = f"data:image/png;base64,{source}"
    if source.startswith("data:"):
        data = source.partition("base64,")[2]
        try:
            decoded = base64.b64decode(data, validate=True)
        except ValueError as error:
            raise ValueError(f"The image {_shown(source)!r} is not base64 data: {error}.") from error
        return _from_bytes(decoded, _shown(source))
    if source.startswith(("http://", "https://")):
        return source
    path = source.removeprefix("file://")
    if path != source and not os.path.isfile(path):
        path = unquote(path)  # qwen-vl-utils takes a URL's path as it stands, browsers write %20 for a space
    if not os.path.isfile(path):
        raise ValueError(
            f"The image {_shown(source)!r} is no file; give a path, a file:// or http(s):// URL, "
            "data:image/...;base64 data or an image."
        )
    return path


def _from_bytes(data: bytes, shown: str) -> Any:
    try:  # transformers asks everyone for what the code of a checkpoint imports outside of a `try`
        from PIL import Image
    except ImportError as error:
        raise ImportError("Images are read by Pillow: `pip install pillow`.") from error
    try:
        return Image.open(BytesIO(data))
    except OSError as error:
        raise ValueError(f"The image {shown!r} could not be loaded: {error}.") from error


def _load(entry: Mapping[str, Any]) -> Any:
    """An image in its own size."""
    source = _source(entry)
    try:
        return load_image(source)
    except Exception as error:  # of PIL, of httpx, of the file system
        raise ValueError(f"The image {_shown(source)!r} could not be loaded: {error}.") from error


def _qwen_loader(processor: Any) -> Any:
    """Loads an entry as `process_vision_info` does, with the processor's own limits where it has none."""
    image_processor: Any = getattr(processor, "image_processor", None)
    size = getattr(image_processor, "size", None) or {}
    own: dict[str, Any] = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    # qwen-vl-utils is written for Qwen's merges of 2 x 2 patches
    if None in own.values() or getattr(image_processor, "merge_size", None) != 2:
        raise ValueError(
            f"`conversations` has images with limits ({', '.join(LIMITS)}), which Qwen-VL processors know; "
            f"{type(image_processor).__name__} does not. Resize such images yourself and pass them without limits."
        )
    if process_vision_info is None:
        raise ImportError(
            f"`conversations` has images with limits ({', '.join(LIMITS)}), which need qwen-vl-utils and torchvision: "
            "pip install 'reasoning-palette[vision]'."
        )
    patch_size = image_processor.patch_size

    def load(entry: Mapping[str, Any]) -> Any:
        limits = _limits(entry)
        if ("resized_height" in limits) != ("resized_width" in limits):
            raise ValueError(f"An image entry has {limits}; give `resized_height` and `resized_width` together.")
        if "resized_height" not in limits:
            limits = own | limits
            if limits["min_pixels"] > limits["max_pixels"]:
                raise ValueError(
                    f"An image entry has `min_pixels` {limits['min_pixels']} above `max_pixels` "
                    f"{limits['max_pixels']}, of which the processor gives what the entry does not; set both."
                )
        source = _source(entry)
        try:
            content = [{"type": "image", "image": _upright(source), **limits}]
            images, _ = process_vision_info([{"role": "user", "content": content}], image_patch_size=patch_size)
        except Exception as error:  # of PIL, of requests, of an image too thin
            raise ValueError(f"The image {_shown(source)!r} could not be loaded with {limits}: {error}.") from error
        return images[0]

    return load


def _upright(source: Any) -> Any:
    """An image of a file as `load_image` turns it, which qwen-vl-utils does not; URLs are left to the latter."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        return source
    if isinstance(source, str):
        if source.startswith(("http://", "https://")):
            return source
        source = Image.open(source)
    return ImageOps.exif_transpose(source) if isinstance(source, Image.Image) else source


def _shown(source: Any) -> str:
    """A name for messages, of a length to be read."""
    text = source if isinstance(source, str) else type(source).__name__
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"

"""Prompts as a model takes them: texts, or conversations with or without images."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..trainers.message_images import load_message_images

Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]  # a text, or a conversation


def padding_token_id(tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> int | None:
    """Of a tokenizer, or of a processor's."""
    return getattr(tokenizer, "tokenizer", tokenizer).pad_token_id


def count_images(prompt: Prompt) -> int:
    """Images that the messages of a prompt name."""
    if isinstance(prompt, str):
        return 0
    contents = [message.get("content") for message in prompt]
    parts = [part for content in contents if not isinstance(content, str) and content for part in content]
    return sum(part.get("type") in ("image", "image_url") for part in parts)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin, prompts: Sequence[Prompt]
) -> Mapping[str, Any]:
    """Tokenizes a batch, padded on the left.

    Texts are taken as they are. Conversations go through the chat template, up to where the assistant begins, and
    their images are loaded ([`~trainers.message_images.load_message_images`]).

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): With a padding token.
        prompts (sequence of `str`, or of conversations): B prompts.

    Returns:
        `Mapping[str, Any]`: `input_ids` and `attention_mask` (B, S), and what else the model takes.

    Raises:
        ValueError: If texts and conversations are mixed, there is no chat template, or images meet a tokenizer.
    """
    conversations = [prompt for prompt in prompts if not isinstance(prompt, str)]
    options = {"return_tensors": "pt", "padding": True, "padding_side": "left"}
    if not conversations:
        text_tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        return text_tokenizer(list(prompts), return_token_type_ids=False, **options)
    if len(conversations) < len(prompts):
        raise ValueError(
            f"Of {len(prompts)} prompts, {len(conversations)} are conversations and the others texts; a benchmark's "
            "`prompt` must return the one or the other."
        )
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"`tokenizer` ({type(tokenizer).__name__}) has no chat template, which conversations need; set "
            "`tokenizer.chat_template`."
        )
    loaded = load_message_images(conversations, tokenizer)
    texts = tokenizer.apply_chat_template(loaded.conversations, tokenize=False, add_generation_prompt=True)
    # the template has written what opens a text
    options["add_special_tokens"] = False
    if not any(loaded.images):
        return tokenizer(text=texts, **options)
    if not isinstance(tokenizer, ProcessorMixin):
        raise ValueError(
            f"The prompts have images, but `tokenizer` is a {type(tokenizer).__name__}; pass the model's processor."
        )
    return tokenizer(text=texts, images=loaded.images, **options, **loaded.processor_kwargs)

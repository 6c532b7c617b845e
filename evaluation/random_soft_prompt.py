"""The baseline that needs no palette: random vectors shaped like the embedding table, in front of the prompt.

"From Noise to Diversity: Random Embedding Injection in LLM Reasoning" (arXiv 2605.11936) draws them afresh for every
sample from a Gaussian fitted to the entrywise mean and variance of the embedding table. A palette has to beat that at
equal length before its VAE can claim any credit.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..modeling_palette.latent_prefix import splice


def embedding_statistics(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every entry of the embedding, over the tokens of the vocabulary.

    Taken from the *output* of the input embedding, which differs from its table where the module scales (Gemma).

    Returns:
        `tuple[Tensor, Tensor]`: Mean and standard deviation, each float32 of shape (H,).
    """
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        count = embedding.num_embeddings
        total = torch.zeros(embedding.embedding_dim, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for ids in torch.arange(count, device=embedding.weight.device).split(16_384):
            rows = embedding(ids).to("cpu", torch.float64)
            total += rows.sum(0)
            squares += rows.square().sum(0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    return mean.float(), deviation.float()


def draw_soft_prompts(
    model: PreTrainedModel, num_sequences: int, num_prefix_tokens: int, generator: torch.Generator
) -> Tensor:
    """Draws one random soft prompt per sequence.

    Args:
        model (`PreTrainedModel`): Model whose embedding is imitated.
        num_sequences (`int`): Number N of sequences.
        num_prefix_tokens (`int`): Length L.
        generator (`torch.Generator`): CPU generator of the draws.

    Returns:
        `Tensor`: (N, L, H), float32, on the CPU.
    """
    mean, deviation = embedding_statistics(model)
    noise = torch.randn(num_sequences, num_prefix_tokens, len(mean), generator=generator)
    return mean + deviation * noise


def splice_soft_prompts(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, soft_prompts: Tensor
) -> dict[str, Tensor]:
    """Embeds a left-padded batch and puts a soft prompt between the padding and the first token of every row.

    Positions in transformers are counted along the attention mask, so a padded row sees the positions of an unpadded
    one. In front of the padding, the prefix would be moved away from its prompt on sliding-window models.

    Args:
        model (`PreTrainedModel`): Model whose input embedding is applied.
        input_ids (`Tensor`): (N, S), padded on the left.
        attention_mask (`Tensor`): (N, S).
        soft_prompts (`Tensor`): (N, L, H).

    Returns:
        `dict[str, Tensor]`: `inputs_embeds` (N, L + S, H) and `attention_mask` (N, L + S), for `generate`.

    Raises:
        ValueError: If a row is padded on the right.
    """
    if (attention_mask.diff(dim=1) < 0).any():
        raise ValueError(
            "`attention_mask` has rows that are padded on the right; tokenize with `padding_side='left'`."
        )
    embeds = model.get_input_embeddings()(input_ids)
    num_padding = (attention_mask == 0).sum(1).tolist()
    rows = [
        torch.cat([row[:padding], prompt, row[padding:]])
        for row, prompt, padding in zip(embeds, soft_prompts.to(embeds), num_padding, strict=True)
    ]
    ones = attention_mask.new_ones(soft_prompts.shape[:2])
    return {"inputs_embeds": torch.stack(rows), "attention_mask": torch.cat([attention_mask, ones], dim=1)}


@contextmanager
def place_soft_prompts(
    model: PreTrainedModel, inputs: Mapping[str, Any], soft_prompts: Tensor, token_id: int
) -> Iterator[dict[str, Any]]:
    """Puts soft prompts in front of prompts with images, for one call of the model.

    With `inputs_embeds` some families lose what they compute of images along the way (Qwen3-VL's deepstack), or take
    image tokens for text. So the rows get L more ids of an ordinary token, and what the embedding makes of these is
    replaced.

    Args:
        model (`PreTrainedModel`): Model whose input embedding is applied.
        inputs (`Mapping[str, Any]`): Of a processor: `input_ids` and `attention_mask` (N, S), padded on the left.
        soft_prompts (`Tensor`): (N, L, H).
        token_id (`int`): The token that holds the places, of which other tables of a model may keep rows as well
            (Gemma 4): the padding token.

    Yields:
        `dict[str, Any]`: The inputs with ids, mask and token types L columns wider.

    Raises:
        RuntimeError: If no call has read them.
    """
    mask = inputs["attention_mask"]
    count, length = soft_prompts.shape[:2]
    offsets = mask.int().argmax(1)
    widened = dict(inputs)
    for name, value in (
        ("input_ids", token_id),
        ("attention_mask", 1),
        ("token_type_ids", 0),
        ("mm_token_type_ids", 0),
    ):
        if name in widened:
            widened[name] = splice(widened[name], mask.new_full((count, length), value), offsets)
    places = offsets[:, None] + torch.arange(length, device=mask.device)
    rows = torch.arange(count, device=mask.device)[:, None]
    was_read = False

    def replace(_: torch.nn.Module, __: Any, embeds: Tensor) -> Tensor | None:
        nonlocal was_read
        if embeds.shape[:2] != widened["input_ids"].shape:
            return None  # a step of decoding
        was_read = True
        return embeds.index_put((rows.to(embeds.device), places.to(embeds.device)), soft_prompts.to(embeds))

    handle = model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield widened
    finally:
        handle.remove()
    if not was_read:
        raise RuntimeError("The model has read no whole prompt, so the soft prompts were not in front of it.")

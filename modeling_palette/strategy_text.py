"""Strategies as text: a tokenizer whose added tokens spell them, and a chat template that takes `strategy="..."`."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import AddedToken

STRATEGY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def token_texts(name: str, num_rows: int) -> list[str]:
    """Texts of a strategy's tokens: one, or one for each position."""
    if num_rows == 1:
        return [f"<|strategy:{name}|>"]
    return [f"<|strategy:{name}:{position}|>" for position in range(num_rows)]


def add_tokens(tokenizer: Any, texts: list[str], num_rows: int, taken: set[int]) -> tuple[Any, list[int]]:
    """
    A copy of a tokenizer with these special tokens.

    Args:
        tokenizer: The base's tokenizer.
        texts (`list[str]`): The tokens.
        num_rows (`int`): Rows of the base's vocabulary; those beyond the tokenizer's tokens are free.
        taken (`set[int]`): Rows that the base's configs name, which no token may take.

    Returns:
        The copy and the ids of the tokens.

    Raises:
        ValueError: if a text is a token already, if the base has fewer rows than the tokenizer has tokens, or if the
            ids that the tokenizer gives are in use or not behind all others.
    """
    tokenizer = copy.deepcopy(tokenizer)
    known = dict(tokenizer.get_vocab())
    clash = [text for text in texts if text in known]
    if clash:
        raise ValueError(f"`strategies`: the tokenizer has a token {clash[0]!r} already. Choose another name.")
    highest = max(known.values())
    if highest >= num_rows:
        raise ValueError(
            f"The tokenizer has tokens up to id {highest}, but the base's vocabulary has {num_rows} rows: the two do "
            "not belong together. Give the base's own tokenizer, or call `model.resize_token_embeddings` first."
        )
    # among the extra special tokens, which `all_special_ids`, and so slow detokenizers, go by
    added = [AddedToken(text, special=True, normalized=False, lstrip=False, rstrip=False) for text in texts]
    tokenizer.add_special_tokens({"extra_special_tokens": added}, replace_extra_special_tokens=False)
    ids = tokenizer.convert_tokens_to_ids(texts)
    wrong = sorted(set(ids) & (set(known.values()) | taken))
    if wrong or len(set(ids)) != len(texts):
        raise ValueError(
            f"The tokenizer gives its new tokens the ids {wrong or ids}, which are in use. Free them, or give another "
            "`tokenizer`."
        )
    if min(ids) <= highest:
        raise ValueError(
            f"The tokenizer's ids have gaps: it gives its new tokens the ids {min(ids)} to {max(ids)}, but has one "
            f"with id {highest}, and the rows in a gap are ordinary ones of the base. Give a `tokenizer` without gaps."
        )
    return tokenizer, ids


def with_strategies(template: Any, texts: dict[str, str], bos: str | None) -> Any:
    """
    A chat template that puts the strategy of its variable `strategy` in front, or behind a leading BOS.

    Args:
        template (`str` or `dict[str, str]`): The base's template, or templates by name.
        texts (`dict[str, str]`): Strategy -> its tokens.
        bos (`str`, *optional*): The BOS to go behind, for palettes whose prefix stands there.

    Returns:
        The same type. Without the variable, what the base's template gives.
    """
    if isinstance(template, dict):
        return {name: with_strategies(one, texts, bos) for name, one in template.items()}
    # Chat templates are compiled with `trim_blocks`, which takes the line break behind each of these statements.
    names = ", ".join(sorted(texts))
    head = (
        "{%- set palette_strategies = " + json.dumps(texts) + " %}\n"
        "{%- if strategy is defined and strategy is not none and strategy not in palette_strategies %}\n"
        "{{- raise_exception('strategy must be one of " + names + "; got ' ~ strategy) }}\n"
        "{%- endif %}\n"
        "{%- set palette_prefix = palette_strategies[strategy] "
        "if strategy is defined and strategy is not none else '' %}\n"
    )
    if bos is None:
        return head + "{{- palette_prefix }}\n{%- set palette_prefix = none %}\n" + template
    literal = json.dumps(bos)
    body = template.removesuffix("\n")  # Jinja drops it at the end of a template, but not inside of a block
    # Inside of `set`, the marks of `generation` (masks of the assistant's tokens) are lost: not where no strategy is
    # asked for.
    return (
        head + "{%- if not palette_prefix %}\n" + body + "{%+ else %}\n"
        "{%- set palette_text %}\n" + body + "{%+ endset %}\n"
        "{%- if palette_text[:" + str(len(bos)) + "] == " + literal + " %}\n"
        "{{- " + literal + " ~ palette_prefix ~ palette_text[" + str(len(bos)) + ":] }}\n"
        "{%- else %}\n"
        "{{- palette_prefix ~ palette_text }}\n"
        "{%- endif %}\n"
        "{%- endif %}"
    )


def reading_warnings(
    tokenizer: Any, name: str, text: str, token_ids: list[int], position: str, insert: Callable[..., list[int]]
) -> list[str]:
    """
    What a user of a strategy's text must know of a tokenizer: some read the text behind it otherwise than on its own.

    Those of Llama 2 and Mistral mark the first word of a text (`▁hello`) and not what follows a special token, and
    some put BOS in front of any text.

    Args:
        tokenizer: The exported one.
        name, text, token_ids: Of a strategy.
        position (`str`): The palette's `prefix_position`.
        insert (`Callable`): `model.insert_latent_ids`, which puts ids at that position of a prompt's ids.

    Returns:
        `list[str]`: Warnings, none where prompts are read as on their own.
    """
    found = []
    if position == "after_bos" and re.search(r"{%[-+]?\s*generation\b", str(tokenizer.chat_template or "")):
        found.append(
            "The chat template marks the assistant's tokens, but behind a strategy `return_assistant_tokens_mask` "
            "does not find them. Ask for the mask without `strategy` and put zeros where the strategy stands."
        )
    first = tokenizer(text + "a b")["input_ids"][: len(token_ids)]
    writes_bos = position == "start" and first != token_ids

    def behind(words: str) -> list[int]:
        if writes_bos:
            return tokenizer(text + (tokenizer.bos_token or "") + words, add_special_tokens=False)["input_ids"]
        return tokenizer(text + words)["input_ids"]

    # "a b", and words of the vocabulary, which a tokenizer of whole words may tell apart where it does not know "a"
    ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    chosen = torch.linspace(0, len(ordinary) - 1, min(len(ordinary), 32)).long().tolist()
    samples = ["a b", *(tokenizer.decode([ordinary[index]]) for index in chosen)]
    pairs = ((words, behind(words), insert(tokenizer(words)["input_ids"], token_ids)) for words in samples if words)
    differing = next((pair for pair in pairs if pair[1] != pair[2]), None)
    where = "in front of the prompt's ids" if position == "start" else "behind the BOS of the prompt's ids"
    way_out = f"Put the strategy's `token_ids` {where} instead of its text into the prompt's text."
    if differing is not None:
        words, got, expected = (one if isinstance(one, str) else one[-8:] for one in differing)
        found.append(
            f"This tokenizer reads a text behind a strategy otherwise than on its own: of {words!r}, the last ids are "
            f"{got} and not {expected}. {way_out}"
        )
    elif writes_bos:
        found.append(
            "This tokenizer puts BOS in front of any text, but these strategies stand in front of BOS. Chat templates "
            "do so; for plain text pass `add_special_tokens=False` and write the BOS behind the strategy yourself."
        )
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": "a b"}]
        try:
            plain = tokenizer.apply_chat_template(messages, return_dict=False)
        except Exception:  # templates by name, or one that needs other messages
            return found
        if tokenizer.apply_chat_template(messages, strategy=name, return_dict=False) != insert(plain, token_ids):
            found.append(
                "With `strategy`, this chat template's text is tokenised otherwise than without it. Apply it without "
                f"`strategy`. {way_out}"
            )
    return found

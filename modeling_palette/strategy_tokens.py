"""Named strategy tokens: latents written as rows of a stock checkpoint's vocabulary, for engines without this code."""

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .constant_channel import widened
from .latent_prefix import Domain
from .named_strategies import Strategy, asked_strategies, prefix_of_strategy, rows_of_prefix
from .per_layer_embeddings import per_layer_embeddings
from .stock_base import all_or_nothing, base_tensors, embedding_scale, padded, rebuilt_base, unused_folder
from .strategy_check import check_export, probe_ids
from .strategy_guard import choose_guard, final_norm_of, guarded_head
from .strategy_text import add_tokens, reading_warnings, token_texts, with_strategies
from .unverified_bases import evaluating

STRATEGIES_FILE = "strategies.json"
# Families whose head vLLM 0.32 takes from the input embedding whatever the config says, or whose heads' size it takes
# from the width: read in its `model_executor/models`.
NOT_IN_VLLM = {
    "cohere": "always ties the head to the input embedding",
    "cohere2": "always ties the head to the input embedding",
    "gemma2": "always ties the head to the input embedding",
}
NOT_WIDER_IN_VLLM = {"qwen2": "derives the size of the attention heads from `hidden_size`"}


def export_strategy_tokens(
    model: Any,
    folder: str | Path,
    strategies: Mapping[str, Any] | None = None,
    num_strategies: int | None = None,
    domain: Domain = None,
    latent_seed: int | None = None,
    num_prefix_tokens: int | None = None,
    latent_tile: bool = False,
    guard: str = "auto",
    tokenizer: Any = None,
) -> dict[str, Any]:
    r"""
    Write a stock checkpoint of the base's own class in which strategies are ordinary tokens, for transformers, vLLM
    and every engine that reads the base: no code of a palette is in it or needed for it.

    Each strategy becomes L special tokens (one where its rows are equal). A prompt that starts with them is answered
    as `generate(latent=...)` answers it. Ordinary tokens keep their ids and their log-probabilities. What was written
    is loaded again and its logits are compared with this model's before the folder appears. Where the tokenizer reads
    a text behind a strategy otherwise than on its own (those of Llama 2 and Mistral do), a warning says so: put the
    `token_ids` in front of the prompt's ids.

    `folder` gets the checkpoint, its tokenizer, `generation_config.json` with `suppress_tokens`, a chat template
    (where the tokenizer has one) that takes `strategy="name"`, and `strategies.json`: the text, token ids and code of
    each strategy.

    Args:
        model ([`PaletteForCausalLM`]): The palette model.
        folder (`str` or `Path`): Where to write; must not exist, or be empty.
        strategies (`dict`, *optional*): Name -> what `generate(latent=...)` takes for one sequence (a code, or a float
            tensor of shape `(Z,)` or `(L, Z)`, which sets L where it is more than 1), or a dict of palette arguments
            of `generate`, such as `{"domain": "math", "latent_seed": 3}`.
        num_strategies (`int`, *optional*): K draws instead of `strategies`, named by their domain: `math-0`, `math-1`.
        domain (*optional*): Source of the K draws, as `generate` takes it; the prior by default.
        latent_seed (`int`, *optional*): Seed of the K draws.
        num_prefix_tokens (`int`, *optional*): L, where a strategy does not name its own; the config's by default.
        latent_tile (`bool`, *optional*, defaults to `False`): One latent, L times, where a strategy does not say.
        guard (`str`, *optional*, defaults to `"auto"`): What keeps the tokens from being sampled by engines other than
            transformers: `"bias"`, `"layer_norm"` or `"channel"` ("auto" takes the one that this base has room for;
            see `strategy_guard.py`). `"suppress_tokens"` leaves that to transformers' generation config. `"channel"`
            makes the model some channels wider and re-rounds the weights of its norms.
        tokenizer (*optional*): The base's; `model.tokenizer` by default.

    Returns:
        `dict`: What `strategies.json` holds.

    Raises:
        ValueError: for contradictory or unknown strategies, a folder in use, a model without palette or tokenizer, a
            base whose logits an export cannot reproduce, and one without a guard.
    """
    folder = unused_folder(folder)
    model._require_palette()
    model._check_frozen_layout()
    model._sync_domains()
    model._warn_untrained()
    tokenizer = tokenizer if tokenizer is not None else model.tokenizer
    if tokenizer is None:
        raise ValueError("Strategies become tokens, but this model has no tokenizer. Give `tokenizer`.")
    defaults = {"num_prefix_tokens": num_prefix_tokens, "latent_tile": latent_tile}
    asked = asked_strategies(model.config, strategies, num_strategies, domain, latent_seed)
    prefixes = {name: prefix_of_strategy(model.config, name, value, defaults) for name, value in asked.items()}
    with torch.no_grad():
        rows = {name: rows_of_prefix(model, prefix) for name, prefix in prefixes.items()}

    embedding = model.get_input_embeddings()
    texts = [text for name in rows for text in token_texts(name, len(rows[name]))]
    num_rows = embedding.weight.shape[0]
    ordinary = max(tokenizer.get_vocab().values()) + 1
    exported_tokenizer, ids = add_tokens(tokenizer, texts, num_rows, _named_ids(model))
    remaining = iter(ids)
    written = [Strategy(name, prefixes[name], rows[name], [next(remaining) for _ in rows[name]]) for name in rows]

    with evaluating(model):
        with torch.no_grad():
            base, kind = _with_rows(model, written, guard, ordinary)
        _set_generation_config(base.generation_config, ids)
        is_after_bos = model.config.prefix_position == "after_bos"
        bos_id = getattr(model.config.get_text_config(), "bos_token_id", None)
        bos = tokenizer.convert_ids_to_tokens(bos_id) if isinstance(bos_id, int) else None
        spelled = {
            strategy.name: "".join(exported_tokenizer.convert_ids_to_tokens(strategy.token_ids))
            for strategy in written
        }
        if getattr(tokenizer, "chat_template", None):
            exported_tokenizer.chat_template = with_strategies(
                tokenizer.chat_template, spelled, bos if is_after_bos else None
            )
        record = _record(model, written, spelled, kind, exported_tokenizer)

        with all_or_nothing(folder) as scratch:
            base.save_pretrained(scratch)
            exported_tokenizer.save_pretrained(scratch)
            del base
            with torch.no_grad():
                record["guard"]["smallest_margin"] = check_export(model, scratch, written, ordinary, kind)
            (scratch / STRATEGIES_FILE).write_text(json.dumps(record, indent=2) + "\n")
    for warning in record["warnings"]:
        warnings.warn(warning, stacklevel=3)
    return record


def _named_ids(model: Any) -> set[int]:
    """Ids that the base's configs name (pad, image placeholders, ...), with or without a token of that id."""
    found: set[int] = set()
    for config in (model.config.base_config, model.config.get_text_config(), model.generation_config):
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_index")):
                found |= {one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)}
    return found


def _with_rows(model: Any, strategies: list[Strategy], guard: str, ordinary: int) -> tuple[Any, str]:
    """The base with the strategies' rows in its input embedding and a guard in its head, and the kind of guard."""
    tensors = base_tensors(model)
    config = copy.deepcopy(model.config.base_config)
    probe = probe_ids(model, ordinary)
    kind = guard
    norm, norm_name, multiplier = None, "", 1.0
    if guard == "suppress_tokens":
        choose_guard(model, guard, torch.nn.Identity())
    else:
        norm, norm_name, multiplier = final_norm_of(model, probe)
        kind = choose_guard(model, guard, norm)

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    embedding_name, head_name = f"{names[embedding]}.weight", f"{names[head]}.weight"
    old_rows = embedding.weight.shape[0]
    ids = [one for strategy in strategies for one in strategy.ids]
    # Rows of padded vocabularies stay padded: tensor parallelism divides them.
    multiple = next(size for size in (128, 64, 8, 1) if old_rows % size == 0)
    num_rows = max(old_rows, -(-(max(ids) + 1) // multiple) * multiple)

    text_config = config.get_text_config()
    for one in (config, text_config):
        one.tie_word_embeddings = False
        if hasattr(one, "vocab_size"):
            one.vocab_size = num_rows
    config.architectures = [type(model).base_class.__name__]
    for name in (embedding_name, head_name):
        # copies: the rows are written in place, and a tied head gets a tensor of its own
        tensors[name] = padded(tensors[name], torch.Size([num_rows, tensors[name].shape[1]])).clone()
    bias_name = head_name.replace("weight", "bias")
    if bias_name in tensors:
        tensors[bias_name] = padded(tensors[bias_name], torch.Size([num_rows])).clone()

    table = per_layer_embeddings(model)
    if table is not None:  # Gemma 4's: to the palette's own embedding a latent is a pad there
        table_name = f"{names[table]}.weight"
        size, width = tensors[table_name].shape
        tensors[table_name] = padded(tensors[table_name], torch.Size([max(size, num_rows), width])).clone()
        tensors[table_name][ids] = tensors[table_name][text_config.pad_token_id or 0].clone()
        text_config.vocab_size_per_layer_input = max(size, num_rows)

    scale = embedding_scale(embedding)
    for strategy in strategies:
        rows = strategy.rows.to(embedding.weight)  # as the palette's own embedding hands them on
        tensors[embedding_name][strategy.ids] = (rows.double() / scale).to(rows)
    if kind == "channel":
        tensors = widened(model, config, tensors, norm_name, multiplier)
    silent = sorted({*ids, *range(old_rows, num_rows)})
    guarded_head(kind, tensors[head_name], tensors.get(bias_name), norm, silent, ordinary)
    return rebuilt_base(model, config, tensors), kind


def _set_generation_config(generation_config: Any, ids: list[int]) -> None:
    suppressed = list(generation_config.suppress_tokens or [])
    generation_config.suppress_tokens = suppressed + [one for one in ids if one not in suppressed]


def _record(
    model: Any, strategies: list[Strategy], spelled: dict[str, str], kind: str, tokenizer: Any
) -> dict[str, Any]:
    """What `strategies.json` holds."""
    by_source = {entry["source"]: name for name, entry in model.config.domains.items()}
    family, position = model.config.base_config.model_type, model.config.prefix_position
    found: list[str] = []
    if kind == "suppress_tokens":
        found.append(
            "Only transformers keeps these tokens from being sampled (`suppress_tokens`); other engines may sample "
            "them, each with a probability of at most 1 / V."
        )
    if family in NOT_IN_VLLM:
        found.append(f"vLLM 0.32 {NOT_IN_VLLM[family]} in {family} models: this export is for transformers.")
    elif kind == "channel" and family in NOT_WIDER_IN_VLLM:
        found.append(f"vLLM 0.32 {NOT_WIDER_IN_VLLM[family]} in {family} models and does not load this export.")
    name, ids = strategies[0].name, strategies[0].token_ids
    found += reading_warnings(tokenizer, name, spelled[name], ids, position, model.insert_latent_ids)
    entries = {}
    for strategy in strategies:
        code = int(strategy.prefix.codes[0])
        source = by_source.get(code // model.config.num_codes) if code >= 0 else None
        entries[strategy.name] = {
            "text": spelled[strategy.name],
            "token_ids": strategy.token_ids,
            "code": code if code >= 0 else None,
            "domain": source,
            "num_prefix_tokens": strategy.prefix.num_prefix_tokens,
            "latent_tile": len(strategy.ids) == 1 and strategy.prefix.num_prefix_tokens > 1,
        }
    return {
        "strategies": entries,
        "prefix_position": position,
        "latent_fingerprint": model.latent_fingerprint(),
        "base_model_name_or_path": model.config.base_model_name_or_path,
        "guard": {"kind": kind},
        "warnings": found,
    }

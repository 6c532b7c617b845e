"""Turns the prefix of a prompt into vLLM's prompt embeddings.

vLLM takes a *mixed* prompt: token ids, a mask of the positions that are ids, and embeddings for the others. It looks
ordinary ids up in its own weights, which trainers keep up to date; rows decoded here stand at the prefix alone. Its
prefix cache hashes the embeddings, so that two latents never share a block.

A prefix is asked for by latent ids in the prompt; by the arguments of `generate` in a prompt's dictionary or, for
`LLM.chat`, in `chat_template_kwargs`; or by a request to the server, whose middleware has resolved them (`REQUESTED`).

`LLM.chat` hands the same `chat_template_kwargs` to each of its conversations, and each is one prompt: a `latent_seed`
among them gives all the same draw, as B calls of `generate` with B = 1 do, and not B draws. For draws of their own
leave it out, or put a `latent_seed` into each of the prompts of `LLM.generate`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from vllm.inputs import EmbedsPrompt, TokensPrompt
from vllm.logger import init_logger
from vllm.renderers import ChatParams, TokenizeParams
from vllm.renderers.hf import HfRenderer
from vllm.utils.torch_utils import set_default_torch_num_threads

from ..generation_palette import PALETTE_ARGUMENTS
from ..latent_embedding import LatentEmbedding
from ..latent_prefix import LatentPrefix, resolve_prefix
from .plugin import read_served_palette
from .requests import REQUESTED, pop_palette_arguments, sequence_of

# Where a prompt's dictionary carries its prefix, as `(offset, LatentPrefix)`, from its tokens to its embeddings.
_PREFIX = "_latent_prefix"
logger = init_logger(__name__)


class PaletteRenderer(HfRenderer):
    """vLLM's renderer of Hugging Face models, for prompts with a prefix too."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        self._config = self.model_config.hf_config
        palette = read_served_palette(self.model_config, config.load_config.download_dir)
        self._latents = LatentEmbedding(palette, self._config.latent_codes, self._config.latent_seed)
        if not bool(palette.trained):
            logger.warning("The served palette is untrained: its decoder is random, prefixes do not mean anything.")

    def render_messages(self, messages: list[Any], params: ChatParams) -> Any:
        arguments = {name: params.chat_template_kwargs.get(name) for name in PALETTE_ARGUMENTS}
        others = {name: value for name, value in params.chat_template_kwargs.items() if name not in PALETTE_ARGUMENTS}
        conversation, prompt = super().render_messages(
            messages, dataclasses.replace(params, chat_template_kwargs=others)
        )
        return conversation, {**prompt, **{name: value for name, value in arguments.items() if value is not None}}

    async def render_messages_async(self, messages: list[Any], params: ChatParams) -> Any:
        names = [name for name in PALETTE_ARGUMENTS if params.chat_template_kwargs.get(name) is not None]
        if names:  # the server's default; a request's own are taken out by the middleware
            raise ValueError(
                f"`chat_template_kwargs` holds {names}, but a server's draws belong to its requests. Give them there."
            )
        return await super().render_messages_async(messages, params)

    def tokenize_prompts(self, prompts: Sequence[Any], params: TokenizeParams) -> list[Any]:
        bare, prefixes = self._split(prompts)
        return self._with_prefixes(super().tokenize_prompts(bare, params), prefixes, params)

    async def tokenize_prompts_async(self, prompts: Sequence[Any], params: TokenizeParams) -> list[Any]:
        bare, prefixes = self._split(prompts)
        return self._with_prefixes(await super().tokenize_prompts_async(bare, params), prefixes, params)

    def _split(self, prompts: Sequence[Any]) -> tuple[list[Any], list[LatentPrefix | None]]:
        """The prompts without the palette's arguments, and the prefixes that those ask for."""
        bare = [dict(prompt) for prompt in prompts]
        given = [pop_palette_arguments(prompt) for prompt in bare]
        requested = REQUESTED.get()
        if requested is None:
            return bare, [
                resolve_prefix(self._config, 1, 1, **arguments) if arguments else None for arguments in given
            ]
        if len(requested.prefix.codes) != len(bare) or any(given):
            raise ValueError(
                f"The request's arguments ask for the prefixes of {len(requested.prefix.codes)} prompts, but it has "
                f"{len(bare)} and asks for {sum(map(bool, given))} elsewhere."
            )
        return bare, [sequence_of(requested.prefix, number) for number in range(len(bare))]

    def _with_prefixes(
        self, prompts: list[Any], prefixes: list[LatentPrefix | None], params: TokenizeParams
    ) -> list[Any]:
        requested = REQUESTED.get()
        for number, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True)):
            if prefix is None:
                continue
            ids = prompt.get("prompt_token_ids")
            if "prompt_embeds" in prompt or not ids:
                raise ValueError(
                    "A latent prefix needs a prompt of at least a token, without `prompt_embeds`. Send token ids or "
                    "text."
                )
            self._check_length(len(ids), prefix.num_prefix_tokens, params)
            offset = int(self._has_leading_bos(ids[0]))
            prompt[_PREFIX] = (offset, prefix)
            if requested is not None:
                requested.offsets[number] = offset
        return prompts

    def _check_length(self, prompt: int, length: int, params: TokenizeParams) -> None:
        new_tokens, limit = max(params.max_output_tokens or 0, 1), params.max_total_tokens
        if limit is not None and prompt + length + new_tokens > limit:
            raise ValueError(
                f"{prompt} prompt tokens + `num_prefix_tokens`={length} + {new_tokens} new tokens are "
                f"{prompt + length + new_tokens} positions, but this server allows {limit}. Lower `max_tokens` or "
                "`num_prefix_tokens`, or shorten the prompt."
            )

    def _has_leading_bos(self, first_id: int) -> bool:
        bos = getattr(self._config.get_text_config(), "bos_token_id", None)
        return self._config.prefix_position == "after_bos" and first_id == bos

    def _process_tokens(self, prompt: TokensPrompt, **kwargs: Any) -> Any:
        mixed = self._mixed_prompt(prompt)
        return super()._process_tokens(prompt, **kwargs) if mixed is None else self._process_mixed(mixed)

    async def _process_tokens_async(self, prompt: TokensPrompt, **kwargs: Any) -> Any:
        mixed = self._mixed_prompt(prompt)
        return await super()._process_tokens_async(prompt, **kwargs) if mixed is None else self._process_mixed(mixed)

    def _process_mixed(self, mixed: EmbedsPrompt) -> Any:
        engine_input = self._process_embeds(mixed)
        if "prompt" in mixed:
            engine_input["prompt"] = mixed["prompt"]
        return engine_input

    def _mixed_prompt(self, prompt: Any) -> EmbedsPrompt | None:
        """The prompt with its latents decoded, or None if it has no prefix."""
        ids, given = prompt["prompt_token_ids"], prompt.pop(_PREFIX, None)
        base = self._latents.codes.id_base
        is_ordinary = [token < base for token in ids]
        if given is None and all(is_ordinary):
            return None
        if prompt.get("multi_modal_data"):
            raise ValueError(
                "A prompt with a latent prefix cannot have `multi_modal_data` yet. Send it without images, or without "
                "the prefix."
            )
        self._check_ids(ids)
        if given is None:
            rows = self._rows(torch.tensor([token for token in ids if token >= base]))
        else:
            if not all(is_ordinary):
                raise ValueError(
                    "`prompt_token_ids` holds latent ids, and the palette's arguments ask for another prefix. Drop "
                    "one of them."
                )
            offset, prefix = given
            rows = self._prefix_rows(prefix)
            ids = [*ids[:offset], *[base] * len(rows), *ids[offset:]]
            is_ordinary = [token < base for token in ids]
        embeds = torch.zeros(len(ids), self._latents.palette.hidden_size, dtype=self.model_config.dtype)
        embeds[~torch.tensor(is_ordinary)] = rows.to(embeds.dtype)
        # Penalties count a prompt's ids: at a latent stands one that counts already.
        last = next(token for token in reversed(ids) if token < base)
        placeholders = [token if token < base else last for token in ids]
        mixed = EmbedsPrompt(prompt_embeds=embeds, prompt_token_ids=placeholders, prompt_is_token_ids=is_ordinary)
        for name in ("cache_salt", "prompt"):
            if prompt.get(name):
                mixed[name] = prompt[name]
        return mixed

    def _check_ids(self, ids: list[int]) -> None:
        """vLLM does not look at the ids of mixed prompts."""
        base, beyond = self._latents.codes.id_base, self._latents.codes.explicit_base
        ordinary, latent = [token for token in ids if token < base], [token for token in ids if token >= base]
        if not ordinary:
            raise ValueError("`prompt_token_ids` holds latent ids alone. A prefix needs a prompt of at least a token.")
        largest = max(self.tokenizer.max_token_id, self.model_config.get_vocab_size() - 1)
        for found, low, high in ((ordinary, 0, largest), (latent, base, beyond - 1)):
            if found and (min(found) < low or max(found) > high):
                raise ValueError(
                    f"`prompt_token_ids` holds ids from {min(found)} to {max(found)}, but tokens are 0 to {largest} "
                    f"and latents {base} to {beyond - 1}. Explicit latents (tensors) have no ids on a server: give "
                    "them as `latent`, or use codes."
                )

    def _prefix_rows(self, prefix: LatentPrefix) -> torch.Tensor:
        """Embeddings of shape `(L, H)` of the prefix of one sequence."""
        with set_default_torch_num_threads():  # the engine's own threads are at work
            return self._latents.prefix_rows(prefix)[0]

    def _rows(self, latent_ids: torch.Tensor) -> torch.Tensor:
        with set_default_torch_num_threads():
            return self._latents.rows(latent_ids)

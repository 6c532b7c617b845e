"""Turns the latent ids of a prompt into vLLM's prompt embeddings.

vLLM takes a *mixed* prompt: token ids, a mask of the positions that are ids, and embeddings for the others. It looks
ordinary ids up in its own weights, which trainers keep up to date; rows decoded here stand at the prefix alone. Its
prefix cache hashes the embeddings, so that two latents never share a block.
"""

from typing import Any

import torch
from vllm.inputs.llm import EmbedsPrompt, TokensPrompt
from vllm.renderers.hf import HfRenderer
from vllm.utils.torch_utils import set_default_torch_num_threads

from .latent_embedding import LatentEmbedding
from .vllm_plugin import read_served_palette


class PaletteRenderer(HfRenderer):
    """vLLM's renderer of Hugging Face models, for prompts with latent ids too."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        palette_config = self.model_config.hf_config
        palette = read_served_palette(self.model_config, config.load_config.download_dir)
        self._latents = LatentEmbedding(palette, palette_config.latent_codes, palette_config.latent_seed)

    def _process_tokens(self, prompt: TokensPrompt, **kwargs: Any) -> Any:
        mixed = self._mixed_prompt(prompt)
        return super()._process_tokens(prompt, **kwargs) if mixed is None else self._process_embeds(mixed)

    async def _process_tokens_async(self, prompt: TokensPrompt, **kwargs: Any) -> Any:
        mixed = self._mixed_prompt(prompt)
        return await super()._process_tokens_async(prompt, **kwargs) if mixed is None else self._process_embeds(mixed)

    def _mixed_prompt(self, prompt: TokensPrompt) -> EmbedsPrompt | None:
        """The prompt with its latent ids decoded, or None if it has none."""
        ids = prompt["prompt_token_ids"]
        base = self._latents.codes.id_base
        is_ordinary = [token < base for token in ids]
        if all(is_ordinary):
            return None
        if prompt.get("multi_modal_data"):
            raise ValueError(
                "A prompt with latent ids cannot have `multi_modal_data` yet. Send it without images, or without the "
                "prefix."
            )
        ordinary = [token for token in ids if token < base]
        if not ordinary:
            raise ValueError("`prompt_token_ids` holds latent ids alone. A prefix needs a prompt of at least a token.")
        # vLLM does not look at the ids of mixed prompts.
        largest = max(self.tokenizer.max_token_id, self.model_config.get_vocab_size() - 1)
        latent = [token for token in ids if token >= base]
        beyond = self._latents.codes.explicit_base
        for found, low, high in ((ordinary, 0, largest), (latent, base, beyond - 1)):
            if min(found) < low or max(found) > high:
                raise ValueError(
                    f"`prompt_token_ids` holds ids from {min(found)} to {max(found)}, but tokens are 0 to {largest} "
                    f"and latents {base} to {beyond - 1}. Explicit latents (tensors) have no ids on a server: use "
                    "codes."
                )
        is_latent = ~torch.tensor(is_ordinary)
        embeds = torch.zeros(len(ids), self._latents.palette.hidden_size, dtype=self.model_config.dtype)
        with set_default_torch_num_threads():  # the engine's own threads are at work
            embeds[is_latent] = self._latents.rows(torch.tensor(ids)[is_latent]).to(embeds.dtype)
        # Penalties count a prompt's ids: at a latent stands one that counts already.
        placeholders = [token if token < base else ordinary[-1] for token in ids]
        mixed = EmbedsPrompt(prompt_embeds=embeds, prompt_token_ids=placeholders, prompt_is_token_ids=is_ordinary)
        if prompt.get("cache_salt"):
            mixed["cache_salt"] = prompt["cache_salt"]
        return mixed

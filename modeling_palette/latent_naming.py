"""A palette model's latents by name: draw codes, turn them into ids and latents, put them into prompts."""

import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .base_kinds import wrapper_name
from .configuration_palette import PaletteConfig
from .latent_prefix import Domain, LatentPrefix, check_tiling, draw_codes

_SYNCING = threading.Lock()


class LatentNamingMixin:
    """What users, trainers and `generate` call to name latents; the ids it gives flow through `forward` as tokens."""

    config: PaletteConfig
    palette: Any  # PaletteVAE, or None
    _latent_embedding: Any  # LatentEmbedding, or None without a palette
    _warned_untrained: bool

    def draw_codes(
        self, num_sequences: int, domain: Domain = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Draw codes; see [`latent_prefix.draw_codes`]."""
        self._require_palette()
        self._check_frozen_layout()
        self._sync_domains()
        self._warn_untrained()
        return draw_codes(self.config, num_sequences, domain, generator)

    def latent_ids(self, codes: torch.Tensor, num_prefix_tokens: int, latent_tile: bool = False) -> torch.Tensor:
        """Token ids of shape `(N, L)` of the prefixes of codes `(N,)`; see [`LatentCodes.to_ids`]."""
        self._require_palette()
        check_tiling(self.config, latent_tile)
        return self._latent_embedding.codes.to_ids(codes, num_prefix_tokens, latent_tile)

    def latents_from_codes(
        self, codes: torch.Tensor, num_prefix_tokens: int, latent_tile: bool = False
    ) -> torch.Tensor:
        """
        The latents that codes name.

        Args:
            codes (`torch.Tensor` of shape `(N,)`, int64): Codes.
            num_prefix_tokens (`int`): L.
            latent_tile (`bool`): Whether one position is repeated L times.

        Returns:
            `torch.Tensor` of shape `(N, L, Z)`, float32; `(N, 1, Z)` with the `"gpt"` decoder, where one latent makes
            all L rows.
        """
        if self.palette is not None and self.palette.num_slots is not None:
            num_prefix_tokens = 1
        ids = self.latent_ids(codes, num_prefix_tokens, latent_tile).to(self.palette.embedding_mean.device)
        flat_codes, positions = self._latent_embedding.codes.from_ids(ids.flatten())
        return self._latent_embedding.latents(flat_codes, positions).reshape(*ids.shape, -1)

    def explicit_latents(self, latents: torch.Tensor) -> AbstractContextManager[torch.Tensor]:
        """
        Ids for latents without a code, valid inside of a `with` block. Thread-safe.

        Args:
            latents (`torch.Tensor` of shape `(N, L, Z)`): Latents. With the `"gpt"` decoder the L of a prefix are one
                latent, expanded.

        Returns:
            A context manager that yields a `torch.Tensor` of shape `(N, L)`, int64.

        Raises:
            ValueError: with the `"gpt"` decoder, for a prefix of several latents or of more rows than it has slots.
        """
        self._require_palette()
        num_slots = self.palette.num_slots
        if num_slots is not None and (latents.dim() != 3 or not 1 <= latents.shape[1] <= num_slots):
            raise ValueError(
                f"`latents` must have shape (N, L, {self.palette.latent_dim}), L from 1 to `num_slots`={num_slots}, "
                f"got {tuple(latents.shape)}."
            )
        if num_slots is not None and not torch.equal(latents, latents[:, :1].expand_as(latents)):
            raise ValueError(
                f"`latents` of shape {tuple(latents.shape)} differ within a prefix, but with `decoder_type`='gpt' one "
                "latent makes all of its rows. Pass `latents[:, :1].expand(-1, L, -1)`."
            )
        return self._latent_embedding.explicit.lend(latents)

    def insert_latent_ids(self, prompt_ids: list[int], latent_ids: list[int]) -> list[int]:
        """`prompt_ids` (one unpadded prompt) with `latent_ids` inserted at the config's `prefix_position`."""
        offset = int(self._has_leading_bos(prompt_ids[0]) if prompt_ids else 0)
        return prompt_ids[:offset] + latent_ids + prompt_ids[offset:]

    def _lend_ids(self, prefix: LatentPrefix, device: torch.device) -> AbstractContextManager[torch.Tensor]:
        """Context manager that yields the latent ids of a prefix, `(N, L)`."""
        length = prefix.num_prefix_tokens
        if prefix.latents is None:
            return nullcontext(self.latent_ids(prefix.codes.to(device), length, prefix.latent_tile))
        latents = prefix.latents.to(device)
        return self.explicit_latents(latents.expand(-1, length, -1))

    def _has_leading_bos(self, first_id: Any) -> Any:
        self.config.check_prefix_position()
        bos = getattr(self.config.get_text_config(), "bos_token_id", None)
        if self.config.prefix_position != "after_bos" or bos is None:
            return first_id != first_id
        return first_id == bos

    def _require_palette(self) -> None:
        if self.palette is None:
            wrapper = wrapper_name(type(self.config.base_config))
            raise ValueError(f"This model has no palette. Give one to `{wrapper}.from_base(base, palette=...)`.")

    def _sync_domains(self) -> None:
        """`model.palette.fit_domain` may have been called directly; the config is what is saved."""
        if self.palette is not None:
            self._check_room_for_domains(len(self.palette.domain_means))
            with _SYNCING:  # or a thread that read earlier could write later, and a new domain would be gone
                self.config.domains = {name: dict(entry) for name, entry in self.palette.domains.items()}

    def _check_frozen_layout(self) -> None:
        self.config.check_prefix_position()
        frozen = self._latent_embedding
        if frozen is None:
            return
        if frozen.codes != self.config.latent_codes or frozen.seed != self.config.latent_seed:
            raise ValueError(
                "The config's `latent_seed`, `latent_id_base`, `num_codes` or `max_prefix_tokens` was changed after "
                "the model was built: codes drawn so far would lose their meaning. Restore them, or pass them to "
                "`from_base`."
            )

    def _check_room_for_domains(self, num_domains: int) -> None:
        room = self.config.latent_codes.num_sources - 1
        if num_domains > room:
            raise ValueError(
                f"This palette has room for {room} domain fits (a refit counts too), given `num_codes`="
                f"{self.config.num_codes} and `max_prefix_tokens`={self.config.max_prefix_tokens}, and "
                f"{num_domains} are asked for. Make a new palette with fewer codes, or with fewer domains."
            )

    def _warn_untrained(self) -> None:
        if not self._warned_untrained and not bool(self.palette.trained):
            self._warned_untrained = True
            warnings.warn(
                "Drawing from a palette that is untrained: its decoder is random, so prefixes do not mean anything. "
                "Train it with PaletteVAETrainer, or load a trained one.",
                stacklevel=3,
            )

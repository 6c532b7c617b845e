"""The one place where latent ids become vectors: a pair of hooks on the base's input embedding.

The embedding module stays where it is (a replacement would rename checkpoint keys and break resizing). A forward
pre-hook hands it ordinary ids, a forward hook overwrites the rows of the latent ids with decoded latents. Attention
masks, positions, caches, beam search and trainers just see token ids.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .latent_codes import LatentCodes, normals_from_codes
from .latent_prefix import LatentPrefix
from .palette_vae import PaletteVAE

# Where the pre-hook leaves the original ids for the forward hook in a compiled graph: on the very tensor that it hands
# to the embedding.
_ORIGINAL_IDS = "_palette_ids"
# Marks an embedding that reads latent ids already.
_INSTALLED = "_latent_embedding"


class ExplicitLatents:
    """
    Ids for latents that have no code (tensors given by a user, posterior draws of a trainer), lent for a block.

    Two threads never share an id. A copy of a model starts with no lent ids.
    """

    def __init__(self, codes: LatentCodes):
        self._base = codes.explicit_base
        self._capacity = codes.num_explicit
        self._blocks: dict[int, torch.Tensor] = {}
        self._lengths: dict[int, int] = {}  # of the prefixes in each block
        self._next = 0
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> "ExplicitLatents":
        copied = object.__new__(type(self))
        copied.__setstate__({"_base": self._base, "_capacity": self._capacity})
        return copied

    def __getstate__(self) -> dict[str, int]:
        return {"_base": self._base, "_capacity": self._capacity}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__.update(state, _blocks={}, _lengths={}, _next=0, _lock=threading.Lock())

    @contextmanager
    def lend(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """
        Args:
            latents (`torch.Tensor` of shape `(..., Z)`): Latents; the last dimension but one counts the positions of a
                prefix.

        Yields:
            `torch.Tensor` of shape `(...)`, int64: their ids, valid inside the block.
        """
        flat = latents.reshape(-1, latents.shape[-1])
        if len(flat) == 0:
            yield torch.zeros(latents.shape[:-1], dtype=torch.int64, device=latents.device)
            return
        start = self._take(flat, latents.shape[-2] if latents.dim() > 1 else 1)
        try:
            ids = torch.arange(self._base + start, self._base + start + len(flat), device=latents.device)
            yield ids.reshape(latents.shape[:-1])
        finally:
            with self._lock:
                del self._blocks[start], self._lengths[start]

    @property
    def in_use(self) -> bool:
        """Whether any explicit latent is lent."""
        return bool(self._blocks)

    def _take(self, latents: torch.Tensor, length: int) -> int:
        count = len(latents)
        with self._lock:
            # behind the latest, so that ids are not soon used again; or wherever there is room
            start = self._free_from(self._next, count)
            if start is None:
                start = self._free_from(0, count)
            if start is None:
                raise RuntimeError(
                    f"{count:,} explicit latents do not fit in the {self._capacity:,} ids reserved for them, with "
                    f"{sum(map(len, self._blocks.values())):,} in use. Use codes, or fewer sequences per call."
                )
            self._blocks[start], self._lengths[start] = latents, length
            self._next = start + count
        return start

    def _free_from(self, start: int, count: int) -> int | None:
        """The first offset from `start` on that `count` ids fit at."""
        for other, block in sorted(self._blocks.items()):
            if start < other + len(block) and other < start + count:
                start = other + len(block)
        return start if start + count <= self._capacity else None

    def positions(self, ids: torch.Tensor) -> torch.Tensor:
        """Positions `(M,)` in their prefixes of ids `(M,)`; 0 for one that is not lent, which `look_up` refuses."""
        positions, offsets = torch.zeros_like(ids), ids - self._base
        with self._lock:
            blocks = [(start, len(block), self._lengths[start]) for start, block in self._blocks.items()]
        for start, count, length in blocks:
            inside = (offsets >= start) & (offsets < start + count)
            positions = torch.where(inside, (offsets - start) % length, positions)
        return positions

    def look_up(self, ids: torch.Tensor, latent_dim: int) -> torch.Tensor:
        """
        Args:
            ids (`torch.Tensor` of shape `(M,)`): Ids of the reserved range.

        Returns:
            `torch.Tensor` of shape `(M, Z)`, float32.

        Raises:
            ValueError: for an id that is not lent (any more).
        """
        latents = torch.zeros(len(ids), latent_dim, dtype=torch.float32, device=ids.device)
        offsets, found = ids - self._base, torch.zeros_like(ids, dtype=torch.bool)
        with self._lock:
            blocks = list(self._blocks.items())
        for start, block in blocks:
            inside = (offsets >= start) & (offsets < start + len(block))
            latents[inside] = block.to(latents)[offsets[inside] - start]
            found |= inside
        if not bool(found.all()):
            raise ValueError(
                f"Latent id {int(ids[~found][0])} belongs to an explicit latent whose block has ended. Ids from "
                "`explicit_latents` are valid inside of its `with` block only; codes are valid always."
            )
        return latents


class LatentEmbedding:
    """
    Turns latent ids into rows of the input embedding's output.

    Args:
        palette ([`PaletteVAE`]): The frozen palette.
        codes ([`LatentCodes`]): Layout of the ids.
        seed (`int`): The config's `latent_seed`.
    """

    def __init__(self, palette: PaletteVAE, codes: LatentCodes, seed: int):
        self.palette = palette
        self.codes = codes
        self.seed = seed
        self.explicit = ExplicitLatents(codes)
        # Original ids on their way from the pre-hook to the forward hook, by thread: concurrent threads never see each
        # other's. They cannot travel on the tensor, which other hooks replace: DeepSpeed ZeRO-3 hands every module
        # aliases of its inputs (deepspeed 0.19 `runtime/zero/parameter_offload.py`), without the attributes.
        self._ids_of_thread: dict[int, torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ids_of_thread": {}}  # a copy has no calls under way

    def install(self, embedding: nn.Module) -> None:
        """
        Hook this palette to an input embedding.

        Raises:
            ValueError: if the embedding has another width than the palette, or already carries another palette.
        """
        installed = getattr(embedding, _INSTALLED, None)
        if installed is self:
            return
        if installed is not None:
            raise ValueError(
                "This base already carries a palette on its input embedding, and latent ids can only mean one thing "
                "on one embedding. Load the base again (or `copy.deepcopy` it before wrapping) to put another on it."
            )
        width = embedding_width(embedding)
        if width != self.palette.hidden_size:
            raise ValueError(
                f"The palette decodes to hidden_size={self.palette.hidden_size}, but the base's input embedding has "
                f"width {width}: it was trained on another base. Use the base it was trained on, or train a palette "
                "for this one with PaletteVAETrainer."
            )
        setattr(embedding, _INSTALLED, self)
        embedding.register_forward_pre_hook(self._before)
        embedding.register_forward_hook(self._after)

    def latents(self, codes: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """
        Latents of codes: mean + Cholesky factor x normal draw of the code's source (METHOD 6; the prior is N(0, I)).

        The product is taken in float64 and rounded, which makes the result the same on every device.

        Args:
            codes (`torch.Tensor` of shape `(M,)`, int64): Codes.
            positions (`torch.Tensor` of shape `(M,)`, int64): Prefix positions.

        Returns:
            `torch.Tensor` of shape `(M, Z)`, float32.
        """
        palette = self.palette
        draws = normals_from_codes(codes, positions, palette.latent_dim, self.seed, palette.normal_quantiles)
        if len(palette.domain_means) == 0:
            return draws
        # float64 does not exist on Apple GPUs
        work = torch.device("cpu") if draws.device.type == "mps" else draws.device
        noise = draws.to(work, torch.float64)
        sources = codes // self.codes.num_codes
        # A factor of 1,024 x 1,024 takes a millisecond: those that no code asks for are left out, unless compiled.
        present = None if torch.compiler.is_compiling() else set(sources.unique().tolist())
        means = palette.domain_means  # read first: a domain that is being added has its factor before its mean
        for source, (mean, cholesky) in enumerate(zip(means, palette.domain_cholesky[: len(means)], strict=True), 1):
            if present is not None and source not in present:
                continue
            shaped = mean.to(noise) + noise @ cholesky.to(noise).T
            draws = torch.where((sources == source)[:, None], shaped.to(draws), draws)
        return draws

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """
        Args:
            ids (`torch.Tensor` of shape `(M,)`, int64): Latent ids.

        Returns:
            `torch.Tensor` of shape `(M, H)`, float32.

        Raises:
            ValueError: for a code of a source that this palette does not have, and for an explicit latent whose block
                has ended.
        """
        # Continuous batching keeps ids in int32, where the generator's 32-bit words would overflow.
        ids = ids.to(self.palette.embedding_mean.device, torch.int64)
        if self.palette.num_slots is None:
            return self.palette.decode(self._latents_of(ids))
        # One latent is a whole prefix: it belongs to the id of the prefix's first position, and is decoded once.
        (_, positions), explicit = self.codes.from_ids(ids), ids >= self.codes.explicit_base
        if self._may_hold_any(explicit):
            positions = torch.where(explicit, self.explicit.positions(ids), positions)
        firsts, members = ids - positions, torch.arange(len(ids), device=ids.device)
        if not torch.compiler.is_compiling():  # how many there are depends on the data
            firsts, members = firsts.unique(return_inverse=True)
        return self.palette.decode_rows(self._latents_of(firsts), members, positions)

    def prefix_rows(self, prefix: LatentPrefix) -> torch.Tensor:
        """
        Args:
            prefix ([`LatentPrefix`]): The prefixes of N sequences.

        Returns:
            `torch.Tensor` of shape `(N, L, H)`, float32: what the input embedding gives for them.
        """
        length = prefix.num_prefix_tokens
        if prefix.latents is None:
            ids = self.codes.to_ids(prefix.codes, length, prefix.latent_tile)
            return self.rows(ids.flatten()).unflatten(0, ids.shape)
        with self.explicit.lend(prefix.latents.expand(-1, length, -1)) as ids:
            return self.rows(ids.flatten()).unflatten(0, ids.shape)

    def _latents_of(self, ids: torch.Tensor) -> torch.Tensor:
        """The latents `(M, Z)` of ids `(M,)`, of codes and explicit ones."""
        codes, positions = self.codes.from_ids(ids)
        latents = self.latents(codes, positions)
        explicit = ids >= self.codes.explicit_base
        if not torch.compiler.is_compiling():
            self._check_sources(codes[~explicit])
        if self._may_hold_any(explicit):
            latents = latents.clone()
            latents[explicit] = self.explicit.look_up(ids[explicit], self.palette.latent_dim)
        return latents

    def _may_hold_any(self, explicit: torch.Tensor) -> bool:
        """Whether explicit latents have to be looked up; a compiled graph cannot branch on the ids themselves."""
        return self.explicit.in_use if torch.compiler.is_compiling() else bool(explicit.any())

    def _check_sources(self, codes: torch.Tensor) -> None:
        num_domains = len(self.palette.domain_means)
        unknown = codes >= (num_domains + 1) * self.codes.num_codes
        if bool(unknown.any()):
            code = int(codes[unknown][0])
            raise ValueError(
                f"Code {code} belongs to source {code // self.codes.num_codes}, but this palette has the prior and "
                f"{num_domains} fitted domains. The code was drawn from another palette, or before a domain was added "
                "to this checkpoint."
            )

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        ids = called_with(args)
        is_latent = ids >= self.codes.id_base
        # Most calls hold no latent id and end here. A compiled graph cannot branch on data: it takes the long way,
        # with the same result.
        if torch.compiler.is_compiling():
            ordinary = ids.masked_fill(is_latent, 0)
            setattr(ordinary, _ORIGINAL_IDS, ids)
            return (ordinary, *args[1:])
        thread = threading.get_ident()
        self._ids_of_thread.pop(thread, None)  # of a call that failed
        if not bool(is_latent.any()):
            return None
        self._ids_of_thread[thread] = ids
        return (ids.masked_fill(is_latent, 0), *args[1:])

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        if torch.compiler.is_compiling():
            ids = getattr(args[0], _ORIGINAL_IDS, None)
        else:
            ids = self._ids_of_thread.pop(threading.get_ident(), None)
        if ids is None:
            return None
        is_latent = ids >= self.codes.id_base
        with torch.no_grad():
            if torch.compiler.is_compiling():
                rows = self.rows(ids.clamp(min=self.codes.id_base).flatten()).reshape(output.shape)
                return torch.where(is_latent[..., None], rows.to(output), output)
            rows = self.rows(ids[is_latent])
        return output.index_put((is_latent.to(output.device),), rows.to(output))


class EmbeddingByKeywordError(ValueError):
    """A base hands the ids to its input embedding where no hook sees them."""

    def __init__(self) -> None:
        super().__init__(
            "it calls its input embedding with the ids as a keyword argument, which hides them from the palette. Call "
            "it as `embed_tokens(ids)` in the code of the base, or use another base."
        )


def called_with(args: tuple[Any, ...]) -> torch.Tensor:
    """
    The ids that an input embedding is called with; every family of transformers gives them by position.

    Raises:
        EmbeddingByKeywordError: if they are not among the positional arguments, the only ones that a hook sees.
    """
    if not args:
        raise EmbeddingByKeywordError
    return args[0]


def embedding_width(embedding: Any) -> int:
    """Width of an input embedding's output (the weight's shape is 0 under ZeRO-3, the attribute is not)."""
    return getattr(embedding, "embedding_dim", None) or embedding.weight.shape[-1]

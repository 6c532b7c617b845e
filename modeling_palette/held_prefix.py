"""Caches and prefixes: which cache holds one, which calls may go on from it, and which caches a prefix cannot join."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

from .latent_prefix import LatentPrefix

# What `generate` calls a cache (`cache` since transformers 5.24), and states that cannot tell how much they hold.
CACHE_INPUTS = ("cache", "past_key_values", "cache_params")
STATE_INPUTS = ("state", "mems", "past_buckets_states")
# Where a cache keeps the prefix that it holds, so that a later call can go on from it.
_HELD_PREFIX = "_held_palette_prefix"


@dataclass
class PlacedPrefix:
    """A prefix, and the columns `(N,)` in front of which it stands."""

    prefix: LatentPrefix
    offsets: torch.Tensor

    def check_rows(self, num_rows: int) -> None:
        """
        Raises:
            ValueError: if a call goes on with another number of sequences.
        """
        if len(self.offsets) != num_rows:
            raise ValueError(
                f"`past_key_values` holds the prefixes of {len(self.offsets)} sequences, but the prompts have "
                f"{num_rows}."
            )

    def check_offsets(self, offsets: torch.Tensor) -> None:
        """
        Raises:
            ValueError: if the prompts of a call that goes on begin in other columns.
        """
        if not torch.equal(offsets.to(self.offsets), self.offsets):
            raise ValueError(
                f"`past_key_values` holds prefixes that stand in front of columns {self.offsets.tolist()}, but these "
                f"prompts begin in columns {offsets.tolist()}: they were padded or ordered otherwise. Pass the "
                "sequences that the cache was computed on, in its order."
            )


def cache_of(inputs: Any) -> Any:
    """The cache among the arguments or outputs of `generate`, or `None`."""
    return next((inputs[name] for name in CACHE_INPUTS if name in inputs and inputs[name] is not None), None)


def hold_prefix(cache: Any, placed: PlacedPrefix) -> None:
    """Note in a cache that it holds a prefix."""
    if isinstance(cache, Cache):  # not the lists of states that RWKV and XLNet return
        setattr(cache, _HELD_PREFIX, placed)


def held_prefix(cache: Any) -> PlacedPrefix | None:
    """The prefix that a cache holds, if any."""
    held = getattr(cache, _HELD_PREFIX, None)
    if held is not None and not _is_filled(cache):  # the cache was reset
        delattr(cache, _HELD_PREFIX)  # or it would be taken for holding the prefix once it is filled again
        return None
    return held


def refuse_foreign_caches(inputs: dict[str, Any], has_held_prefix: bool) -> None:
    """
    Raises:
        ValueError: for a cache or a state that was not computed behind the prefix, or cannot tell.
    """
    if _is_filled(cache_of(inputs)) and not has_held_prefix:
        raise ValueError(
            "`past_key_values` holds tokens that were not computed behind this prefix. "
            "Pass an empty cache, or one returned by a call of `generate` that had the prefix."
        )
    for name in STATE_INPUTS:
        if inputs.get(name) is not None:
            raise ValueError(
                f"`{name}` cannot be combined with a latent prefix: nothing tells whether it was computed behind "
                "one. Drop it, and pass the whole sequence."
            )


def refuse_new_ids_without_mask(input_ids: torch.Tensor, cache: Any, length: int) -> None:
    """
    Raises:
        ValueError: for ids that can only be the new ones of a sequence, whose length nothing tells without its mask.
    """
    try:
        num_cached = int(cache.get_seq_length()) - length
    except ValueError:  # a recurrent model's, which counts no tokens
        return
    if input_ids.shape[1] <= num_cached:
        raise ValueError(
            f"`input_ids` has {input_ids.shape[1]} tokens, but `past_key_values` holds {num_cached} beside the "
            "prefix. Pass the whole sequence; or its new tokens with the `attention_mask` of the whole sequence."
        )


def _is_filled(cache: Any) -> bool:
    if cache is None:
        return False
    try:
        return int(cache.get_seq_length()) > 0
    except ValueError:  # a recurrent model's, which counts no tokens
        return bool(cache.has_previous_state())

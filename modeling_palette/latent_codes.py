"""Codes, token ids and latents: which number names which latent, and how it becomes one.

A *code* names a latent sequence: its source (the prior or a domain) and an index. A *latent id* is a token id beyond
every vocabulary that names one position of one code. Both are plain integers, so they can be logged, shared and
replayed; the latent itself is a pure function of (seed, code, position), the same in every process, on every device.
"""

from dataclasses import dataclass

import torch

# Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11): multipliers and Weyl increments.
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS = 10
_MASK16, _MASK32 = 0xFFFF, 0xFFFFFFFF

NUM_QUANTILES = 1 << 15


@dataclass(frozen=True)
class LatentCodes:
    """
    The layout of codes and latent ids, frozen in a checkpoint's config.

    `code = source * num_codes + index` and `id = id_base + code * max_prefix_tokens + position`. Ids stay below 2**31
    because continuous batching keeps token ids in int32. What is left above the last source is reserved for explicit
    latents (tensors that have no code).

    Args:
        id_base (`int`): First latent id. A constant beyond any vocabulary, not the vocabulary's size, which chat
            templates change and which ZeRO-3 hides.
        num_codes (`int`): Codes per source.
        max_prefix_tokens (`int`): Positions per code.

    Raises:
        ValueError: if the layout does not leave room for one source and for explicit latents below 2**31.
    """

    id_base: int
    num_codes: int
    max_prefix_tokens: int

    def __post_init__(self):
        for name in ("id_base", "num_codes", "max_prefix_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_sources < 1 or self.num_explicit < 1:
            raise ValueError(
                f"The latent ids collide with the end of int32: id_base={self.id_base}, num_codes={self.num_codes} "
                f"and max_prefix_tokens={self.max_prefix_tokens} need "
                f"{self.id_base + self.num_codes * self.max_prefix_tokens:,} ids, but token ids must stay below "
                f"{1 << 31:,}. Lower num_codes or max_prefix_tokens."
            )

    @property
    def ids_per_source(self) -> int:
        return self.num_codes * self.max_prefix_tokens

    @property
    def num_sources(self) -> int:
        """How many sources fit (the prior is source 0)."""
        return ((1 << 31) - self.id_base - 1) // self.ids_per_source

    @property
    def explicit_base(self) -> int:
        """First id of the range reserved for explicit latents."""
        return self.id_base + self.num_sources * self.ids_per_source

    @property
    def num_explicit(self) -> int:
        return (1 << 31) - self.explicit_base

    def check_vocabulary(self, vocab_size: int) -> None:
        """
        Raises:
            ValueError: if ordinary token ids reach into the latent ids.
        """
        if vocab_size > self.id_base:
            raise ValueError(
                f"The base's vocabulary has {vocab_size:,} entries and collides with the latent ids, which start at "
                f"latent_id_base={self.id_base:,}. Set `latent_id_base` in PaletteConfig to a larger power of two."
            )

    def to_ids(self, codes: torch.Tensor, num_prefix_tokens: int, latent_tile: bool = False) -> torch.Tensor:
        """
        Token ids of a prefix.

        Args:
            codes (`torch.Tensor` of shape `(N,)`, int64): Codes.
            num_prefix_tokens (`int`): L.
            latent_tile (`bool`): One position repeated L times ("stronger coherence", METHOD 3) instead of L draws.

        Returns:
            `torch.Tensor` of shape `(N, L)`, int64.
        """
        positions = torch.arange(num_prefix_tokens, device=codes.device)
        if latent_tile:
            positions = torch.zeros_like(positions)
        return self.id_base + codes[:, None] * self.max_prefix_tokens + positions

    def from_ids(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inverse of [`to_ids`]: `(codes, positions)`, each of the shape of `ids`."""
        offsets = ids - self.id_base
        return offsets // self.max_prefix_tokens, offsets % self.max_prefix_tokens


def normal_quantile_table() -> torch.Tensor:
    """
    Positive standard-normal quantiles at the midpoints of 2**15 equal probability intervals.

    The table is stored with every palette: logarithms and cosines (Box-Muller) are not bit-identical between devices,
    a look-up is.

    Returns:
        `torch.Tensor` of shape `(32768,)`, float32, increasing.
    """
    midpoints = (torch.arange(NUM_QUANTILES, dtype=torch.float64) + 0.5) / (2 * NUM_QUANTILES)
    return torch.special.ndtri(midpoints + 0.5).to(torch.float32)


def philox4x32(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """
    Philox4x32-10, a counter-based generator: random words as a pure function of (counter, key).

    Args:
        counter (tuple of 4 `torch.Tensor`, int64, broadcastable): 32-bit words, least significant first.
        key (tuple of 2 `int`): 32-bit words.

    Returns:
        tuple of 4 `torch.Tensor`, int64: 32-bit words.
    """
    words = torch.stack(torch.broadcast_tensors(*counter))
    even, odd = words[::2], words[1::2]  # both multiplications of a round at once: on small inputs calls are the cost

    # one transfer for all the constants: two rows of multipliers, then the keys of the rounds
    constants = [[multiplier & _MASK16 for multiplier in _PHILOX_MULTIPLIERS]]
    constants += [[multiplier >> 16 for multiplier in _PHILOX_MULTIPLIERS]]
    for step in range(_PHILOX_ROUNDS):
        constants += [[(key[i] + step * _PHILOX_INCREMENTS[i]) & _MASK32 for i in range(2)]]
    lanes = torch.tensor(constants, device=words.device).reshape(-1, 2, *[1] * (words.dim() - 1))
    multiplier_low, multiplier_high, *round_keys = lanes.unbind()
    for round_key in round_keys:
        # 32 x 32 -> 64 bits through 16-bit halves: int64 never overflows
        high_part = multiplier_high * even
        carried = multiplier_low * even + ((high_part & _MASK16) << 16)
        high = (high_part >> 16) + (carried >> 32)
        even, odd = high.flip(0) ^ odd ^ round_key, (carried & _MASK32).flip(0)
    return even[0], odd[0], even[1], odd[1]


def normals_from_codes(
    codes: torch.Tensor, positions: torch.Tensor, latent_dim: int, seed: int, quantiles: torch.Tensor
) -> torch.Tensor:
    """
    Standard-normal draws named by (seed, code, position); bit-identical on every device, process and rank.

    Args:
        codes (`torch.Tensor` of shape `(M,)`, int64): Codes.
        positions (`torch.Tensor` of shape `(M,)`, int64): Prefix positions.
        latent_dim (`int`): Z.
        seed (`int`): The config's `latent_seed`, 0 to 2**64 - 1.
        quantiles (`torch.Tensor` of shape `(32768,)`): The stored [`normal_quantile_table`].

    Returns:
        `torch.Tensor` of shape `(M, Z)`, float32.
    """
    blocks = torch.arange((latent_dim + 7) // 8, device=codes.device)  # one Philox call makes eight 16-bit numbers
    codes, positions = codes.to(torch.int64)[:, None], positions.to(torch.int64)[:, None]
    words = philox4x32(
        (blocks[None, :], positions, codes & _MASK32, codes >> 32), (seed & _MASK32, (seed >> 32) & _MASK32)
    )
    packed = torch.stack(words, dim=-1)  # (M, blocks, 4)
    numbers = torch.stack((packed & _MASK16, packed >> 16), dim=-1).reshape(codes.shape[0], -1)[:, :latent_dim]
    magnitudes = quantiles[numbers & (NUM_QUANTILES - 1)]
    return torch.where(numbers >= NUM_QUANTILES, -magnitudes, magnitudes)

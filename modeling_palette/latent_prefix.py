"""From the palette arguments of `generate` to a prefix: which latents, how many positions, and where they go."""

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .base_kinds import wrapper_name
from .configuration_palette import PaletteConfig

Domain = str | Sequence[str] | Mapping[str, float] | None


@dataclass
class LatentPrefix:
    """
    The prefix of N sequences.

    Args:
        num_prefix_tokens (`int`): L.
        codes (`torch.Tensor` of shape `(N,)`, int64): Codes, -1 where `latents` are given instead.
        latent_tile (`bool`): Whether one row is repeated L times.
        latents (`torch.Tensor` of shape `(N, 1, Z)` or `(N, L, Z)`, *optional*): Explicit latents. One alone is tiled,
            or the whole prefix with the `"gpt"` decoder.
    """

    num_prefix_tokens: int
    codes: torch.Tensor
    latent_tile: bool = False
    latents: torch.Tensor | None = None


def draw_codes(
    config: PaletteConfig, num_sequences: int, domain: Domain = None, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Draw codes.

    Args:
        config ([`PaletteConfig`]): Holds the number of codes and the domains.
        num_sequences (`int`): N.
        domain (`str`, list of N `str`, or mapping of `str` to weight, *optional*): Source of the draws: a domain, one
            domain per sequence, or a mixture whose weights are normalised. `None` draws from the prior.
        generator (`torch.Generator`, *optional*): A CPU generator; torch's global one by default.

    Returns:
        `torch.Tensor` of shape `(N,)`, int64, on the CPU.

    Raises:
        ValueError: for an unknown domain, a list of another length than N, and weights that are not a distribution.
    """
    if domain is None:
        sources = torch.zeros(num_sequences, dtype=torch.int64)
    elif isinstance(domain, str):
        sources = torch.full((num_sequences,), _source_of(config, domain))
    elif isinstance(domain, Mapping):
        weights = _mixture_weights(domain)
        chosen = torch.multinomial(weights, num_sequences, replacement=True, generator=generator)
        sources = torch.tensor([_source_of(config, name) for name in domain])[chosen]
    elif isinstance(domain, Sequence):
        if len(domain) != num_sequences:
            raise ValueError(f"`domain` lists {len(domain)} names for {num_sequences} sequences. Give one for each.")
        sources = torch.tensor([_source_of(config, name) for name in domain], dtype=torch.int64)
    else:
        raise ValueError(
            f"`domain` must be a name, a list of names or a mapping of names to weights, got {type(domain).__name__}."
        )
    return sources * config.num_codes + torch.randint(config.num_codes, (num_sequences,), generator=generator)


def resolve_prefix(
    config: PaletteConfig,
    num_prompts: int,
    sequences_per_prompt: int,
    latent: Any = None,
    domain: Domain = None,
    num_prefix_tokens: int | None = None,
    latent_tile: bool = False,
    latent_seed: int | None = None,
) -> LatentPrefix:
    """
    Check the palette arguments of `generate` and turn them into a prefix.

    Args:
        config ([`PaletteConfig`]): The model's config.
        num_prompts (`int`): B.
        sequences_per_prompt (`int`): N / B: `num_return_sequences`, or 1 under beam search.
        latent, domain, num_prefix_tokens, latent_tile, latent_seed: As `generate` received them.

    Returns:
        [`LatentPrefix`].

    Raises:
        ValueError: for every combination, value, shape or dtype that is not allowed.
    """
    num_sequences = num_prompts * sequences_per_prompt
    length = _prefix_length(config, num_prefix_tokens)
    if length == 0 and (latent is not None or domain is not None):
        raise ValueError(
            f"`num_prefix_tokens`=0 asks for no prefix, but `{'latent' if latent is not None else 'domain'}` asks for "
            "one. Drop one of them."
        )
    if latent is None and domain is None and not length:
        name = "latent_tile" if latent_tile else "latent_seed"
        raise ValueError(
            f"`{name}` has no effect without a prefix. Give `num_prefix_tokens`, `domain` or `latent` as well."
        )
    if config.latent_dim is None:
        raise ValueError(
            "This model has no palette, so it cannot make a prefix. Give one to "
            f"`{wrapper_name(type(config.base_config))}.from_base(base, palette=...)`."
        )
    check_tiling(config, latent_tile)
    if latent is None:
        generator = None if latent_seed is None else _seeded(latent_seed)
        if isinstance(domain, Sequence) and not isinstance(domain, str):
            if len(domain) != num_prompts:
                raise ValueError(
                    f"`domain` lists {len(domain)} names for {num_prompts} prompts. Give one per prompt. In a "
                    f"pipeline, set `batch_size` to {len(domain)}: each batch is a call of its own."
                )
            domain = [name for name in domain for _ in range(sequences_per_prompt)]
        codes = draw_codes(config, num_sequences, domain, generator)
        return LatentPrefix(_default_length(config) if length is None else length, codes, latent_tile)
    if domain is not None:
        raise ValueError("`latent` and `domain` exclude each other: a code holds its source already. Drop `domain`.")
    if latent_seed is not None:
        raise ValueError("`latent_seed` seeds draws, but `latent` names the latents. Drop one of them.")
    return _given_latents(config, num_sequences, latent, length, latent_tile)


def check_tiling(config: PaletteConfig, latent_tile: bool) -> None:
    """
    Raises:
        ValueError: for `latent_tile` where one latent makes a whole prefix.
    """
    if latent_tile and config.num_slots is not None:
        raise ValueError(
            "`latent_tile`=True repeats one row, but with this palette's `decoder_type`='gpt' one latent makes the "
            "whole prefix, whose rows differ. Drop it."
        )


def _seeded(latent_seed: int) -> torch.Generator:
    is_integer = isinstance(latent_seed, numbers.Integral) and not isinstance(latent_seed, bool)
    if not is_integer or not 0 <= latent_seed < 1 << 63:
        raise ValueError(f"`latent_seed` must be an integer in [0, 2**63), got {latent_seed!r}.")
    return torch.Generator().manual_seed(int(latent_seed))


def _prefix_length(config: PaletteConfig, num_prefix_tokens: int | None) -> int | None:
    if num_prefix_tokens is None:
        return None
    if isinstance(num_prefix_tokens, bool) or not isinstance(num_prefix_tokens, numbers.Integral):
        raise ValueError(f"`num_prefix_tokens` must be an integer, got {num_prefix_tokens!r}.")
    if not 0 <= num_prefix_tokens <= config.max_prefix_tokens:
        raise ValueError(
            f"`num_prefix_tokens`={num_prefix_tokens} is out of range: this palette allows 0 to `max_prefix_tokens`="
            f"{config.max_prefix_tokens}."
        )
    return int(num_prefix_tokens)


def _default_length(config: PaletteConfig) -> int:
    length = _prefix_length(config, config.num_prefix_tokens)
    if not length:
        raise ValueError("The config's `num_prefix_tokens` is 0 or None; give `num_prefix_tokens` to `generate`.")
    return length


def _given_latents(
    config: PaletteConfig, num_sequences: int, latent: Any, length: int | None, latent_tile: bool
) -> LatentPrefix:
    is_whole_prefix = config.num_slots is not None
    one, each = f"({config.latent_dim},)", f"({num_sequences}, {config.latent_dim})"
    per_position = f"({num_sequences}, L, {config.latent_dim})"
    allowed = f"{one} or {each}" if is_whole_prefix else f"{one}, {each} or {per_position}"
    shapes = f"a code, N={num_sequences} codes, or a float tensor of shape {allowed}"
    try:
        values = torch.as_tensor(latent)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`latent` must be {shapes}, got {type(latent).__name__}.") from error
    if values.dtype == torch.bool or values.is_complex():
        raise ValueError(f"`latent` must be {shapes}, got dtype {values.dtype}.")
    if not values.is_floating_point():
        codes = _given_codes(config, num_sequences, values.to("cpu", torch.int64), shapes)
        return LatentPrefix(_default_length(config) if length is None else length, codes, latent_tile)

    values = values.float()
    if values.shape not in ((config.latent_dim,), (num_sequences, config.latent_dim)) and not (
        not is_whole_prefix
        and values.dim() == 3
        and values.shape[0] == num_sequences
        and values.shape[2] == config.latent_dim
    ):
        hint = " With `decoder_type`='gpt' one latent makes the whole prefix." if is_whole_prefix else ""
        raise ValueError(f"`latent` must be {shapes}, got shape {tuple(values.shape)}.{hint}")
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"`latent` must be finite, but {int((~values.isfinite()).sum())} of its {values.numel()} values are NaN "
            "or infinite."
        )
    if values.dim() == 3:
        own = values.shape[1]
        if length is not None and length != own:
            raise ValueError(
                f"`num_prefix_tokens`={length} contradicts `latent` of shape {tuple(values.shape)}, which sets "
                f"L={own}."
            )
        if latent_tile:
            raise ValueError(f"`latent_tile` contradicts `latent` of shape {tuple(values.shape)}; pass shape (N, Z).")
        if not 1 <= own <= config.max_prefix_tokens:
            raise ValueError(
                f"`latent` of shape {tuple(values.shape)} sets L={own}; this palette allows 1 to `max_prefix_tokens`="
                f"{config.max_prefix_tokens}."
            )
        length = own
    else:
        values = values.expand(num_sequences, values.shape[-1])[:, None]
        latent_tile = not is_whole_prefix
        length = _default_length(config) if length is None else length
    codes = torch.full((num_sequences,), -1, dtype=torch.int64)
    return LatentPrefix(length, codes, latent_tile, latents=values)


def _given_codes(config: PaletteConfig, num_sequences: int, codes: torch.Tensor, shapes: str) -> torch.Tensor:
    if codes.dim() == 0:
        codes = codes.expand(num_sequences).clone()
    if codes.shape != (num_sequences,):
        raise ValueError(f"`latent` must be {shapes}, got integers of shape {tuple(codes.shape)}.")
    limit = (config.num_domain_sources + 1) * config.num_codes
    outside = (codes < 0) | (codes >= limit)
    if bool(outside.any()):
        code = int(codes[outside][0])
        hint = " -1 stands for an explicit latent: pass that tensor instead." if code == -1 else ""
        raise ValueError(f"`latent` holds the code {code}; this palette has codes 0 to {limit - 1}.{hint}")
    return codes


def _source_of(config: PaletteConfig, name: str) -> int:
    if not isinstance(name, str) or name not in config.domains:
        known = ", ".join(map(repr, config.domains)) or "none yet"
        raise ValueError(
            f"`domain`={name!r} is unknown; this palette has {known}. Add one with `model.add_domain(name, traces)`."
        )
    return config.domains[name]["source"]


def _mixture_weights(domain: Mapping[str, float]) -> torch.Tensor:
    try:
        if any(isinstance(weight, bool | str | bytes) for weight in domain.values()):  # `float` would convert them
            raise TypeError("booleans and text are no weights")
        weights = torch.tensor([float(weight) for weight in domain.values()], dtype=torch.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`domain` weights must be numbers that a float holds, got {dict(domain)!s:.200}.") from error
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()) or not float(weights.sum()) > 0:
        raise ValueError(f"`domain` weights must be finite, at least 0 and not all 0, got {dict(domain)}.")
    return weights / weights.sum()


def splice(rows: torch.Tensor, inserted: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """
    Insert L columns in front of column `offsets[n]` of each row n.

    Args:
        rows (`torch.Tensor` of shape `(N, S)`): Token ids, or a mask over them.
        inserted (`torch.Tensor` of shape `(N, L)`): What to insert.
        offsets (`torch.Tensor` of shape `(N,)`, int64): Columns, e.g. the number of left pads.

    Returns:
        `torch.Tensor` of shape `(N, S + L)`.
    """
    width, length = rows.shape[1], inserted.shape[1]
    columns = torch.arange(width + length, device=rows.device)
    starts = offsets.to(rows.device)[:, None]
    in_prefix = (columns >= starts) & (columns < starts + length)
    index = torch.where(columns < starts, columns, columns - length)
    index = torch.where(in_prefix, width + columns - starts, index)
    return torch.cat([rows, inserted.to(rows)], dim=1).gather(1, index)


def cut(rows: torch.Tensor, length: int, offsets: torch.Tensor) -> torch.Tensor:
    """
    Inverse of [`splice`]: drop L columns from column `offsets[n]` of each row n.

    Args:
        rows (`torch.Tensor` of shape `(N, S + L)`): Rows with a prefix.
        length (`int`): L.
        offsets (`torch.Tensor` of shape `(N,)`, int64): Columns where the prefix starts.

    Returns:
        `torch.Tensor` of shape `(N, S)`.
    """
    columns = torch.arange(rows.shape[1] - length, device=rows.device)
    starts = offsets.to(rows.device)[:, None]
    return rows.gather(1, torch.where(columns < starts, columns, columns + length))

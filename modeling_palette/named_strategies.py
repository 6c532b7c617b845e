"""Named strategies: what is asked for by name, the prefix it means, and the embedding rows of that prefix."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .latent_prefix import Domain, LatentPrefix, resolve_prefix
from .strategy_text import STRATEGY_NAME


@dataclass
class Strategy:
    """A name, the prefix it means, and the tokens that spell it."""

    name: str
    prefix: LatentPrefix
    rows: torch.Tensor  # (R, H), float32, in the space of the input embedding's output; R = 1 where one row is tiled
    ids: list[int]

    @property
    def token_ids(self) -> list[int]:
        return self.ids * self.prefix.num_prefix_tokens if len(self.ids) == 1 else self.ids


def asked_strategies(
    config: Any, strategies: Mapping[str, Any] | None, num_strategies: int | None, domain: Domain, seed: int | None
) -> dict[str, Any]:
    """Name -> what was asked for, with the draws made."""
    if (strategies is None) == (num_strategies is None):
        raise ValueError("Give either `strategies` (by name) or `num_strategies` (draws), not both and not none.")
    if strategies is not None:
        if domain is not None or seed is not None:
            raise ValueError(
                "`domain` and `latent_seed` are for `num_strategies` draws. Name them in the strategy: "
                '`{"math-1": {"domain": "math", "latent_seed": 3}}`.'
            )
        if not isinstance(strategies, Mapping) or not strategies:
            raise ValueError(f"`strategies` must map names to latents, got {strategies!r}.")
        for name in strategies:
            if not isinstance(name, str) or not STRATEGY_NAME.fullmatch(name):
                raise ValueError(
                    f"`strategies` has the name {name!r}; a name is letters, digits, '.', '_' and '-', and starts "
                    "with a letter or digit."
                )
        return dict(strategies)
    if isinstance(num_strategies, bool) or not isinstance(num_strategies, int) or num_strategies < 1:
        raise ValueError(f"`num_strategies` must be an integer of at least 1, got {num_strategies!r}.")
    # checks `domain` and `latent_seed` as `generate` does
    drawn = resolve_prefix(
        config, num_strategies, 1, num_prefix_tokens=1, domain=domain, latent_seed=seed
    ).codes.tolist()
    by_source = {entry["source"]: name for name, entry in config.domains.items()}
    named: dict[str, int] = {}
    counts: dict[str, int] = {}
    for code in drawn:
        source = by_source.get(code // config.num_codes, "prior")
        source = source if STRATEGY_NAME.fullmatch(source) else f"source{code // config.num_codes}"
        named[f"{source}-{counts.get(source, 0)}"] = code
        counts[source] = counts.get(source, 0) + 1
    return named


def prefix_of_strategy(config: Any, name: str, value: Any, defaults: dict[str, Any]) -> LatentPrefix:
    """The prefix of one strategy, with the checks of `generate`."""
    arguments = dict(value) if isinstance(value, Mapping) else {"latent": value}
    known = {"latent", "domain", "num_prefix_tokens", "latent_tile", "latent_seed"}
    if set(arguments) - known:
        raise ValueError(f"`strategies[{name!r}]` has {sorted(set(arguments) - known)}; allowed are {sorted(known)}.")
    if not any(one is not None and one is not False for one in arguments.values()):
        raise ValueError(
            f"`strategies[{name!r}]`={value!r} asks for nothing. Give a code, a float tensor, or a dict of palette "
            'arguments such as `{"domain": "math", "latent_seed": 3}`.'
        )
    if "latent" in arguments:
        arguments["latent"] = one_sequence(arguments["latent"])
    try:
        return resolve_prefix(config, 1, 1, **{**defaults, **arguments})
    except ValueError as error:
        hint = ""
        if "contradicts `latent`" in str(error):
            hint = " A strategy may be a dict of its own: `latent`, `num_prefix_tokens` and `latent_tile`."
        raise ValueError(f"`strategies[{name!r}]`: {error}{hint}") from error


def one_sequence(latent: Any) -> Any:
    """`latent` for `generate` on one sequence: a float tensor `(L, Z)` holds its L; `(1, Z)` is one latent there."""
    is_matrix = isinstance(latent, torch.Tensor) and latent.is_floating_point() and latent.dim() == 2
    return latent[None] if is_matrix and len(latent) > 1 else latent


def rows_of_prefix(model: Any, prefix: LatentPrefix) -> torch.Tensor:
    """`(L, H)`, float32: what the model's input embedding gives for a prefix; `(1, H)` where it repeats one row."""
    return model._latent_embedding.prefix_rows(prefix)[0][: 1 if prefix.latent_tile else None]

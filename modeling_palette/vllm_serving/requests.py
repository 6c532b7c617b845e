"""Palette arguments in a request to vLLM: out of its JSON body, into a prefix, one set of latents per sample.

The arguments are those of `generate`, at the top level of the body (`extra_body` of the OpenAI client), or in
`vllm_xargs`. N is prompts x `n`, as in `generate`.
"""

import json
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from ..configuration_palette import PaletteConfig
from ..generation_palette import PALETTE_ARGUMENTS
from ..latent_prefix import LatentPrefix, resolve_prefix

# Objects of a body that vLLM keeps for extensions; a palette argument in any of them is read.
EXTENSION_FIELDS = ("vllm_xargs", "chat_template_kwargs")
# Their APIs answer with one sample and have no `n`.
SINGLE_SAMPLE_PATHS = ("/v1/responses", "/v1/messages")


@dataclass
class RequestedPrefix:
    """
    The prefixes of the B prompts of a request, on their way to the renderer.

    Args:
        prefix ([`LatentPrefix`]): B sequences.
        offsets (`dict[int, int]`): Where the renderer put the prefix in each prompt; empty until it has.
    """

    prefix: LatentPrefix
    offsets: dict[int, int] = field(default_factory=dict)

    @property
    def is_placed(self) -> bool:
        """Whether every prompt has its prefix."""
        return len(self.offsets) == len(self.prefix.codes)


# Of the request that is being served; the renderer runs in its task, or in one that inherits its context.
REQUESTED: ContextVar[RequestedPrefix | None] = ContextVar("requested_prefix", default=None)


def parse_body(content: bytes) -> dict[str, Any]:
    """A request's body where it may hold palette arguments; others need not be parsed, or are vLLM's to refuse."""
    # Without one of the names there are none; an escape could spell one, and so could UTF-16 or UTF-32, full of zeros.
    is_spelt_out = b"\\u" not in content and b"\0" not in content
    if is_spelt_out and not any(name.encode() in content for name in PALETTE_ARGUMENTS):
        return {}
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):  # a form, or no JSON
        return {}
    return body if isinstance(body, dict) else {}


def pop_palette_arguments(body: dict[str, Any]) -> dict[str, Any]:
    """
    Take the palette arguments out of a request's body; those that ask for nothing (null, or L = 0 alone) are dropped.

    Raises:
        ValueError: for an argument given twice, and for a `latent_tile` that is no boolean.
    """
    found: dict[str, Any] = {}
    fields = [body, *(body[name] for name in EXTENSION_FIELDS if isinstance(body.get(name), dict))]
    for values in fields:
        for name in PALETTE_ARGUMENTS:
            value = values.pop(name, None)
            if value is None:
                continue
            if name in found:
                raise ValueError(f"`{name}` is given twice: {found[name]!r:.80} and {value!r:.80}. Give it once.")
            found[name] = value
    tile = found.get("latent_tile", False)
    if not isinstance(tile, bool):
        raise ValueError(f"`latent_tile` must be true or false, got {tile!r:.80}.")
    if not tile:
        found.pop("latent_tile", None)
    length = found.get("num_prefix_tokens")
    if len(found) == 1 and length == 0 and length is not False:
        found.clear()
    return found


def count_prompts(body: dict[str, Any]) -> int:
    """B: the prompts of a request's body. Chats and responses have one."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def check_samples(path: str, body: dict[str, Any]) -> None:
    """
    Check `n` and `seed` of a request with palette arguments, which both this package and vLLM read.

    Raises:
        ValueError: for a value that is neither an integer nor null (vLLM would convert `"2"`, 2.0 and true), and for
            several samples of an API that has one.
    """
    for name in ("n", "seed"):
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"`{name}` must be an integer beside a prefix, got {value!r:.80}. Send a JSON integer.")
    if path in SINGLE_SAMPLE_PATHS and body.get("n") not in (None, 1):
        raise ValueError(
            f"{path} has no `n`, got {body['n']}: it answers with one sample. Send several requests, or use "
            "/v1/chat/completions."
        )


def resolve_request(
    config: PaletteConfig, arguments: dict[str, Any], num_prompts: int, num_samples: int, seed: int | None = None
) -> list[RequestedPrefix]:
    """
    The prefixes of a request.

    Args:
        config ([`PaletteConfig`]): The served model's.
        arguments (`dict`): As [`pop_palette_arguments`] returns them, not empty.
        num_prompts (`int`): B.
        num_samples (`int`): Samples per prompt, `n`.
        seed (`int`, *optional*): The request's `seed`. Where `latent_seed` is missing it seeds the draws too, as
            torch's global seed does in `generate`.

    Returns:
        `list[RequestedPrefix]`: One per sample, each with B sequences; or a single one that all samples share.

    Raises:
        ValueError: as `generate` does, and for a `latent` with more numbers than any of its shapes.
    """
    num_sequences = num_prompts * num_samples
    latent = arguments.get("latent")
    if isinstance(latent, list) and config.latent_dim is not None:
        _check_size(latent, num_sequences * config.max_prefix_tokens * config.latent_dim)
    if latent is None and arguments.get("latent_seed") is None:
        arguments = {**arguments, "latent_seed": _seed_of(seed)}
    prefix = resolve_prefix(config, num_prompts, num_samples, **arguments)
    per_sample = [_sample(prefix, sample, num_samples) for sample in range(num_samples)]
    if all(_same(per_sample[0], other) for other in per_sample[1:]):
        per_sample = per_sample[:1]
    return [RequestedPrefix(prefix) for prefix in per_sample]


def sequence_of(prefix: LatentPrefix, prompt: int) -> LatentPrefix:
    """The prefix of one of the sequences."""
    latents = None if prefix.latents is None else prefix.latents[prompt : prompt + 1]
    return LatentPrefix(prefix.num_prefix_tokens, prefix.codes[prompt : prompt + 1], prefix.latent_tile, latents)


def _sample(prefix: LatentPrefix, sample: int, num_samples: int) -> LatentPrefix:
    latents = None if prefix.latents is None else prefix.latents[sample::num_samples]
    return LatentPrefix(prefix.num_prefix_tokens, prefix.codes[sample::num_samples], prefix.latent_tile, latents)


def _same(one: LatentPrefix, other: LatentPrefix) -> bool:
    if one.latents is not None and other.latents is not None:
        return torch.equal(one.latents, other.latents)
    return torch.equal(one.codes, other.codes)


def _seed_of(seed: int | None) -> int:
    if seed is None or seed == -1:  # vLLM's "none"
        seed = torch.Generator().seed()
    return seed % (1 << 63)


def _check_size(latent: list[Any], limit: int) -> None:
    """Count the numbers of nested lists before they become a tensor."""
    count, lists = 0, [latent]
    while lists:
        for value in lists.pop() or (None,):
            if isinstance(value, list):
                lists.append(value)
                continue
            count += 1
            if count > limit:
                raise ValueError(f"`latent` holds more numbers than N x `max_prefix_tokens` x Z, which are {limit}.")

"""How the samples of one problem are made: the rows of an evaluation's table."""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .prompt_encoding import Prompt, count_images, encode_prompts, padding_token_id
from .random_soft_prompt import draw_soft_prompts, place_soft_prompts, splice_soft_prompts


@dataclass(frozen=True)
class Method:
    """A way to draw the samples of a problem.

    Args:
        name (`str`): Name in reports.
        prefix (`str`, *optional*, defaults to `"none"`): What stands before the prompt: `"none"`; `"palette"`, a new
            latent for every sample; or `"random"`, a random soft prompt for every sample (arXiv 2605.11936).
        num_prefix_tokens (`int`, *optional*, defaults to 0): Prefix length L.
        domain (`str`, *optional*): Domain whose latents are drawn; the prior if None. With `prefix="palette"` only.
        latent_tile (`bool`, *optional*, defaults to `False`): One latent repeated L times. With `prefix="palette"`
            only.
        shared_latents (`bool`, *optional*, defaults to `False`): The i-th sample of every problem has the same latent,
            so that what a latent does on several problems can be told. With `prefix="palette"` only.
        temperature (`float`, *optional*, defaults to 0.0): 0 decodes greedily; above, the full distribution is
            sampled (no top-k, no top-p).
    """

    name: str
    prefix: Literal["none", "palette", "random"] = "none"
    num_prefix_tokens: int = 0
    domain: str | None = None
    latent_tile: bool = False
    temperature: float = 0.0
    shared_latents: bool = False

    def __post_init__(self) -> None:
        if self.prefix not in ("none", "palette", "random"):
            raise ValueError(f"`prefix` is {self.prefix!r}; choose 'none', 'palette' or 'random'.")
        if (self.prefix == "none") != (self.num_prefix_tokens == 0) or self.num_prefix_tokens < 0:
            raise ValueError(
                f"`num_prefix_tokens` is {self.num_prefix_tokens} with `prefix={self.prefix!r}`; it must be 0 with "
                "'none' and at least 1 otherwise."
            )
        if self.prefix != "palette" and (self.domain is not None or self.latent_tile or self.shared_latents):
            raise ValueError(
                f"`domain` and `latent_tile` need `prefix='palette'`, not {self.prefix!r}; so does `shared_latents`."
            )
        if self.temperature < 0:
            raise ValueError(f"`temperature` is {self.temperature}; it must be 0 (greedy) or above.")

    @property
    def deterministic(self) -> bool:
        """Whether all samples of a problem are the same."""
        return self.prefix == "none" and self.temperature == 0


@dataclass(frozen=True)
class Completions:
    """Completions of a batch of prompts, the samples of a prompt in a row.

    Args:
        texts (`list[str]`): N texts.
        num_tokens (`list[int]`): N lengths in tokens, up to and including EOS.
        latent_codes (`list[int]`, *optional*): N codes, where the palette drew them.
    """

    texts: list[str]
    num_tokens: list[int]
    latent_codes: list[int] | None


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    prompts: Sequence[Prompt],
    method: Method,
    num_samples: int,
    max_new_tokens: int,
    seed: int,
    codes: Sequence[int] | None = None,
) -> Completions:
    """Draws `num_samples` completions of each prompt.

    Args:
        model (`PreTrainedModel`): A causal or vision-language LM; with a palette where the method asks for one.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): Its tokenizer or processor, with a padding token.
        prompts (sequence of `str`, or of conversations): B prompts.
        method (`Method`): How to draw.
        num_samples (`int`): Samples per prompt.
        max_new_tokens (`int`): Longest completion, in tokens.
        seed (`int`): Seed of latents, soft prompts and sampled tokens. The global generators are left as they were.
        codes (sequence of `int`, *optional*): Codes of each prompt's samples, in place of a draw.
    """
    repeats, most_images = 1, max(map(count_images, prompts))
    if most_images > 1 or (most_images and method.prefix == "random"):
        # `generate` repeats pixels image by image, not row by row: a row's second image would become another row's
        prompts, repeats = [prompt for prompt in prompts for _ in range(num_samples)], num_samples
    encoded = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in encode_prompts(tokenizer, prompts).items()
    }
    width = encoded["input_ids"].shape[1]
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "pad_token_id": padding_token_id(tokenizer),
        "return_dict_in_generate": True,
    }
    if method.temperature > 0:
        options |= {"do_sample": True, "temperature": method.temperature, "top_k": 0, "top_p": 1.0}
    else:
        options |= {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if method.prefix == "palette":
        options |= {
            "num_prefix_tokens": method.num_prefix_tokens,
            "domain": method.domain,
            "latent_tile": method.latent_tile,
            "latent_seed": seed,
        }
        if codes is not None:
            # a code holds its source, and what it names depends on no seed
            options |= {"domain": None, "latent_seed": None, "latent": list(codes) * (len(prompts) // repeats)}
    devices = [model.device] if model.device.type == "cuda" else []
    with ExitStack() as stack:
        if method.prefix == "random":
            generator = torch.Generator().manual_seed(seed)
            drawn = draw_soft_prompts(
                model, len(prompts) * num_samples // repeats, method.num_prefix_tokens, generator
            )
            if most_images:
                placed = place_soft_prompts(model, encoded, drawn, options["pad_token_id"])
                encoded = stack.enter_context(placed)
                width += method.num_prefix_tokens
            else:
                repeated = {name: tensor.repeat_interleave(num_samples, dim=0) for name, tensor in encoded.items()}
                encoded = splice_soft_prompts(model, repeated["input_ids"], repeated["attention_mask"], drawn)
                width = 0  # with `inputs_embeds` transformers returns the completion alone
        else:
            options["num_return_sequences"] = num_samples // repeats
        stack.enter_context(torch.random.fork_rng(devices=devices))
        torch.manual_seed(seed)
        output = model.generate(**encoded, **options)
    completions = output.sequences[:, width:]
    codes = output.latent_codes.tolist() if method.prefix == "palette" else None
    return Completions(
        texts=tokenizer.batch_decode(completions, skip_special_tokens=True),
        num_tokens=_lengths(completions, model.generation_config.eos_token_id),
        latent_codes=codes,
    )


def _lengths(completions: torch.Tensor, eos_token_id: int | list[int] | None) -> list[int]:
    """Tokens of each completion up to and including EOS (which may be the padding token as well)."""
    if eos_token_id is None:
        return [completions.shape[1]] * len(completions)
    ended = torch.isin(completions, torch.tensor(eos_token_id, device=completions.device))
    first = ended.int().argmax(1) + 1
    return torch.where(ended.any(1), first, completions.shape[1]).tolist()


def draw_codes(model: PreTrainedModel, method: Method, num_samples: int, seed: int) -> list[int] | None:
    """Codes that every problem's samples share, where a method asks for that."""
    if not method.shared_latents:
        return None
    source = 0 if method.domain is None else model.palette.domains[method.domain]["source"]
    num_codes = model.config.num_codes
    drawn = random.Random(f"codes:{seed}").sample(range(num_codes), num_samples)
    return [source * num_codes + index for index in drawn]

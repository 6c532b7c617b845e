"""The "Palette" section of the model cards that the trainers write, and what in a card is to be said otherwise."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .latent_schedule import LATENT_SCHEDULES

PALETTE_PAPER = {
    "title": (
        "Reasoning Palette: Modulating Reasoning via Latent Contextualization for Controllable Exploration for (V)LMs"
    ),
    "id": "2512.17206",
    "citation": """\
@article{long2025reasoning,
  title   = {{Reasoning Palette: Modulating Reasoning via Latent Contextualization for Controllable Exploration for (V)LMs}},
  author  = {Rujiao Long and Yang Li and Xingyao Zhang and Weixun Wang and Tianqianjin Lin and Xi Zhao and Yuchi Xu and Wenbo Su and Junchi Yan and Bo Zheng},
  year    = 2025,
  journal = {arXiv preprint arXiv:2512.17206},
  url     = {https://arxiv.org/abs/2512.17206},
}""",  # noqa: E501 (one field per line, as the other entries of a card)
}
PAPER_LINK = f"[{PALETTE_PAPER['title']}](https://arxiv.org/abs/{PALETTE_PAPER['id']})"

_QUICK_START = re.compile(r"## Quick start\n\n```python\n.*?\n```", re.DOTALL)


def hub_id(name: str | None) -> str | None:
    """`name` if it can be that of a repository on the Hub; None for a folder: a card must not name this machine's."""
    if not name or os.path.isdir(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def repo_name(trainer: Any, model_name: str | None) -> str:
    """What a snippet calls the model: its repository's name, else the given one, else its folder's."""
    folder = os.path.basename(os.path.normpath(trainer.args.output_dir))
    return trainer.hub_model_id or trainer.args.hub_model_id or model_name or folder


def palette_facts(palette: Any, base: str | None, base_class: str) -> dict[str, str]:
    """
    What a card says of the palette.

    Args:
        palette (`PaletteVAE`): The palette.
        base (`str`, *optional*): Name of the base on the Hub.
        base_class (`str`): Name of the base's class, for a base that has no such name.

    Returns:
        `dict[str, str]`: Fact -> Markdown.
    """
    domains = [f"`{name}` ({entry['count']:,} latents)" for name, entry in palette.domains.items()]
    num_slots = palette.num_slots
    return {
        "base": f"[{base}](https://huggingface.co/{base})" if base else f"a `{base_class}` that is not on the Hub",
        "`latent_dim`": str(palette.latent_dim),
        **({} if num_slots is None else {"decoder": f"`gpt`: one latent makes a prefix of up to {num_slots} tokens"}),
        "domains": ", ".join(domains) or "none",
    }


def training_facts(args: Any, latent_seed: int, num_slots: int | None = None) -> dict[str, str]:
    """
    What a card says of how latents were used in training.

    Args:
        args ([`PaletteArguments`]): The trainer's config.
        latent_seed (`int`): Seed of the draws.
        num_slots (`int`, *optional*): The palette's, where one latent makes a whole prefix.

    Returns:
        `dict[str, str]`: Fact -> Markdown.
    """
    if args.num_prefix_tokens == 0:
        return {"`num_prefix_tokens`": "0: trained without prefixes, as the stock trainer does"}
    tiled = "one latent, repeated" if args.latent_tile else "an independent latent for each"
    tiled = tiled if num_slots is None else "made of one latent"
    source = args.latent_domain
    if isinstance(source, Mapping):
        source = " + ".join(f"{weight / sum(source.values()):.0%} `{name}`" for name, weight in source.items())
    elif source is not None:
        source = f"domain `{source}`"
    facts = {"`num_prefix_tokens` (L)": f"{args.num_prefix_tokens}, {tiled}"}
    if getattr(args, "latent_pairing", "prior") == "posterior":
        facts["latents"] = "drawn from each example's own posterior (`latent_pairing='posterior'`)"
    else:
        facts["latents drawn from"] = source or "the prior N(0, I)"
    if hasattr(args, "latent_schedule"):
        end = args.latent_schedule_end or LATENT_SCHEDULES[args.latent_schedule]
        until = f" at the start, 0 from {end:.0%} of training on" if end is not None else ""
        facts["share of guided rollouts (rho)"] = (
            f"`{args.latent_schedule}`: {args.latent_fraction:g}{until}; a draw per {args.latent_per}"
        )
    facts["seed of the draws"] = str(latent_seed)
    return facts


# Auto class, what loads the tokenizer or processor, and the lines up to the prompt.
_OF_TEXT = (
    "AutoModelForCausalLM",
    "AutoTokenizer",
    (
        "tokenizer = AutoTokenizer.from_pretrained(repo, trust_remote_code=True)",
        'prompt = tokenizer("What is 12 * 11?", return_tensors="pt")',
    ),
)
_OF_IMAGES = (
    "AutoModelForImageTextToText",
    "AutoProcessor",
    (
        "processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)",
        'content = [{"type": "image", "path": "picture.png"}, {"type": "text", "text": "What is in this image?"}]',
        'template = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}',
        'prompt = processor.apply_chat_template([{"role": "user", "content": content}], **template)',
    ),
)


def usage(
    repo: str,
    domains: Mapping[str, Any],
    num_prefix_tokens: int = 8,
    latent_tile: bool = False,
    adapter_base: str | None = None,
    reads_images: bool = False,
) -> str:
    """
    Python that loads the model and uses its palette.

    Args:
        repo (`str`): The repository.
        domains (`dict`): The palette's domains; the first one is shown.
        num_prefix_tokens (`int`, *optional*, defaults to `8`): L.
        latent_tile (`bool`, *optional*, defaults to `False`): Whether one latent is repeated L times.
        adapter_base (`str`, *optional*): For an adapter: the Python expression of what its palette model is loaded
            from.
        reads_images (`bool`, *optional*, defaults to `False`): Whether the model is a vision-language model.

    Returns:
        `str`: The snippet.
    """
    length = f"num_prefix_tokens={num_prefix_tokens}{', latent_tile=True' if latent_tile else ''}"
    source = adapter_base or "repo"
    auto_class, loader, prompt = _OF_IMAGES if reads_images else _OF_TEXT
    lines = [
        *(["from huggingface_hub import snapshot_download"] if "snapshot_download" in source else []),
        *(["from peft import PeftModel"] if adapter_base else []),
        f"from transformers import {auto_class}, {loader}",
        "",
        f'repo = "{repo}"',
        f"model = {auto_class}.from_pretrained({source}, trust_remote_code=True)",
        *(["model = PeftModel.from_pretrained(model, repo)"] if adapter_base else []),
        *prompt,
        "",
        f"model.generate(**prompt, {length}, max_new_tokens=64)  # a latent drawn from the prior",
    ]
    for name in list(domains)[:1]:
        lines.append(
            f"model.generate(**prompt, {length}, domain={json.dumps(name)}, max_new_tokens=64)  # from a domain"
        )
    return "\n".join([*lines, "model.generate(**prompt, max_new_tokens=64)  # without a latent"])


def complete_card(
    path: str, facts: Mapping[str, str], snippet: str | None, base_model: str | None, pipeline_tag: str | None = None
) -> None:
    """
    Add the "Palette" section to a card that TRL or transformers has just written, in place of one that it has.

    Args:
        path (`str`): The card.
        facts (`dict[str, str]`): Rows of the section's table.
        snippet (`str`, *optional*): Python that takes the place of the card's quick start, which would load a palette
            without `trust_remote_code`. None leaves that one.
        base_model (`str`, *optional*): Name of the base on the Hub, where the card knows none.
        pipeline_tag (`str`, *optional*): The task, where the card knows none.
    """
    card = ModelCard.load(path)
    card.data.base_model = hub_id(card.data.get("base_model")) or base_model
    card.data.pipeline_tag = card.data.get("pipeline_tag") or pipeline_tag
    text = re.sub(r"\n## Palette\n.*?(?=\n## |\Z)", "", card.text, flags=re.DOTALL)
    base = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else facts.get("base", "a local model")
    for nameless in ("[None](https://huggingface.co/None)", "[](https://huggingface.co/)"):
        text = text.replace(nameless, base)
    if snippet is not None:
        text = _QUICK_START.sub(lambda _: f"## Quick start\n\n```python\n{snippet}\n```", text)
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    section = f"\n## Palette\n\nLatent prefixes as in {PAPER_LINK}.\n\n| | |\n| --- | --- |\n{table}\n"
    if snippet is not None and "## Quick start" not in text:
        section += f"\n```python\n{snippet}\n```\n"
    # Before the citations, with which TRL's cards end.
    position = text.find("\n## Citation")
    position = len(text) if position < 0 else position
    card.text = text[:position].rstrip("\n") + "\n" + section + text[position:]
    card.save(path)

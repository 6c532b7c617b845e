"""The model card of a palette model: the sections and the metadata that the model itself can vouch for.

A section with the marker is written anew with every push; without it, it belongs to whoever wrote it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .card_usage import DEFAULT_PROMPT, prompt_of, usage

MARKER = "<!-- written by push_to_hub with every push; without this line, the section is yours -->"
PAPER = "[Reasoning Palette](https://arxiv.org/abs/2512.17206)"
TAGS = ("reasoning-palette", "arxiv:2512.17206")
UNMEASURED = (
    "Nothing was given to this card: traces and their licences, reconstruction and KL of the VAE, and accuracy are "
    "unknown. `examples/09_push_to_hub.py` of the reasoning-palette package writes a card from what was measured."
)
_NOTE = re.compile(r"^\*\*Figures of another commit\.\*\* .*$", re.MULTILINE)


def hub_name(name: str | None) -> str | None:
    """`name` if it can be that of a repository on the Hub; None for a folder: a card names none of this machine's."""
    if not name or Path(name).is_dir():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def link(repo_id: str, revision: str | None = None) -> str:
    """A repository in Markdown, at a commit if there is one."""
    address = f"https://huggingface.co/{repo_id}"
    return (
        f"[{repo_id}]({address}) at [`{revision[:12]}`]({address}/tree/{revision})"
        if revision
        else (f"[{repo_id}]({address})")
    )


def new_card(
    model: Any,
    repo_id: str,
    palette_only: bool = False,
    *,
    revision: str | None = None,
    prompt: str = DEFAULT_PROMPT,
    measured: Mapping[str, str] | None = None,
) -> ModelCard:
    """
    A card for a palette model.

    Args:
        model ([`PaletteForCausalLM`]): The model.
        repo_id (`str`): The repository that the card is for.
        palette_only (`bool`, *optional*, defaults to `False`): Whether the repository holds the palette alone.
        revision (`str`, *optional*): The commit that the snippets pin, where it is known: a card cannot hold the hash
            of the commit that it is part of.
        prompt (`str`, *optional*): The prompt of the snippets.
        measured (`dict[str, str]`, *optional*): Heading -> Markdown of what was measured; it goes between usage and
            limits, and a "Citation" takes the place of the short one.

    Returns:
        `ModelCard`: The card.
    """
    own = model_sections(model, repo_id, palette_only, revision, prompt)
    found = dict(measured or {"Traces and figures": f"{MARKER}\n\n{UNMEASURED}"})
    citation = found.pop("Citation", own["Citation"])
    sections = {**{name: own[name] for name in ("Palette", "Usage")}, **found, "Limits": own["Limits"]}
    sections["Citation"] = citation
    body = "\n\n".join(f"## {name}\n\n{text.strip()}" for name, text in sections.items())
    base = hub_name(model.config.base_model_name_or_path)
    what = f"a palette for {link(base)}" if base else "a palette model"
    head = (
        f"# {repo_id.split('/')[-1]}\n\n{what[0].upper()}{what[1:]}: a small latent, drawn before the first token, "
        f"sets the strategy of the whole answer ({PAPER}). The same code draws the same latent everywhere, and a "
        "domain draws latents of one kind."
    )
    data = ModelCardData(**metadata(model, palette_only))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{head}\n\n{body}\n")


def metadata(model: Any, palette_only: bool = False) -> dict[str, Any]:
    """What the Hub reads of a card: the model's place in the tree of its base, its task and its library."""
    config = model.config
    base = hub_name(config.base_model_name_or_path)
    is_vision = "AutoModelForImageTextToText" in config.auto_map
    return {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if is_vision else "text-generation",
        "tags": list(TAGS),
        **({"base_model": base, "base_model_relation": "adapter" if palette_only else "finetune"} if base else {}),
    }


def refresh_card(
    card: ModelCard,
    model: Any,
    repo_id: str,
    palette_only: bool = False,
    *,
    revision: str | None = None,
    measured_on: str | None = None,
) -> ModelCard:
    """
    A card that is there already, with its marked sections written anew; everything else in it stays.

    Args:
        card (`ModelCard`): The card.
        model, repo_id, palette_only, revision: As in [`new_card`].
        measured_on (`str`, *optional*): What its figures were measured on, in words, where that is not the model that
            is published now.

    Returns:
        `ModelCard`: A new card. Metadata that it lacked is filled in; a value that it has stays, tags are joined.
    """
    found = split_sections(card.text)
    old = found.get("Palette", "")
    own = model_sections(model, repo_id, palette_only, revision, prompt_of(found.get("Usage", "")))
    note = _NOTE.search(old)
    if note is not None:  # the first to say it knew best
        own["Palette"] += f"\n\n{note.group()}"
    elif measured_on is not None and any(MARKER not in text for name, text in found.items() if name):
        own["Palette"] += f"\n\n**Figures of another commit.** What is measured below was measured on {measured_on}."
    sections = {name: f"\n{own[name]}\n\n" if name in own and MARKER in text else text for name, text in found.items()}
    text = "".join(f"## {name}\n{body}" if name else body for name, body in sections.items())
    data = card.data.to_dict()
    known = metadata(model, palette_only)
    tags = data.get("tags") or []
    data = {**known, **{name: value for name, value in data.items() if value is not None}}
    data["tags"] = list(dict.fromkeys([*([tags] if isinstance(tags, str) else tags), *known["tags"]]))
    refreshed = ModelCard(card.content)
    refreshed.text = text.rstrip("\n") + "\n"
    refreshed.data = ModelCardData(**data)
    return refreshed


def model_sections(
    model: Any, repo_id: str, palette_only: bool, revision: str | None, prompt: str = DEFAULT_PROMPT
) -> dict[str, str]:
    """Heading -> Markdown of the sections that the model itself can vouch for, each with the marker."""
    sections = {
        "Palette": _palette(model, palette_only),
        "Usage": usage(model, repo_id, palette_only, revision, prompt, hub_name(model.config.base_model_name_or_path)),
        "Limits": _limits(model, palette_only),
        "Citation": f"The method is {PAPER}; this model was made with the reasoning-palette package.",
    }
    return {name: f"{MARKER}\n\n{text}" for name, text in sections.items()}


def split_sections(text: str) -> dict[str, str]:
    """Heading -> body of a card's sections of the second level, in order; what is above them has the heading `""`."""
    sections, name, fenced = {"": ""}, "", False
    for line in text.splitlines(keepends=True):
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("## ") and not fenced:
            name = line[3:].strip()
            while name in sections:  # a heading twice: told apart by a space, which Markdown does not show
                name += " "
            sections[name] = ""
        else:
            sections[name] += line
    return sections


def _palette(model: Any, palette_only: bool) -> str:
    config = model.config
    base, revision = hub_name(config.base_model_name_or_path), config.base_model_revision
    nameless = f"a model of the type `{config.base_config.model_type}`; its name on the Hub is unknown"
    of_base = "the base is loaded from its own repository"
    rows = {
        "base": f"{link(base, revision)}{'' if revision else ', revision unknown'}" if base else nameless,
        "checkpoint": f"the palette alone; {of_base}" if palette_only else "full: base and palette",
    }
    if model.palette is None:
        return f"{table(rows)}\n\nThis model has no palette: it does what the base does, and refuses prefixes."
    rows |= {
        "`latent_dim` (Z)": str(config.latent_dim),
        "a latent makes": f"a prefix of up to {config.num_slots} tokens" if config.num_slots else "one prefix token",
        "`num_prefix_tokens` (L) where none is asked for": str(config.num_prefix_tokens),
        "codes": f"{config.num_codes:,} for the prior and for each domain",
        "seed that gives codes their meaning": str(config.latent_seed),
        "position of the prefix": f"`{config.prefix_position}`",
    }
    domains = [f"| `{escaped(name)}` | {entry['count']:,} |" for name, entry in config.domains.items()]
    listed = "\n".join(["| domain | latents it was fitted to |", "| --- | ---: |", *domains])
    return f"{table(rows)}\n\n{listed if domains else 'It has no domains: latents are drawn from the prior N(0, I).'}"


def _limits(model: Any, palette_only: bool) -> str:
    lines = [
        "A latent changes which strategy is tried, not what the model knows; what it does to accuracy is only what is "
        "measured above.",
        "Domains are Gaussians over the latents of the traces that they were fitted to. Draws follow them in "
        "distribution: a single draw may look like another domain.",
        "The checkpoint carries its own code, hence `trust_remote_code=True`. Read it at the commit that you pin.",
        "Limits and biases of the base are this model's too; see the card of the base.",
    ]
    if palette_only:
        lines.append("The palette fits this base alone: other weights, even of the same sizes, embed text elsewhere.")
    if model.palette is not None and not bool(model.palette.trained):
        lines.insert(0, "**The palette is untrained**: its prefixes are those of a random decoder.")
    return "\n".join(f"- {line}" for line in lines)


def escaped(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def table(rows: Mapping[str, str]) -> str:
    """Fact -> Markdown, as a table of two columns."""
    return "\n".join(["| | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])

"""The snippets of a model card, each complete in itself and pinned to a commit."""

import json
import re
from typing import Any

DEFAULT_PROMPT = "What is 12 * 11?"
_UNPINNED = "main"
_PIN = (
    "A card cannot hold the hash of the commit that it is part of: put the commit whose code you have read (*Files "
    "and versions*) where the snippets say `main`."
)
_SHOW = "print(tokenizer.decode(output[0], skip_special_tokens=True))"
_PROMPT = re.compile(r"^prompt = (\".*\")$", re.MULTILINE)


def prompt_of(text: str) -> str:
    """The prompt of a card's snippets, to be used again."""
    found = _PROMPT.search(text)
    return json.loads(found.group(1)) if found else DEFAULT_PROMPT


def usage(model: Any, repo_id: str, palette_only: bool, revision: str | None, prompt: str, base: str | None) -> str:
    """
    How the checkpoint is used: with its own class, in a pipeline, on an unmodified base, and for training.

    Args:
        model ([`PaletteForCausalLM`]): The model.
        repo_id (`str`): Its repository.
        palette_only (`bool`): Whether the repository holds the palette alone.
        revision (`str`, *optional*): The commit that the snippets pin.
        prompt (`str`): The prompt.
        base (`str`, *optional*): Name of the base on the Hub.

    Returns:
        `str`: Markdown.
    """
    head = [
        f"repo = {_quoted(repo_id)}",
        f"revision = {_quoted(revision or _UNPINNED)}" + ("" if revision else "  # not pinned: put a commit here"),
        f"prompt = {_quoted(prompt)}",
    ]
    parts = [] if revision else [_PIN]
    if palette_only and base is None:
        parts.append(
            "**The base is not on the Hub**, so this repository does not name it, and "
            "`AutoModelForCausalLM.from_pretrained` cannot load it. With a copy of the base, use `custom_generate`."
        )
    else:
        parts += [_fenced(_own_class(model, head)), "In the stock pipeline:", _fenced(_pipeline(model, head))]
    if model.palette is not None and palette_only:
        parts += ["On the unmodified base, which keeps its class:", _fenced(_custom_generate(model, head, base))]
    if model.palette is not None:
        parts += [
            "The trainers travel with the checkpoint; they take what TRL's take, and latents "
            "(`num_prefix_tokens`, `latent_domain`, `latent_schedule`). With TRL installed:",
            _fenced(_trainers(head)),
        ]
    return "\n\n".join(parts)


def _calls(model: Any, *lines: str) -> list[str]:
    """Lines with a call of `generate`, under two domains or with what the palette has instead."""
    if model.palette is None:
        return [line.format(arguments="") for line in lines]
    domains = list(model.config.domains)[:2]
    if not domains:
        drawn = [line.format(arguments=", num_prefix_tokens=8, latent_seed=0") for line in lines]
        return ["# a latent drawn from the prior", *drawn]
    loop = f"for domain in [{', '.join(map(_quoted, domains))}]:"
    return [loop, *(f"    {line.format(arguments=', domain=domain, latent_seed=0')}" for line in lines)]


def _own_class(model: Any, head: list[str]) -> list[str]:
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        *head,
        "model = AutoModelForCausalLM.from_pretrained(repo, revision=revision, trust_remote_code=True)",
        *_tokenizer(model),
        *_calls(model, "output = model.generate(**inputs, do_sample=False, max_new_tokens=60{arguments})", _SHOW),
    ]
    if model.palette is None:
        return lines
    return [
        *lines,
        "",
        "# four attempts, each with a code that replays it",
        'settings = {"num_prefix_tokens": 8, "do_sample": False, "max_new_tokens": 60}',
        "four = model.generate(**inputs, **settings, num_return_sequences=4, return_dict_in_generate=True)",
        "third = model.generate(**inputs, **settings, latent=int(four.latent_codes[2]))",
    ]


def _pipeline(model: Any, head: list[str]) -> list[str]:
    return [
        "from transformers import pipeline",
        "",
        *head,
        'generator = pipeline("text-generation", model=repo, revision=revision, trust_remote_code=True)',
        *_calls(
            model,
            "output = generator(prompt, do_sample=False, max_new_tokens=60{arguments})",
            'print(output[0]["generated_text"])',
        ),
    ]


def _custom_generate(model: Any, head: list[str], base: str | None) -> list[str]:
    pinned = model.config.base_model_revision
    where = f"{_quoted(base)}{f', revision={_quoted(pinned)}' if pinned else ''}" if base else '"folder of the base"'
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        *head,
        f"base = AutoModelForCausalLM.from_pretrained({where})",
        *_tokenizer(model, where),
        'palette = {"custom_generate": repo, "revision": revision, "trust_remote_code": True}',
        *_calls(
            model, "output = base.generate(**inputs, **palette, do_sample=False, max_new_tokens=60{arguments})", _SHOW
        ),
    ]


def _trainers(head: list[str]) -> list[str]:
    return [
        "from transformers.dynamic_module_utils import get_class_from_dynamic_module",
        "",
        *head[:2],
        'module = "trainers/palette_grpo_trainer"  # or palette_rloo_trainer, palette_sft_trainer',
        'trainer_class = get_class_from_dynamic_module(f"{module}.PaletteGRPOTrainer", repo, revision=revision)',
        'config_class = get_class_from_dynamic_module(f"{module}.PaletteGRPOConfig", repo, revision=revision)',
    ]


def _tokenizer(model: Any, base: str | None = None) -> list[str]:
    if model.tokenizer is not None:
        source = "repo, revision=revision, trust_remote_code=True"
    else:
        source = base or '"the tokenizer of the base"'
    return [f"tokenizer = AutoTokenizer.from_pretrained({source})", 'inputs = tokenizer(prompt, return_tensors="pt")']


def _fenced(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _quoted(text: str) -> str:
    """A Python literal in double quotes, on one line: JSON's are such."""
    return json.dumps(text, ensure_ascii=False)

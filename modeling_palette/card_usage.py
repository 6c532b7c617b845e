"""The snippets of a model card, each complete in itself and pinned to a commit."""

import json
import re
from dataclasses import dataclass
from typing import Any

DEFAULT_PROMPT = "What is 12 * 11?"
_IMAGE_PROMPT = "What is in this image?"
_IMAGE = (
    "https://huggingface.co/datasets/hf-internal-testing/transformers-synthetic-assets/resolve/main/images/"
    "qwen_vl_demo.jpeg"
)
_UNPINNED = "main"
_PIN = (
    "A card cannot hold the hash of the commit that it is part of: put the commit whose code you have read (*Files "
    "and versions*) where the snippets say `main`."
)
_PROMPT = re.compile(r"^prompt = (\".*\")$", re.MULTILINE)


@dataclass
class _Kind:
    """What differs between the snippets of text and of vision-language models."""

    auto_class: str
    loader: str
    processing: str
    task: str
    inputs: tuple[str, ...]
    piped: str  # what a pipeline is called with

    @property
    def show(self) -> str:
        return f"print({self.processing}.decode(output[0], skip_special_tokens=True))"


_TEXT = _Kind(
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "tokenizer",
    "text-generation",
    ('inputs = tokenizer(prompt, return_tensors="pt")',),
    "prompt, do_sample=False",
)
_MESSAGES = (
    'content = [{"type": "image", "url": image}, {"type": "text", "text": prompt}]',
    'messages = [{"role": "user", "content": content}]',
)
_VISION = _Kind(
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "processor",
    "image-text-to-text",
    (
        *_MESSAGES,
        'template = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}',
        "inputs = processor.apply_chat_template(messages, **template)",
    ),
    'text=messages, generate_kwargs={{"do_sample": False}}',
)


def _kind_of(model: Any) -> _Kind:
    return _VISION if hasattr(model, "processor") else _TEXT


def prompt_of(text: str) -> str:
    """The prompt of a card's snippets, to be used again."""
    found = _PROMPT.search(text)
    return json.loads(found.group(1)) if found else DEFAULT_PROMPT


def usage(model: Any, repo_id: str, palette_only: bool, revision: str | None, prompt: str, base: str | None) -> str:
    """
    How the checkpoint is used: with its own class, in a pipeline, on an unmodified base, and for training.

    Args:
        model ([`PaletteForCausalLM`] or [`PaletteForVision2Seq`]): The model.
        repo_id (`str`): Its repository.
        palette_only (`bool`): Whether the repository holds the palette alone.
        revision (`str`, *optional*): The commit that the snippets pin.
        prompt (`str`): The prompt.
        base (`str`, *optional*): Name of the base on the Hub.

    Returns:
        `str`: Markdown.
    """
    kind = _kind_of(model)
    if kind is _VISION and prompt == DEFAULT_PROMPT:
        prompt = _IMAGE_PROMPT
    head = [
        f"repo = {_quoted(repo_id)}",
        f"revision = {_quoted(revision or _UNPINNED)}" + ("" if revision else "  # not pinned: put a commit here"),
        f"prompt = {_quoted(prompt)}",
        *([f"image = {_quoted(_IMAGE)}"] if kind is _VISION else []),
    ]
    parts = [] if revision else [_PIN]
    if palette_only and base is None:
        parts.append(
            "**The base is not on the Hub**, so this repository does not name it, and "
            f"`{kind.auto_class}.from_pretrained` cannot load it. With a copy of the base, use `custom_generate`."
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
        arguments = f", num_prefix_tokens={model.config.num_prefix_tokens}, latent_seed=0"
        drawn = [line.format(arguments=arguments) for line in lines]
        return ["# a latent drawn from the prior", *drawn]
    loop = f"for domain in [{', '.join(map(_quoted, domains))}]:"
    return [loop, *(f"    {line.format(arguments=', domain=domain, latent_seed=0')}" for line in lines)]


def _own_class(model: Any, head: list[str]) -> list[str]:
    kind = _kind_of(model)
    lines = [
        f"from transformers import {kind.auto_class}, {kind.loader}",
        "",
        *head,
        f"model = {kind.auto_class}.from_pretrained(repo, revision=revision, trust_remote_code=True)",
        *_inputs(model),
        *_calls(model, "output = model.generate(**inputs, do_sample=False, max_new_tokens=60{arguments})", kind.show),
    ]
    if model.palette is None:
        return lines
    return [
        *lines,
        "",
        "# four attempts, each with a code that replays it",
        f'settings = {{"num_prefix_tokens": {model.config.num_prefix_tokens}, "do_sample": False, '
        '"max_new_tokens": 60}',
        "four = model.generate(**inputs, **settings, num_return_sequences=4, return_dict_in_generate=True)",
        "third = model.generate(**inputs, **settings, latent=int(four.latent_codes[2]))",
    ]


def _pipeline(model: Any, head: list[str]) -> list[str]:
    kind = _kind_of(model)
    return [
        "from transformers import pipeline",
        "",
        *head,
        f'generator = pipeline("{kind.task}", model=repo, revision=revision, trust_remote_code=True)',
        *(_MESSAGES if kind is _VISION else ()),
        *_calls(
            model,
            f"output = generator({kind.piped}, max_new_tokens=60{{arguments}})",
            'print(output[0]["generated_text"])',
        ),
    ]


def _custom_generate(model: Any, head: list[str], base: str | None) -> list[str]:
    kind = _kind_of(model)
    pinned = model.config.base_model_revision
    where = f"{_quoted(base)}{f', revision={_quoted(pinned)}' if pinned else ''}" if base else '"folder of the base"'
    return [
        f"from transformers import {kind.auto_class}, {kind.loader}",
        "",
        *head,
        f"base = {kind.auto_class}.from_pretrained({where})",
        *_inputs(model, where),
        'palette = {"custom_generate": repo, "revision": revision, "trust_remote_code": True}',
        *_calls(
            model,
            "output = base.generate(**inputs, **palette, do_sample=False, max_new_tokens=60{arguments})",
            kind.show,
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


def _inputs(model: Any, base: str | None = None) -> list[str]:
    kind = _kind_of(model)
    if (model.processor if kind is _VISION else model.tokenizer) is not None:
        source = "repo, revision=revision, trust_remote_code=True"
    else:
        source = base or f'"the {kind.processing} of the base"'
    return [f"{kind.processing} = {kind.loader}.from_pretrained({source})", *kind.inputs]


def _fenced(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _quoted(text: str) -> str:
    """A Python literal in double quotes, on one line: JSON's are such."""
    return json.dumps(text, ensure_ascii=False)

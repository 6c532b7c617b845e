"""Latents for a base that knows nothing of palettes: `custom_generate/generate.py` of a palette-only checkpoint.

    base = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-1.7B-Base")
    base.generate(**prompt, custom_generate="my-org/qwen3-palette", trust_remote_code=True, domain="math")

transformers copies this one file and runs it; the rest of the palette's code is loaded from the same repository, at
the same revision. The base keeps its class and its weights. Its input embedding gets the palette's hooks, which leave
ordinary ids alone.
"""

import inspect
import json
import sys
import threading
from pathlib import Path
from typing import Any

from transformers import GenerationMixin
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import cached_file

# Where a base keeps its palette model between calls, beside what it was made from.
_KEPT = "_palette_of_custom_generate"
_BUILDING = threading.Lock()
# What `generate` may be given to find the repository, as `transformers.utils.cached_file` takes it.
_LOCATION = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")


def generate(model: Any, **kwargs: Any) -> Any:
    r"""
    `generate` of the palette model that `model` and this repository's palette make together.

    Args:
        model (`PreTrainedModel`): The base.
        **kwargs: As `PaletteForCausalLM.generate` takes them: `latent`, `domain`, `num_prefix_tokens`, `latent_tile`,
            `latent_seed`, and all that the base's own `generate` takes. `revision`, `token` and `cache_dir` say which
            version of the repository to take, and how to reach it.

    Returns:
        What `PaletteForCausalLM.generate` returns. A cache among it has the prefix in it: go on from it through
        `custom_generate` alone.

    Raises:
        ValueError: as `PaletteForCausalLM.from_base` and its `generate` do; and if the base serves another palette
            already.
    """
    location = {name: kwargs.pop(name) for name in _LOCATION if name in kwargs}
    repository = sys._getframe(1).f_locals.get("custom_generate")  # transformers does not hand it on
    if not isinstance(repository, str | Path):
        raise RuntimeError(
            "This function is called by `model.generate(custom_generate=REPOSITORY, trust_remote_code=True)`. To use "
            "it otherwise, load the palette model with `AutoModel.from_pretrained(REPOSITORY, "
            "trust_remote_code=True)`."
        )
    # transformers hands on every parameter that was left out, as None; in a setting, None is a choice
    left_out = {name for name in inspect.signature(GenerationMixin.generate).parameters if kwargs.get(name) is None}
    given = {name: value for name, value in kwargs.items() if name not in left_out}
    return _palette_model(model, str(repository), location).generate(**given)


def _palette_model(base: Any, repository: str, location: dict[str, Any]) -> Any:
    """The palette model around `base`: made in the first call, kept for the next."""
    # the files of one commit lie in one folder
    config_file = cached_file(repository, "config.json", **location)
    palette_file = cached_file(repository, "palette.safetensors", **location)
    folder = Path(palette_file).parent.resolve()
    if Path(config_file).parent.resolve() != folder:
        raise RuntimeError(f"The files of {repository!r} come from two commits. Pin one with `revision=`.")
    version = (str(folder), *(Path(file).stat().st_mtime_ns for file in (config_file, palette_file)))
    with _BUILDING:
        if getattr(base, _KEPT, None) is None:
            wrapper_name = json.loads(Path(config_file).read_text(encoding="utf-8"))["auto_map"]["AutoModel"]
            wrapper: Any = get_class_from_dynamic_module(wrapper_name, repository, **location)
            setattr(base, _KEPT, (version, wrapper.from_base(base, palette=str(folder))))
    kept, model = getattr(base, _KEPT)
    if kept != version:
        way = f"this base serves the one in {kept[0]}" if kept[0] != version[0] else "it was written anew since"
        raise ValueError(
            f"`custom_generate`={repository!r} names the palette in {folder}, but {way}, and latent ids can only mean "
            "one thing on one model. Load the base again for another palette."
        )
    model._latent_embedding.install(base.get_input_embeddings())  # it may have been replaced
    # what may have been changed on the base since
    model.generation_config = base.generation_config
    model._modules.update(base._modules)
    model.training = base.training
    return model

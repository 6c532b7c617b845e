"""Palette arguments in transformers' image-text-to-text pipeline.

    pipeline("image-text-to-text", model="my-org/qwen2.5-vl-palette", trust_remote_code=True)(messages, domain="math")

The text pipeline hands what it does not know to `generate`; this one hands it to the processor, which drops it.
"""

import functools
from typing import Any

from .generation_palette import PALETTE_ARGUMENTS

_INSTALLED = "_takes_palette_arguments"


def let_pipelines_take_palette_arguments() -> None:
    """
    Let a pipeline on a palette model hand palette arguments to `generate`; on any other model it does what it did.

    The method is wrapped on transformers' own class because `pipeline(...)` picks that class before the model, and so
    the code of a palette, is loaded; a class of our own would have to be asked for.
    """
    try:
        from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
    except ImportError:  # transformers' vision requirements are not installed: there is no such pipeline then
        return
    plain = ImageTextToTextPipeline._sanitize_parameters
    if hasattr(plain, _INSTALLED):
        return

    @functools.wraps(plain)
    def _sanitize_parameters(self: Any, *args: Any, **kwargs: Any) -> Any:
        # known by its interface: the model's class may have come with another checkpoint's code
        if not hasattr(self.model, "insert_latent_ids"):
            return plain(self, *args, **kwargs)
        given = {name: kwargs.pop(name) for name in PALETTE_ARGUMENTS if name in kwargs}
        if given:
            others = dict(kwargs.get("generate_kwargs") or {})
            twice = sorted(given.keys() & others.keys())
            if twice:
                raise ValueError(
                    f"`{twice[0]}` is given twice, in `generate_kwargs` and as an argument of the pipeline. Drop one."
                )
            kwargs["generate_kwargs"] = {**others, **given}
        preprocessing, forward, postprocessing = plain(self, *args, **kwargs)
        # Of a call, `generate_kwargs` takes the place of the whole of what the pipeline was made with.
        made_with = getattr(self, "_forward_params", {}).get("generate_kwargs") or {}
        if "generate_kwargs" in forward:
            kept = {name: made_with[name] for name in PALETTE_ARGUMENTS if name in made_with}
            forward["generate_kwargs"] = {**kept, **forward["generate_kwargs"]}
        return preprocessing, forward, postprocessing

    setattr(_sanitize_parameters, _INSTALLED, True)
    ImageTextToTextPipeline._sanitize_parameters = _sanitize_parameters

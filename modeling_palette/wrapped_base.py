"""A base model as a palette model: the class that is built for it, and the modules that both share."""

import copy
import functools
import importlib
import inspect
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

from .configuration_palette import PaletteConfig
from .palette_vae import PaletteVAE


def palette_class(base_class: Any, wrapper: Any) -> Any:
    """The subclass of a base's class that carries a palette, e.g. `PaletteQwen3ForCausalLM`."""
    for known in wrapper.__subclasses__():
        if known.base_class is base_class:
            return known

    positions = {name: at for at, name in enumerate(list(inspect.signature(base_class.forward).parameters)[1:])}

    @functools.wraps(base_class.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A latent id is no token that could be predicted; as a label it would index beyond the logits.
        for name in ("labels", "shift_labels"):
            at = positions.get(name, len(args))
            if at < len(args) and args[at] is not None:
                args = (*args[:at], _without_latent_ids(args[at], self.config.latent_id_base), *args[at + 1 :])
            if kwargs.get(name) is not None:
                kwargs[name] = _without_latent_ids(kwargs[name], self.config.latent_id_base)
        return base_class.forward(self, *args, **kwargs)

    def is_custom_code(cls: Any) -> bool:
        # transformers leaves modules of custom code alone that own no tensor. Falcon-H1's backbone is one, and fills
        # buffers of its layers that no checkpoint holds: they would stay as the memory was.
        return base_class.is_custom_code()

    namespace = {
        "__module__": wrapper.__module__,
        "__doc__": f"`{base_class.__name__}` with a palette; see [`{wrapper.__name__}`].",
        "config_class": PaletteConfig,
        "base_class": base_class,
        "forward": forward,
        "is_custom_code": classmethod(is_custom_code),
    }
    # GenerationMixin is named for `can_generate`, which looks for it among the direct bases.
    return type(f"Palette{base_class.__name__}", (wrapper, base_class, GenerationMixin), namespace)


def share_modules(
    base: PreTrainedModel, concrete: Any, config: PaletteConfig, palette: PaletteVAE | None, tokenizer: Any
) -> Any:
    """A palette model around the modules of `base`, which stays a plain model."""
    model = concrete.__new__(concrete)
    model.__dict__.update(
        {name: copy.copy(value) if isinstance(value, dict | set) else value for name, value in vars(base).items()}
    )
    hook = model.__dict__.pop("_hf_hook", None)
    if hook is not None:  # accelerate bound its forward to the base; bind it to this model
        # Not a plain import: transformers refuses the code of a checkpoint whose imports are not installed.
        hooks: Any = importlib.import_module("accelerate.hooks")
        for name in ("forward", "_old_forward"):
            model.__dict__.pop(name, None)
        hooks.add_hook_to_module(model, hook)
    if palette is not None:
        palette = palette.to(base.get_input_embeddings().weight.device)
    model._adopt(config, palette)
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def _without_latent_ids(labels: torch.Tensor, id_base: int) -> torch.Tensor:
    return labels.masked_fill(labels >= id_base, -100)

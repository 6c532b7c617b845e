"""vLLM's models of palette checkpoints: the base's own class, which passes the palette's tensors by.

`PaletteQwen3ForCausalLM` and its like are made when vLLM looks for them.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from vllm import ModelRegistry
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.transformers.base import Base as TransformersBackend

from ..checkpoint_palette import palette_from_config


def __getattr__(name: str) -> Any:
    base_name = name.removeprefix("Palette")
    if base_name == name or base_name not in ModelRegistry.get_supported_archs():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base_class: Any = ModelRegistry.models[base_name].load_model_cls()  # type: ignore[union-attr]

    class PaletteModel(base_class):
        # vLLM embeds the tokens of mixed prompts without the prefix's positions, but its LoRA layer of the embedding
        # counts all (measured on 0.32: the CPU engine dies). Adapters of the input embedding are refused by vLLM then.
        embedding_modules = {  # noqa: RUF012 (vLLM reads it off the class)
            name: kind
            for name, kind in getattr(base_class, "embedding_modules", {}).items()
            if kind != "input_embeddings"
        }

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            config = vllm_config.model_config.hf_config
            if issubclass(base_class, TransformersBackend):  # builds a model of transformers from the config
                vllm_config = copy.copy(vllm_config)
                vllm_config.model_config = copy.copy(vllm_config.model_config)
                vllm_config.model_config.hf_config = config.base_config
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self._of_palette: set[str] = set()
            if config.palette_only:
                with torch.device("meta"):
                    self._of_palette = set(palette_from_config(config, config.hidden_size).state_dict())
                # vLLM's way to read weights from a second repo: the base's, at its own revision.
                self.secondary_weights = [
                    DefaultModelLoader.Source(
                        config.base_model_name_or_path, revision=config.base_model_revision, prefix=""
                    )
                ]

        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
            return super().load_weights(
                (name, tensor)
                for name, tensor in weights
                if not name.startswith("palette.") and name not in self._of_palette
            )

    PaletteModel.__name__ = PaletteModel.__qualname__ = name
    globals()[name] = PaletteModel  # one class per name, also for unpickling
    return PaletteModel

"""vLLM reads palette checkpoints: what the entry point `vllm.general_plugins` registers in each of its processes.

With this package installed beside vLLM, `vllm serve CHECKPOINT` and `LLM(CHECKPOINT)` take latent ids in their prompts
as transformers does. Everything goes through vLLM's registries, under names of its own; other models are left alone:

- architectures `Palette*`: vLLM's own model of the base, which leaves the palette's tensors aside (`vllm_model`);
- for these alone, a tokenizer and renderer mode `palette`, which turns the latent ids of a prompt into vLLM's own
  prompt embeddings (`vllm_renderer`): what vLLM knows of prefix caching, penalties, compilation and parallelism holds.
"""

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .checkpoint_palette import latent_fingerprint, read_palette
from .configuration_palette import PaletteConfig
from .supported_bases import UNSUPPORTED_MODEL_TYPES

RENDERER_MODE = "palette"
_PACKAGE = __name__.rpartition(".")[0]


def register() -> None:
    """Registers palette models with vLLM. May be called any number of times."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

    if RENDERER_MODE in RENDERER_REGISTRY.renderers:
        return
    for base in base_architectures(ModelRegistry.get_supported_archs()):
        ModelRegistry.register_model(f"Palette{base}", f"{_PACKAGE}.vllm_model:Palette{base}")
        MODELS_CONFIG_MAP[f"Palette{base}"] = _config_hooks(MODELS_CONFIG_MAP.get(base))
    MODEL_ARCH_CONFIG_CONVERTORS[PaletteConfig.model_type] = _arch_config_convertor
    TokenizerRegistry.register(RENDERER_MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
    RENDERER_REGISTRY.register(RENDERER_MODE, f"{_PACKAGE}.vllm_renderer", "PaletteRenderer")


def base_architectures(supported: Any) -> list[str]:
    """The causal language models among vLLM's architectures that can carry a palette."""
    names: set[str] = set()
    for model_type, classes in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if model_type not in UNSUPPORTED_MODEL_TYPES:
            names |= {classes} if isinstance(classes, str) else set(classes)
    return sorted(names & set(supported))


def _arch_config_convertor(hf_config: Any, hf_text_config: Any, revision: str | None = None) -> Any:
    """vLLM's convertor of the base's model type, which it looks up by the type of the outer config."""
    from vllm.transformers_utils.model_arch_config_convertor import (
        MODEL_ARCH_CONFIG_CONVERTORS,
        ModelArchConfigConvertorBase,
    )

    convertor = MODEL_ARCH_CONFIG_CONVERTORS.get(hf_config.base_config.model_type, ModelArchConfigConvertorBase)
    return convertor(hf_config, hf_text_config, revision=revision)


def _config_hooks(base_hooks: Any) -> Any:
    """What vLLM calls once it has read a palette model's config; the base's own hooks are called too."""
    from vllm.model_executor.models.config import VerifyAndUpdateConfig

    base_hooks = base_hooks or VerifyAndUpdateConfig

    class PaletteConfigHooks(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            base_hooks.verify_and_update_model_config(model_config)
            if model_config.hf_config.latent_dim is None:
                return  # a checkpoint without a palette
            if model_config.tokenizer_mode not in ("auto", "hf", RENDERER_MODE):
                raise ValueError(
                    f"`tokenizer_mode` is {model_config.tokenizer_mode!r}, but a palette's prompts need its own, "
                    f"{RENDERER_MODE!r}. Leave `--tokenizer-mode` unset."
                )
            if model_config.skip_tokenizer_init:
                raise ValueError(
                    "`skip_tokenizer_init` is True, but latent ids are read where prompts are rendered. Leave "
                    "`--skip-tokenizer-init` unset."
                )
            model_config.tokenizer_mode = RENDERER_MODE
            model_config.enable_prompt_embeds = True
            # What a client compares with the palette that it draws from, in `/server_info`.
            palette = read_palette(model_config.model, model_config.hf_config, revision=model_config.revision)
            model_config.hf_config.latent_fingerprint = latent_fingerprint(palette, model_config.hf_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            base_hooks.verify_and_update_config(vllm_config)

    return PaletteConfigHooks

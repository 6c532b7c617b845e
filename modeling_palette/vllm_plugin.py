"""vLLM reads palette checkpoints: what the entry point `vllm.general_plugins` registers in each of its processes.

With this package installed beside vLLM, `vllm serve CHECKPOINT` and `LLM(CHECKPOINT)` take latent ids in their prompts
as transformers does. Everything goes through vLLM's registries, under names of its own; other models are left alone:

- architectures `Palette*`: vLLM's own model of the base, which leaves the palette's tensors aside (`vllm_model`);
- for these alone, a tokenizer and renderer mode `palette`, which turns the latent ids of a prompt into vLLM's own
  prompt embeddings (`vllm_renderer`): what vLLM knows of prefix caching, penalties, compilation and parallelism holds.
"""

from typing import Any

from .checkpoint_palette import latent_fingerprint, read_palette
from .configuration_palette import PaletteConfig

# Checked against transformers on vLLM 0.32 (greedy tokens and log-probabilities of tiny models). Others are left out:
# where vLLM and transformers scale embeddings in different places, a prefix would be silently wrong.
VERIFIED_ARCHITECTURES = {
    "Cohere2ForCausalLM",
    "Ernie4_5ForCausalLM",
    "Exaone4ForCausalLM",
    "FalconH1ForCausalLM",
    "GPT2LMHeadModel",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "OPTForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "StableLmForCausalLM",
}
RENDERER_MODE = "palette"
FINGERPRINT = "latent_fingerprint"
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
    for base in sorted(VERIFIED_ARCHITECTURES & set(ModelRegistry.get_supported_archs())):
        ModelRegistry.register_model(f"Palette{base}", f"{_PACKAGE}.vllm_model:Palette{base}")
        MODELS_CONFIG_MAP[f"Palette{base}"] = _config_hooks(MODELS_CONFIG_MAP.get(base))
    MODEL_ARCH_CONFIG_CONVERTORS[PaletteConfig.model_type] = _arch_config_convertor
    TokenizerRegistry.register(RENDERER_MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
    RENDERER_REGISTRY.register(RENDERER_MODE, f"{_PACKAGE}.vllm_renderer", "PaletteRenderer")


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
            palette = read_palette(model_config.model, model_config.hf_config, revision=model_config.revision)
            if palette.hidden_size != model_config.get_hidden_size():
                raise ValueError(
                    f"The palette decodes to {palette.hidden_size} dimensions, but this model computes in "
                    f"{model_config.get_hidden_size()}: its embeddings are projected before the first layer, where "
                    "vLLM puts prompt embeddings in. Use transformers for this base."
                )
            model_config.tokenizer_mode = RENDERER_MODE
            model_config.enable_prompt_embeds = True
            if callable(model_config.hf_overrides):
                raise ValueError(
                    "`hf_overrides` is a function, but the fingerprint of a palette is published among the overrides. "
                    "Give them as a dictionary."
                )
            # What a client compares with its own: overrides are a part of the config that `/server_info` shows.
            fingerprint = latent_fingerprint(palette, model_config.hf_config)
            model_config.hf_overrides = {**model_config.hf_overrides, FINGERPRINT: fingerprint}

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            base_hooks.verify_and_update_config(vllm_config)

    return PaletteConfigHooks

"""vLLM reads palette checkpoints: what the entry point `vllm.general_plugins` registers in each of its processes.

With this package installed beside vLLM, `vllm serve CHECKPOINT` and `LLM(CHECKPOINT)` take latent ids in their prompts
as transformers does. Everything goes through vLLM's registries, under names of its own; other models are left alone:

- architectures `Palette*`: vLLM's own model of the base, which leaves the palette's tensors aside (`model`);
- for these alone, a tokenizer and renderer mode `palette`, which turns the latent ids of a prompt into vLLM's own
  prompt embeddings (`renderer`): what vLLM knows of prefix caching, penalties, compilation and parallelism holds.
"""

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..checkpoint_palette import latent_fingerprint, read_palette
from ..configuration_palette import PaletteConfig
from ..palette_vae import PaletteVAE

# Checked against transformers on vLLM 0.32 (greedy tokens and log-probabilities of tiny models). Others are left out:
# where vLLM and transformers scale embeddings in different places, a prefix would be silently wrong.
VERIFIED_ARCHITECTURES = {
    "ArceeForCausalLM",
    "Cohere2ForCausalLM",
    "CwmForCausalLM",
    "Ernie4_5ForCausalLM",
    "Exaone4ForCausalLM",
    "FalconForCausalLM",
    "FalconH1ForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeForCausalLM",
    "GlmForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "Jais2ForCausalLM",
    "LlamaForCausalLM",
    "Ministral3ForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "OPTForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "OlmoForCausalLM",
    "OlmoeForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
}
RENDERER_MODE = "palette"
FINGERPRINT = "latent_fingerprint"
_PACKAGE = __name__.rpartition(".")[0]


def register() -> None:
    """
    The entry point. vLLM does not guard the call: a version whose registries have moved must go on to serve other
    models as if this package were not there.
    """
    try:
        register_palettes()
    except Exception as error:
        versions = ", ".join(f"{name} {_version_of(name)}" for name in ("reasoning-palette", "vllm"))
        logging.getLogger(__name__).warning("vLLM will not read palette checkpoints (%s): %r", versions, error)


def register_palettes() -> None:
    """
    Registers palette models with vLLM. May be called any number of times.

    Raises:
        ImportError, AttributeError: If this version of vLLM lacks one of the registries; nothing is registered then.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.plugins import load_endpoint_plugins  # noqa: F401 (what `server` needs is there)
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

    if RENDERER_MODE in RENDERER_REGISTRY.renderers:
        return
    bases = sorted(VERIFIED_ARCHITECTURES & set(ModelRegistry.get_supported_archs()))
    hooks = {base: _config_hooks(MODELS_CONFIG_MAP.get(base)) for base in bases}
    for base in bases:
        ModelRegistry.register_model(f"Palette{base}", f"{_PACKAGE}.model:Palette{base}")
        MODELS_CONFIG_MAP[f"Palette{base}"] = hooks[base]
    MODEL_ARCH_CONFIG_CONVERTORS[PaletteConfig.model_type] = _arch_config_convertor
    TokenizerRegistry.register(RENDERER_MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
    RENDERER_REGISTRY.register(RENDERER_MODE, f"{_PACKAGE}.renderer", "PaletteRenderer")


def read_served_palette(model_config: Any, cache_dir: str | None = None) -> PaletteVAE:
    """The palette of the checkpoint that a vLLM `ModelConfig` names, fetched as vLLM fetches it."""
    location = {"revision": model_config.revision, "token": model_config.hf_token, "cache_dir": cache_dir}
    given = {name: value for name, value in location.items() if value is not None}
    return read_palette(model_config.model, model_config.hf_config, **given)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(unknown version)"


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
    from vllm.config.model import _check_valid_dtype
    from vllm.model_executor.models.config import VerifyAndUpdateConfig

    base_hooks = base_hooks or VerifyAndUpdateConfig

    class PaletteConfigHooks(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            from .server import install

            base_hooks.verify_and_update_model_config(model_config)
            install()
            if model_config.hf_config.latent_dim is None:
                return  # a checkpoint without a palette, which refuses prefixes
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
            if callable(model_config.hf_overrides):
                raise ValueError(
                    "`hf_overrides` is a function (vLLM's own, for a speculative draft), but a palette publishes its "
                    "fingerprint among the overrides. Give them as a dictionary; a palette cannot be a draft."
                )
            # vLLM goes by the outer config's model type, and would let float16 pass for bases that overflow in it.
            _check_valid_dtype(model_config.hf_config.base_config.model_type, model_config.dtype)
            palette = read_served_palette(model_config)
            if palette.hidden_size != model_config.get_hidden_size():
                raise ValueError(
                    f"The palette decodes to {palette.hidden_size} dimensions, but this model computes in "
                    f"{model_config.get_hidden_size()}: its embeddings are projected before the first layer, where "
                    "vLLM puts prompt embeddings in. Use transformers for this base."
                )
            model_config.tokenizer_mode = RENDERER_MODE
            model_config.enable_prompt_embeds = True
            # What a client compares with its own: overrides are a part of the config that `/server_info` shows.
            fingerprint = latent_fingerprint(palette, model_config.hf_config)
            model_config.hf_overrides = {**model_config.hf_overrides, FINGERPRINT: fingerprint}

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            base_hooks.verify_and_update_config(vllm_config)

    return PaletteConfigHooks

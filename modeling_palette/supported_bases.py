"""Which base models can carry a palette, and which class a saved one is."""

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedModel

from .base_kinds import check_kind, reads_images
from .configuration_palette import PaletteConfig

_LOST_HEAD = "in its checkpoints, transformers finds the head by a model type that a palette does not have"
# Families whose layers read token ids beside the input embedding (read in transformers 5.24), where a latent id would
# mean something else, or nothing, to them; that count tokens in inputs of their own; and families whose palettes could
# not be saved.
UNSUPPORTED_MODEL_TYPES = {
    "blt": "it hashes groups of token ids",
    "deepseek_v4": "it chooses experts by token id",
    "diffusion_gemma": "its per-layer embeddings are indexed by token id",
    "diffusion_gemma_text": "its per-layer embeddings are indexed by token id",
    "gemma3n": "every id beyond its audio offset is audio to it",
    "hy_v4": "in its checkpoints, one rule renames weights at the root and in layers, which a palette's cannot follow",
    "idefics": "its additional vocabulary splits the ids",
    **dict.fromkeys(("kosmos-2", "kosmos-2.5"), "a mask beside the ids says where its images stand"),
    "mllama": "its mask of images has a row for every token",
    **dict.fromkeys(("inkling2", "inkling2_loop", "inkling2_loop_text", "inkling2_text"), _LOST_HEAD),
    "qwen4_exp": "it hashes n-grams of token ids",
    "qwen4_exp_text": "it hashes n-grams of token ids",
}

# Families that the conformance suite passes (docs/families.md). Others are checked when a palette is put on them.
_VERIFIED = """
    afmoe apertus apertus1p5_text arcee aria_text axk1 axk2 bailing_hybrid bamba bart beam bert bert-generation
    big_bird bigbird_pegasus biogpt bitnet blenderbot blenderbot-small bloom camembert codegen cohere cohere2
    cohere2_moe cohere_compass_text ctrl cwm data2vec-text deepseek_v2 deepseek_v3 deepseek_v32 diffllama doge dory
    dots1 dots3_note_text electra ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba
    flex_olmo flint gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm glm4 glm4_moe
    glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa
    granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe
    hy_v3 hyperclovax inkling_text jais2 jamba jetmoe kimi_linear kolibri1 laguna lara_mini lfm2 lfm2_moe
    lfm3 llama llama4_text longcat_flash mamba mamba2 marian mbart megatron-bert mellum mimo_v2_flash minicpm3
    minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder moshi mpt mvp
    nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt pegasus persimmon phi phi3
    phimoe plbart prophetnet qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next
    recurrent_gemma rembert roberta roberta-prelayernorm roc_bert roformer rwkv seed_oss smollm3 solar_open
    stablelm starcoder2 trocr vaultgemma whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xmod youtu zamba zamba2
    zaya
"""
VERIFIED_MODEL_TYPES = frozenset(_VERIFIED.split())
# The same for images beside text (docs/vision_families.md).
_VERIFIED_VISION = """
    gemma3 gemma4 idefics3 internvl llava qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_vl qwen3_vl_moe smolvlm
"""
VERIFIED_VISION_TYPES = frozenset(_VERIFIED_VISION.split())


def class_of_base(config: PaletteConfig) -> type[PreTrainedModel]:
    """
    The class of a config's base model.

    Raises:
        ValueError: if transformers has neither a causal language model nor a vision-language model for it.
    """
    config_class = type(config.base_config)
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if reads_images(config_class) else MODEL_FOR_CAUSAL_LM_MAPPING
    base_class = mapping.get(config_class, None)
    if base_class is None:
        raise ValueError(
            f"`base_config` is a {config_class.__name__}, for which transformers has no causal language model. "
            "PaletteForCausalLM needs one."
        )
    if isinstance(base_class, tuple):
        names = [name.removeprefix("Palette") for name in config.architectures or ()]
        base_class = next((known for known in base_class if known.__name__ in names), base_class[0])
    return base_class


def is_verified(base_class: type[PreTrainedModel], model_type: str) -> bool:
    """Whether the conformance suite covers a base. A class with code of its own may call itself any model type."""
    known = VERIFIED_MODEL_TYPES | VERIFIED_VISION_TYPES
    return base_class.__module__.startswith("transformers.") and model_type in known


def check_base(base: PreTrainedModel, wrapper: str) -> None:
    """
    Raises:
        ValueError: for a base that has a palette already, whose family reads token ids beside its input embedding,
            that is an encoder-decoder, or that palettes of the class `wrapper` are not put on.
    """
    if base.config.model_type == PaletteConfig.model_type:
        raise ValueError(
            f"`base` is a {type(base).__name__}, which has a palette already. Load its base, or use it as it is."
        )
    model_type = base.config.model_type
    if model_type in UNSUPPORTED_MODEL_TYPES:
        raise ValueError(
            f"A palette cannot be put on {model_type!r} models: {UNSUPPORTED_MODEL_TYPES[model_type]}, so results "
            "would be wrong. Use another base."
        )
    if base.config.is_encoder_decoder:
        raise ValueError(f"A palette needs a decoder-only base; {type(base).__name__} is an encoder-decoder.")
    check_kind(type(base.config), wrapper, f"`base` is a {type(base).__name__}, which")

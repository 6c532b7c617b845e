"""Which base models can carry a palette, and which class a saved one is."""

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from .configuration_palette import PaletteConfig

# Families whose layers read token ids beside the input embedding (read in transformers 5.23), where a latent id would
# mean something else, or nothing, to them.
UNSUPPORTED_MODEL_TYPES = {
    "blt": "it hashes groups of token ids",
    "deepseek_v4": "it chooses experts by token id",
    "diffusion_gemma": "its per-layer embeddings are indexed by token id",
    "diffusion_gemma_text": "its per-layer embeddings are indexed by token id",
    "gemma3n": "every id beyond its audio offset is audio to it",
    "gemma3n_text": "its per-layer embeddings are indexed by token id",
    "gemma4": "its per-layer embeddings are indexed by token id",
    "gemma4_text": "its per-layer embeddings are indexed by token id",
    "idefics": "its additional vocabulary splits the ids",
    "qwen4_exp": "it hashes n-grams of token ids",
    "qwen4_exp_text": "it hashes n-grams of token ids",
}


def class_of_base(config: PaletteConfig) -> type[PreTrainedModel]:
    """
    The class of a config's base model.

    Raises:
        ValueError: if transformers has no causal language model for it.
    """
    base_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config.base_config), None)
    if base_class is None:
        raise ValueError(
            f"`base_config` is a {type(config.base_config).__name__}, for which transformers has no causal language "
            "model. PaletteForCausalLM needs one."
        )
    if isinstance(base_class, tuple):
        names = [name.removeprefix("Palette") for name in config.architectures or ()]
        base_class = next((known for known in base_class if known.__name__ in names), base_class[0])
    return base_class


def check_base(base: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: for a base that has a palette already, whose family reads token ids beside its input embedding, or
            that is an encoder-decoder.
    """
    if base.config.model_type == PaletteConfig.model_type:
        raise ValueError(
            f"`base` is a {type(base).__name__}, which has a palette already. Load its base, or use it as it is."
        )
    model_type = base.config.model_type
    if model_type in UNSUPPORTED_MODEL_TYPES:
        raise ValueError(
            f"A palette cannot be put on {model_type!r} models: {UNSUPPORTED_MODEL_TYPES[model_type]}, so latent ids "
            "would give wrong results. Use another base."
        )
    if base.config.is_encoder_decoder:
        raise ValueError(f"A palette needs a decoder-only base; {type(base).__name__} is an encoder-decoder.")

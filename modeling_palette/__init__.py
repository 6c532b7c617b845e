"""The palette on a model: configuration, latents, generation and checkpoints.

Read in the order of the data: `trace_pooling` with `trace_images` (traces -> embeddings), `palette_vae` with
`buffer_layers` and `slot_decoder` (embeddings <-> latents), `latent_codes` (codes and ids), `latent_embedding` (ids ->
vectors), `latent_naming` (codes by name), `latent_prefix`, `held_prefix` and `generation_palette` (`generate`),
`checkpoint_palette`, `shipped_code` and
`saved_palette` (files), `pushed_palette` and `checkpoint_commit` (the Hub) with `palette_card`, `card_usage` and
`kept_card` (model cards), `base_kinds`, `supported_bases`, `unverified_bases` and `per_layer_embeddings` (which
bases), `wrapped_base`, `palette_model` and `modeling_palette` (the model), `image_pipeline`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from .checkpoint_palette import load_palette
from .configuration_palette import PaletteConfig
from .modeling_palette import PaletteForCausalLM, PaletteForVision2Seq, PaletteModel
from .palette_vae import PaletteVAE
from .trace_pooling import pool_traces

AutoConfig.register("palette", PaletteConfig, exist_ok=True)
AutoModel.register(PaletteConfig, PaletteModel, exist_ok=True)
AutoModelForCausalLM.register(PaletteConfig, PaletteForCausalLM, exist_ok=True)
AutoModelForImageTextToText.register(PaletteConfig, PaletteForVision2Seq, exist_ok=True)

__all__ = ["PaletteConfig", "PaletteForCausalLM", "PaletteForVision2Seq", "PaletteVAE", "load_palette", "pool_traces"]

"""The model that the speed benchmarks run on: random weights, for speed does not depend on them."""

import copy
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE


def make_base(
    hidden_size: int, num_layers: int, vocab_size: int, seed: int, max_positions: int = 1024
) -> Qwen3ForCausalLM:
    """A Qwen3 with heads of 64 and tied embeddings, in evaluation mode."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 128,
        head_dim=64,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval()


def with_palette(base: Any, **settings: Any) -> Any:
    """`base` with a palette of the default size and two domains. The cost is that of a trained one."""
    torch.manual_seed(1)
    palette = PaletteVAE(base.config.hidden_size)
    palette.trained.fill_(True)
    for shift, name in enumerate(("math", "code")):
        palette.fit_domain(name, torch.randn(200, palette.latent_dim) + shift)
    return PaletteForCausalLM.from_base(base, palette, **settings)


def twin(model: Any) -> Any:
    """A copy of a model that shares its weights: both sides of a comparison read the same memory."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})

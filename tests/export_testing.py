"""Tiny bases of several families, palettes on them, and what they must decode: prefixes spliced in by hand."""

import torch
import transformers
from trainer_testing import tiny_tokenizer
from transformers import AutoModelForCausalLM

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

HEAD = 32  # vLLM's CPU build has kernels for heads of 32 and 64
NEW_TOKENS = 8
SIZES = {
    "vocab_size": 96,  # the tokenizer has 43 tokens: rows to spare, as Qwen3 has
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
}
WINDOWS = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "qwen3-tied": lambda: transformers.Qwen3Config(head_dim=HEAD, **SIZES, tie_word_embeddings=True),
    "qwen3-full": lambda: transformers.Qwen3Config(head_dim=HEAD, **{**SIZES, "vocab_size": 43}),
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "gemma3": lambda: transformers.Gemma3TextConfig(query_pre_attn_scalar=HEAD, head_dim=HEAD, **WINDOWS, **SIZES),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=2, n_positions=256),
    "granite": lambda: transformers.GraniteConfig(
        embedding_multiplier=12.0, logits_scaling=8.0, attention_multiplier=0.1, residual_multiplier=0.22, **SIZES
    ),
    "falcon_h1": lambda: transformers.FalconH1Config(
        mamba_d_ssm=64, mamba_n_heads=2, mamba_d_head=32, mamba_d_state=16, embedding_multiplier=3.0, **SIZES
    ),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "mixtral": lambda: transformers.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **SIZES),
}
GUARDS = {"gpt2": "layer_norm", "phi": "bias"}


def export_base(family):
    """A base whose norms and biases are not those of an untrained one, which would hide a mistake in them."""
    config = FAMILIES[family]()
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, None, 1
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).eval()
    zero_centred = "gemma" in family  # their norms multiply by 1 + weight
    for name, parameter in base.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif name.endswith("bias") or ("norm" in name and zero_centred):
            torch.nn.init.normal_(parameter, std=0.1)
        elif "norm" in name or ".ln_" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    base.generation_config.eos_token_id = None  # every row runs to its full length
    return base


def export_model(base, **fields):
    torch.manual_seed(1)
    palette = PaletteVAE(base.get_input_embeddings().weight.shape[1], latent_dim=8, hidden_sizes=(16,))
    palette.trained.fill_(True)
    palette.embedding_std.fill_(0.5)
    palette.fit_domain("math", torch.randn(30, 8) + 1)
    return PaletteForCausalLM.from_base(base, palette, tokenizer=tiny_tokenizer(), **fields)


def chosen_strategies():
    """One of each kind: a code, a domain's draw, one latent tiled, and a latent for each position."""
    generator = torch.Generator().manual_seed(2)
    return {
        "code": 1234,
        "math-1": {"domain": "math", "latent_seed": 3, "num_prefix_tokens": 6},
        "tiled": {"latent": 77, "latent_tile": True},
        "vector": torch.randn(8, generator=generator),
        "matrix": {"latent": torch.randn(3, 8, generator=generator), "num_prefix_tokens": 3},
    }


def strategy_latents(model, length):
    """The latents `(L, Z)` of `chosen_strategies`, from the palette's own naming."""
    chosen = chosen_strategies()
    math = model.draw_codes(1, "math", torch.Generator().manual_seed(3))
    return {
        "code": model.latents_from_codes(torch.tensor([1234]), length)[0],
        "math-1": model.latents_from_codes(math, 6)[0],
        "tiled": model.latents_from_codes(torch.tensor([77]), 1)[0].expand(length, -1),
        "vector": chosen["vector"].expand(length, -1),
        "matrix": chosen["matrix"]["latent"],
    }


def word_prompts(count=100):
    """Rows of words: ten lengths, `count / 10` prompts of each."""
    return [[3 + (row * 7 + column * 5 + row * column) % 40 for column in range(1 + row % 10)] for row in range(count)]


@torch.no_grad()
def spliced_greedy(base, rows, prompts, barred=(), new_tokens=NEW_TOKENS):
    """
    Greedy tokens of a stock base behind embedding rows spliced in front by hand, without a cache.

    Args:
        base: The stock base.
        rows (`list[torch.Tensor or None]`): For each prompt, `(L, H)` in the space of the embedding's output.
        prompts (`list[list[int]]`): Prompts.
        barred (`list[int]`): Tokens that are not chosen: those whose rows an export takes.
    """
    # these bases multiply the embedding's output where they are given ids, but not where they are given embeddings
    multiplier = base.config.embedding_multiplier if base.config.model_type == "falcon_h1" else 1.0
    barred = [token for token in barred if token < base.config.vocab_size]
    found = [list(prompt) for prompt in prompts]
    prefix_lengths = [0 if prefix is None else len(prefix) for prefix in rows]
    shapes = list(zip(map(len, prompts), prefix_lengths, strict=True))
    for shape in sorted(set(shapes)):
        members = [i for i, one in enumerate(shapes) if one == shape]
        for _ in range(new_tokens):
            embeds = base.get_input_embeddings()(torch.tensor([found[i] for i in members]))
            if shape[1]:
                embeds = torch.cat([torch.stack([rows[i] for i in members]).to(embeds), embeds], 1)
            logits = base(inputs_embeds=embeds * multiplier, use_cache=False).logits[:, -1]
            logits[:, barred] = -torch.inf
            for i, token in zip(members, logits.argmax(-1).tolist(), strict=True):
                found[i].append(token)
    return [tokens[len(prompt) :] for tokens, prompt in zip(found, prompts, strict=True)]

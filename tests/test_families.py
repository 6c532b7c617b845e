"""Every family's forward and generate against prefixes spliced into `inputs_embeds` by hand."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES = {
    "qwen3": lambda: Qwen3Config(head_dim=8, **SIZES),
    "llama": lambda: LlamaConfig(**SIZES),
    "gemma3": lambda: Gemma3TextConfig(head_dim=8, **WINDOWS, **SIZES),  # scales its embeddings
    "mistral": lambda: MistralConfig(sliding_window=8, **SIZES),
    "gpt2": lambda: GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "qwen3_moe": lambda: Qwen3MoeConfig(head_dim=8, **EXPERTS, **SIZES),
    "mixtral": lambda: MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **SIZES),
    "opt": lambda: OPTConfig(  # learned positions, embeddings narrower than the model
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        word_embed_proj_dim=16,
        max_position_embeddings=128,
    ),
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [3, 4, 5, 6, 7, 20, 21, 22, 23, 24, 25]]
LENGTH = 4


def base_of(family):
    config = FAMILIES[family]()
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    for parameter in base.parameters():
        if parameter.dim() > 1:  # the stock scale makes every logit alike, and greedy decoding a tie
            torch.nn.init.normal_(parameter, std=0.2)
    base.generation_config.eos_token_id = None  # every row runs to its full length
    return base.eval()


def wrapped(base):
    torch.manual_seed(1)
    palette = PaletteVAE(base.get_input_embeddings().weight.shape[1], latent_dim=8, hidden_sizes=(16,))
    palette.trained.fill_(True)
    palette.fit_domain("math", torch.randn(30, 8) + 1)
    return PaletteForCausalLM.from_base(base, palette)


def left_padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, (torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])).long()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_family(family, tmp_path):
    base = base_of(family)
    ids, mask = left_padded(PROMPTS)
    plain = base.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    model = wrapped(base)
    assert torch.equal(plain, model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False))

    codes = torch.tensor([77, (1 << 20) + 5])  # the prior's and a domain's
    latent_ids = model.latent_ids(codes, LENGTH)
    prefixes = model.palette.decode(model.latents_from_codes(codes, LENGTH))
    embed = base.get_input_embeddings()

    def by_hand(row, tokens):
        return base(
            inputs_embeds=torch.cat([prefixes[row], embed(torch.tensor(tokens))])[None], use_cache=False
        ).logits

    # forward on a left-padded batch: the ids stand behind the pads
    full, full_mask = left_padded([latent_ids[row].tolist() + tokens for row, tokens in enumerate(PROMPTS)])
    positions = {} if family == "opt" else {"position_ids": (full_mask.cumsum(1) - 1).clamp(min=0)}
    logits = model(input_ids=full, attention_mask=full_mask, **positions).logits
    for row, tokens in enumerate(PROMPTS):
        torch.testing.assert_close(logits[row, full_mask[row].bool()], by_hand(row, tokens)[0], atol=1e-5, rtol=0)

    # cached greedy generation against a loop without a cache
    found = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        latent=codes,
        num_prefix_tokens=LENGTH,
    )
    for row, tokens in enumerate(PROMPTS):
        expected = list(tokens)
        for _ in range(8):
            expected.append(int(by_hand(row, expected)[0, -1].argmax()))
        assert found[row, mask[row].argmax() :].tolist() == expected
    assert not torch.equal(found, plain)

    model.save_pretrained(tmp_path)
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(reloaded(input_ids=full, attention_mask=full_mask, **positions).logits, logits)


def test_families_that_read_ids_elsewhere_are_refused():
    config = Gemma3nTextConfig(
        **{**SIZES, "vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
        **WINDOWS,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0, 0.0],
    )
    with pytest.raises(ValueError, match="cannot be put on 'gemma3n_text' models: its per-layer embeddings"):
        PaletteForCausalLM.from_base(AutoModelForCausalLM.from_config(config))


def test_encoder_decoders_are_refused():
    base = T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=20, decoder_start_token_id=0)
    )
    with pytest.raises(
        ValueError, match="needs a decoder-only base; T5ForConditionalGeneration is an encoder-decoder"
    ):
        PaletteForCausalLM.from_base(base)

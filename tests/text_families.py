"""Tiny random models of transformers' text families, one row a family: what its config needs beyond common sizes."""

import inspect
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

# Each family takes the sizes that its config declares.
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "lru_width", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_inner"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 128),
    # windows shorter than the sequences, so that they bite
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size"), 8),
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_expert_group", "first_k_dense_replace"), 1),
    # latent attention
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim"), 8),
    # recurrence
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
    "mamba_d_ssm": 64,
    # What scales vectors is 1 by default, and would hide on which side of the input embedding it stands.
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
    **dict.fromkeys(("router_jitter_noise", "input_jitter_noise"), 0.0),
    "lm_head_multiplier": 0.5,
    # differences are not to come from dropout
    **dict.fromkeys(("dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "layerdrop"), 0.0),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_probs_dropout"), 0.0),
    **dict.fromkeys(
        ("resid_pdrop", "embd_pdrop", "attn_pdrop", "emb_pdrop", "embed_dropout", "decoder_layerdrop"), 0.0
    ),
    **dict.fromkeys(("residual_dropout", "classifier_dropout", "summary_last_dropout", "embedding_dropout"), 0.0),
}
# Families whose `inputs_embeds` are no reference, and why.
THROUGH_HOOK = {
    "falcon_h1": "it multiplies what the input embedding gives for ids, but not `inputs_embeds`",
    "gemma3n_text": "without ids it leaves out the rows of its per-layer embeddings",
    "gemma4_text": "without ids it finds its per-layer inputs by the rows that equal the embeddings",
    "inkling_text": "in transformers 5.16 it norms what the input embedding gives for ids, but not `inputs_embeds`",
}
DECODER = {"is_decoder": True}
WINDOWS = ["sliding_attention", "full_attention"]
SLIDING_THEN_FULL = {"layer_types": WINDOWS}
LINEAR_THEN_FULL = {"layer_types": ["linear_attention", "full_attention"]}
LATENT_ATTENTION = {"head_dim": ..., "num_key_value_heads": 4}  # `...`: the config's own default

FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": SLIDING_THEN_FULL,
    "apertus": {},
    "apertus1p5_text": {},
    "arcee": {},
    "aria_text": {},
    "axk1": LATENT_ATTENTION,
    "axk2": LATENT_ATTENTION,
    "bailing_hybrid": {**LINEAR_THEN_FULL, "num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1]},
    "bart": DECODER,
    "beam": {},
    "bert": DECODER,
    "bert-generation": DECODER,
    "big_bird": {**DECODER, "attention_type": "original_full"},
    "bigbird_pegasus": {**DECODER, "attention_type": "original_full"},
    "biogpt": {},
    "bitnet": {},
    "blenderbot": DECODER,
    "blenderbot-small": DECODER,
    "bloom": {},
    "camembert": DECODER,
    "codegen": {"rotary_dim": 4, "n_head": 4},
    "cohere": {},
    "cohere2": SLIDING_THEN_FULL,
    "cohere2_moe": SLIDING_THEN_FULL,
    "cohere_compass_text": {
        **SLIDING_THEN_FULL,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in WINDOWS},
    },
    "ctrl": {"dff": 64},
    "cwm": {},
    "data2vec-text": DECODER,
    "deepseek_v2": LATENT_ATTENTION,
    "deepseek_v3": LATENT_ATTENTION,
    "deepseek_v32": LATENT_ATTENTION,
    "diffllama": {},
    "doge": {},
    "dory": {"sliding_window": 64},  # shorter ones fail in transformers 5.24 itself
    "dots1": {},
    "dots3_note_text": {"num_key_value_heads": 4},
    "electra": DECODER,
    "ernie": DECODER,
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": SLIDING_THEN_FULL,
    "exaone_moe": SLIDING_THEN_FULL,
    "falcon": {},
    "falcon_h1": {},
    "falcon_mamba": {},
    "flex_olmo": {},
    "flint": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": SLIDING_THEN_FULL,
    "gemma3n_text": {
        **SLIDING_THEN_FULL,
        "vocab_size_per_layer_input": 100,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {**SLIDING_THEN_FULL, "vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8},
    "gemma4_unified_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": LATENT_ATTENTION,
    "glm_moe_dsa": LATENT_ATTENTION,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "granite_swa": {},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "granitemoeshared": {},
    "helium": {},
    "hrm_text": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hyperclovax": {},
    "inkling_text": {},
    "jais2": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "jetmoe": {},
    "kimi_linear": {**LINEAR_THEN_FULL, "num_key_value_heads": 4},
    "kolibri1": SLIDING_THEN_FULL,
    "laguna": {},
    "lara_mini": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {},
    "longcat_flash": {
        "num_key_value_heads": 4,
        "ffn_hidden_size": 64,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "mamba": {},
    "mamba2": {"num_heads": 8},
    "marian": DECODER,
    "mbart": DECODER,
    "megatron-bert": DECODER,
    "mellum": {},
    "mimo_v2_flash": {},
    "minicpm3": {**LATENT_ATTENTION, "scale_emb": 3},
    "minimax": {},
    "minimax_m2": {},
    "minimax_m3_vl_text": {},
    "ministral": SLIDING_THEN_FULL,
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {},
    "moshi": {},
    "mpt": {},
    "mvp": DECODER,
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": SLIDING_THEN_FULL,
    "olmo_hybrid": {},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {"word_embed_proj_dim": 16},  # embeddings narrower than the model
    "pegasus": DECODER,
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "plbart": DECODER,
    "prophetnet": DECODER,
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_5_moe_text": LINEAR_THEN_FULL,
    "qwen3_5_text": LINEAR_THEN_FULL,
    "qwen3_moe": {},
    "qwen3_next": LINEAR_THEN_FULL,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "rembert": {**DECODER, "input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": DECODER,
    "roberta-prelayernorm": DECODER,
    "roc_bert": {**DECODER, "shape_vocab_size": 100, "shape_embed_dim": 16, "pronunciation_embed_dim": 16},
    "roformer": DECODER,
    "rwkv": {},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "trocr": {},
    "vaultgemma": {},
    "whisper": DECODER,
    "xglm": {},
    "xlm": {"n_layers": 2},
    "xlm-roberta": DECODER,
    "xlm-roberta-xl": DECODER,
    "xlnet": {},
    "xmod": {**DECODER, "languages": ["en_XX"], "default_language": "en_XX"},
    "youtu": LATENT_ATTENTION,
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def is_known(family: str) -> bool:
    """Whether the installed transformers has this family."""
    return family in CONFIG_MAPPING


def tiny_config(family: str) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[family]
    declared = {*getattr(config_class, "__dataclass_fields__", ()), *inspect.signature(config_class).parameters}
    values = {**{name: size for name, size in SIZES.items() if name in declared}, **FAMILIES[family]}
    config = config_class(**{name: value for name, value in values.items() if value is not ...})
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    return config


def tiny_base(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_config(family))
    for parameter in base.parameters():
        if parameter.dim() > 1:  # the stock scale makes every logit alike, and greedy decoding a tie
            torch.nn.init.normal_(parameter, std=0.2)
    base.generation_config.eos_token_id = None  # every row runs to its full length
    base.generation_config.forced_eos_token_id = None  # Bart's kin end so, whatever the logits say
    return base.eval()

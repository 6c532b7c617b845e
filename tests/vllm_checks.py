"""What test_vllm.py runs on the real vLLM engine, one check per process: `python vllm_checks.py CHECK ARGUMENTS`.

Each check prints one line of JSON. vLLM's CPU build needs heads of 32 and, for weight updates, one shim: it repacks
linear weights and drops the originals, so that TRL's first weight sync fails (`keep_linear_weights`).
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from trainer_testing import (
    common_arguments,
    guided_counts,
    rl_dataset,
    tiny_base,
    tiny_palette_model,
    tiny_tokenizer,
    word_reward,
)
from transformers import AutoModelForCausalLM

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

HEAD = 32
LENGTH = 5
SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}w1 {{ message['content'] }} {% endfor %}{% if add_generation_prompt %}w2{% endif %}"
)
WINDOWS = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Beside Qwen3, which the other checks run on: these scale embeddings or logits, have learned positions, or are run by
# vLLM's transformers backend. Others are run by hand: `python vllm_checks.py families FOLDER '["cohere2", ...]'`, 15
# seconds each.
SHORT_LIST = ["llama", "gemma3", "granite", "gpt2", "smollm3"]
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "gemma3": lambda: transformers.Gemma3TextConfig(query_pre_attn_scalar=HEAD, head_dim=HEAD, **WINDOWS, **SIZES),
    "granite": lambda: transformers.GraniteConfig(
        embedding_multiplier=12.0, logits_scaling=8.0, attention_multiplier=0.1, **SIZES
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=2, n_positions=256),
    "cohere2": lambda: transformers.Cohere2Config(logit_scale=0.25, **WINDOWS, **SIZES),
    "ernie4_5": lambda: transformers.Ernie4_5Config(head_dim=HEAD, **SIZES),
    "exaone4": lambda: transformers.Exaone4Config(sliding_window=None, layer_types=["full_attention"] * 2, **SIZES),
    "falcon_h1": lambda: transformers.FalconH1Config(
        mamba_d_ssm=64, mamba_n_heads=2, mamba_d_head=32, mamba_d_state=16, embedding_multiplier=3.0, **SIZES
    ),
    "gemma": lambda: transformers.GemmaConfig(head_dim=HEAD, **SIZES),
    "glm4": lambda: transformers.Glm4Config(pad_token_id=0, head_dim=HEAD, **SIZES),
    "mistral": lambda: transformers.MistralConfig(sliding_window=None, head_dim=HEAD, **SIZES),
    "mixtral": lambda: transformers.MixtralConfig(
        num_local_experts=4, num_experts_per_tok=2, sliding_window=None, **SIZES
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=96,
        word_embed_proj_dim=64,
        max_position_embeddings=256,
    ),
    "phi3": lambda: transformers.Phi3Config(
        pad_token_id=0, bos_token_id=1, eos_token_id=2, sliding_window=None, **SIZES
    ),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(shared_expert_intermediate_size=32, **EXPERTS, **SIZES),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(head_dim=HEAD, **EXPERTS, **SIZES),
    "stablelm": lambda: transformers.StableLmConfig(**SIZES),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, alibi=False, multi_query=True
    ),
    "granitemoe": lambda: transformers.GraniteMoeConfig(
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        attention_multiplier=0.1,
        num_local_experts=4,
        num_experts_per_tok=2,
        **SIZES,
    ),
    "olmoe": lambda: transformers.OlmoeConfig(num_experts=4, num_experts_per_tok=2, **SIZES),
    "glm4_moe": lambda: transformers.Glm4MoeConfig(
        head_dim=HEAD,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        n_shared_experts=1,
        **SIZES,
    ),
    "ministral3": lambda: transformers.Ministral3Config(head_dim=HEAD, sliding_window=None, **SIZES),
    # vLLM's transformers backend
    "arcee": lambda: transformers.ArceeConfig(**SIZES),
    "cwm": lambda: transformers.CwmConfig(head_dim=HEAD, **WINDOWS, **SIZES),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(
        vocab_size=100, n_embd=64, n_layer=2, n_head=2, n_positions=256
    ),
    "glm": lambda: transformers.GlmConfig(pad_token_id=0, head_dim=HEAD, **SIZES),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=256,
    ),
    "hunyuan": lambda: transformers.HunYuanDenseV1Config(head_dim=HEAD, **SIZES),
    "jais2": lambda: transformers.Jais2Config(**SIZES),
    "olmo": lambda: transformers.OlmoConfig(**SIZES),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES),
    "olmo3": lambda: transformers.Olmo3Config(**WINDOWS, **SIZES),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "seed_oss": lambda: transformers.SeedOssConfig(head_dim=HEAD, **SIZES),
    "smollm3": lambda: transformers.SmolLM3Config(**SIZES),
    "starcoder2": lambda: transformers.Starcoder2Config(sliding_window=None, **SIZES),
}


def make_checkpoint(folder, palette_only=False):
    """A tiny palette checkpoint that vLLM's CPU build can run."""
    if not palette_only:
        model = tiny_palette_model(head_dim=HEAD)
        model.tokenizer.chat_template = CHAT_TEMPLATE
        model.save_pretrained(folder)
        return
    tiny_base(head_dim=HEAD).save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    palette = tiny_palette_model().palette
    PaletteForCausalLM.from_base(base, palette, tokenizer=tiny_tokenizer()).save_pretrained(folder, palette_only=True)


def make_prompts(count, longest=60):
    """Prompts of 1 to `longest` tokens; the longer ones fill several blocks of vLLM's prefix cache."""
    return [[3 + (row * 7 + column * 5) % 40 for column in range(1 + (row * 11) % longest)] for row in range(count)]


def engine(folder, **settings):
    from vllm import LLM

    # blocks of 32 tokens, so that the longer prompts fill one and the prefix cache has something to hold
    defaults = {"dtype": "float32", "enforce_eager": True, "max_model_len": 120, "block_size": 32}
    defaults |= {"logprobs_mode": "processed_logprobs", "enable_prefix_caching": True}
    return LLM(str(folder), **{**defaults, **settings})


def greedy(llm, prompts, palette=None, **settings):
    """Greedy outputs; `palette` holds the palette's arguments of each prompt."""
    from vllm import SamplingParams

    params = SamplingParams(**{"temperature": 0, "max_tokens": 12, "logprobs": 0, "ignore_eos": True, **settings})
    palette = palette or [{}] * len(prompts)
    given = [{"prompt_token_ids": ids, **arguments} for ids, arguments in zip(prompts, palette, strict=True)]
    outputs = llm.generate(given, params, use_tqdm=False)
    for output in outputs:
        output.outputs[0].num_cached_tokens = output.num_cached_tokens
    return [output.outputs[0] for output in outputs]


def reference(model, prompts, codes, **settings):
    """What transformers generates: tokens and scores of each row."""
    model.generation_config.eos_token_id = None
    rows = []
    for prompt, code in zip(prompts, codes.tolist(), strict=True):
        palette = {"latent": code, "num_prefix_tokens": LENGTH} if code >= 0 else {}
        expected = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=12,
            output_scores=True,
            return_dict_in_generate=True,
            **palette,
            **settings,
        )
        rows.append((expected.sequences[0, len(prompt) :].tolist(), expected.scores))
    return rows


def difference(rows, outputs):
    """Rows whose tokens differ from transformers', and the largest difference of log-probabilities before that."""
    differing, worst = 0, 0.0
    for (tokens, scores), output in zip(rows, outputs, strict=True):
        found = list(output.token_ids)
        differing += tokens != found
        for step, (step_scores, logprobs) in enumerate(zip(scores, output.logprobs, strict=True)):
            if tokens[: step + 1] != found[: step + 1]:
                break
            expected = float(step_scores[0].float().log_softmax(-1)[found[step]])
            worst = max(worst, abs(logprobs[found[step]].logprob - expected))
    cached = sum(output.num_cached_tokens for output in outputs)
    return {"rows": len(rows), "differing": differing, "logprob_difference": worst, "cached_tokens": cached}


def compare(model, prompts, codes, outputs, **settings):
    return difference(reference(model, prompts, codes, **settings), outputs)


def with_prefixes(model, prompts, codes):
    prefixes = model.latent_ids(codes.clamp(min=0), LENGTH).tolist()
    return [
        model.insert_latent_ids(prompt, prefix) if code >= 0 else prompt
        for prompt, prefix, code in zip(prompts, prefixes, codes.tolist(), strict=True)
    ]


def check_engine(folder):
    """100 prompts, guided and not, plain, with a penalty, from the prefix cache, and what is refused."""
    llm, model = engine(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = make_prompts(100)
    codes = torch.cat([model.draw_codes(40), model.draw_codes(40, "math"), torch.full((20,), -1)])
    guided = with_prefixes(model, prompts, codes)
    found = {"plain": compare(model, prompts, codes, greedy(llm, guided))}
    found["cached"] = compare(model, prompts, codes, greedy(llm, guided))
    # the same prompt under other latents, in a cache that holds it under the first ones
    others = torch.cat([model.draw_codes(20), model.draw_codes(20, "code")])
    found["other_latents"] = compare(
        model, prompts[:40], others, greedy(llm, with_prefixes(model, prompts[:40], others))
    )
    found["penalised"] = compare(
        model, prompts[:40], codes[:40], greedy(llm, guided[:40], repetition_penalty=1.3), repetition_penalty=1.3
    )
    found.update(offline_arguments(llm, model, prompts, codes))
    unknown = model.latent_ids(torch.tensor([20 << 20]), 2)[0].tolist()
    found["refused"] = []
    for prompt in (guided[0][:LENGTH], [*unknown, 5], [99, *guided[1]], [2**31 + 5, *guided[1]]):
        try:
            greedy(llm, [prompt])
        except ValueError as error:
            found["refused"].append(str(error))
    return found


def offline_arguments(llm, model, prompts, codes):
    """The arguments of `generate` in prompts and chats, and where vLLM would drop them."""
    from vllm import SamplingParams
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.renderers.online_renderer import OnlineRenderer

    asked = [{"latent": code, "num_prefix_tokens": LENGTH} for code in codes[:40].tolist()]
    found = {"by_arguments": compare(model, prompts[:40], codes[:40], greedy(llm, prompts[:40], asked))}
    # a draw that its seed repeats, known by what it makes of the prompt
    draw = {"domain": "math", "num_prefix_tokens": LENGTH, "latent_seed": 4}
    prompt = torch.tensor([prompts[5]])
    settings = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True, "eos_token_id": None}
    expected = model.generate(prompt, **draw, **settings)
    (drawn,) = greedy(llm, [prompts[5]], [draw])
    found["codes_of_generate"] = expected.sequences[0, prompt.shape[1] :].tolist()
    found["seeded_codes"] = list(drawn.token_ids)

    chats = [[{"role": "user", "content": "w3 w4"}], [{"role": "user", "content": "w9"}]]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    found["chat_differing"] = 0
    # one seed for all conversations is one draw for each of them
    for palette in ({"latent": 8, "num_prefix_tokens": 3}, draw):
        answers = llm.chat(chats, params, chat_template_kwargs=palette, use_tqdm=False)
        for chat, output in zip(chats, answers, strict=True):
            ids = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
            ids = ids["input_ids"]
            expected = model.generate(ids, **palette, **settings).sequences[0, ids.shape[1] :]
            found["chat_differing"] += expected.tolist() != list(output.outputs[0].token_ids)
    try:
        greedy(llm, [[*model.latent_ids(codes[:1], 2)[0].tolist(), 5]], [{"latent": 5}])
    except ValueError as error:
        found["two_prefixes"] = str(error)

    # what batch files and servers of one's own go through, without the middleware
    online = OnlineRenderer(
        llm.model_config, llm.renderer, request_logger=None, chat_template=None, chat_template_content_format="auto"
    )
    plain = {"prompt": "w1 w2 w3", "latent_tile": False, "domain": None}
    (rendered,) = asyncio.run(online.render_completion(CompletionRequest(**plain)))
    found["plain_past_the_server"] = len(rendered["prompt_token_ids"])
    try:
        asyncio.run(online.render_completion(CompletionRequest(prompt="w1", domain="math")))
    except ValueError as error:
        found["past_the_server"] = str(error)
    return found


def check_palette_only(folder):
    llm, model = engine(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts, codes = make_prompts(10), model.draw_codes(10, "code")
    return compare(model, prompts, codes, greedy(llm, with_prefixes(model, prompts, codes)))


def check_compiled(folder):
    """The graph that vLLM compiles when it is not told to be eager."""
    llm, model = engine(folder, enforce_eager=False), AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts, codes = make_prompts(10), model.draw_codes(10)
    return compare(model, prompts, codes, greedy(llm, with_prefixes(model, prompts, codes)))


def check_families(folder, names):
    """One family after the other, in one process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    found = {}
    for name in names:
        config = FAMILIES[name]()
        config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config).eval()
        for parameter in base.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        palette = PaletteVAE(base.get_input_embeddings().weight.shape[1], latent_dim=8, hidden_sizes=(16,))
        palette.trained.fill_(True)
        model = PaletteForCausalLM.from_base(base, palette, tokenizer=tiny_tokenizer())
        model.save_pretrained(folder / name)
        prompts, codes = make_prompts(8), torch.cat([model.draw_codes(6), torch.full((2,), -1)])
        expected = reference(
            model, prompts, codes
        )  # before vLLM decorates the classes that it takes from transformers
        llm = engine(folder / name)
        found[name] = difference(expected, greedy(llm, with_prefixes(model, prompts, codes)))
        del llm
        cleanup_dist_env_and_memory()
    return found


def keep_linear_weights():
    """Lets vLLM's CPU build take new weights: plain linear layers in place of repacked ones."""
    from vllm.model_executor.layers import linear, utils, vocab_parallel_embedding

    def plain(layer, *args, **kwargs):
        layer.cpu_linear = torch.nn.functional.linear

    for module in (utils, linear, vocab_parallel_embedding):
        if hasattr(module, "dispatch_cpu_unquantized_gemm"):
            module.dispatch_cpu_unquantized_gemm = plain


def record_differences(trainer):
    """Largest difference between the engine's log-probabilities and the trainer's, and guided rollouts per group."""
    records, original = [], trainer._generate_and_score_completions

    def recording(inputs):
        output = original(inputs)
        prompt, completion = output["prompt_ids"], output["completion_ids"]
        ids = torch.cat([prompt, completion], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        with torch.no_grad():
            scored = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, completion.shape[1])[0]
        records.append({"guided": guided_counts(trainer, prompt.tolist(), 4)})
        if "sampling_per_token_logps" in output:  # RLOO does not keep the engine's
            difference = (scored - output["sampling_per_token_logps"]) * output["completion_mask"]
            records[-1]["logprob_difference"] = difference.abs().max().item()
        return output

    trainer._generate_and_score_completions = recording
    return records


def rollout_trainer(algorithm, folder, model, **arguments):
    from reasoning_palette import trainers

    config, trainer_class = {
        "grpo": (trainers.PaletteGRPOConfig, trainers.PaletteGRPOTrainer),
        "rloo": (trainers.PaletteRLOOConfig, trainers.PaletteRLOOTrainer),
    }[algorithm]
    keywords = {"peft_config": arguments.pop("peft_config")} if "peft_config" in arguments else {}
    defaults = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 3,
        "num_prefix_tokens": 3,
        "use_vllm": True,
        "latent_schedule": "linear-decay",
        "latent_domain": "math",
        "beta": 0.0,
    }
    return trainer_class(
        model=model,
        reward_funcs=word_reward,
        args=config(**common_arguments(folder, **{**defaults, **arguments})),
        train_dataset=rl_dataset(),
        processing_class=tiny_tokenizer(),
        **keywords,
    )


def check_colocate(folder, algorithm, adapter):
    """TRL's own loop with the engine in its process, from a model made in memory; weights move and are synced."""
    import vllm
    from peft import LoraConfig

    keep_linear_weights()
    make_engine = vllm.LLM.__init__

    def make_small_engine(self, *args, **kwargs):  # TRL has no argument for these
        make_engine(self, *args, **{"dtype": "float32", "enforce_eager": True, **kwargs})

    vllm.LLM.__init__ = make_small_engine
    extra = {"peft_config": LoraConfig(r=2, target_modules="all-linear")} if adapter else {"beta": 0.01}
    model = tiny_palette_model(head_dim=HEAD)
    trainer = rollout_trainer(algorithm, folder, model, vllm_mode="colocate", **extra)
    records, before = record_differences(trainer), {n: p.clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    moved = any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
    found = {"steps": records, "moved": moved, "names": [trainer.palette_model.config.name_or_path]}
    if adapter:
        found["names"].append(trainer.model.peft_config["default"].base_model_name_or_path)
    return found


def check_server(folder, url):
    """TRL's client against a server, without the transfer of weights (NCCL): they stay as they are."""
    from trl.generation.vllm_client import VLLMClient

    VLLMClient.init_communicator = lambda self, device=0: None
    VLLMClient.update_named_params = lambda self, metadata, parameters: [None for _ in parameters]
    settings = {"vllm_mode": "server", "vllm_server_base_url": url, "learning_rate": 0.0}
    trainer = rollout_trainer("grpo", folder / "out", str(folder), **settings)
    records = record_differences(trainer)
    trainer.train()
    changed = AutoModelForCausalLM.from_pretrained(folder)
    changed.add_domain("new", ["w1 w2", "w3 w4 w5", "w6"])
    try:
        rollout_trainer("grpo", folder / "out", changed, **settings)
        refused = None
    except ValueError as error:
        refused = str(error)
    return {"steps": records, "refused": refused}


if __name__ == "__main__":
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")
    check, folder, *rest = sys.argv[1:]
    print("\n" + json.dumps(globals()[f"check_{check}"](Path(folder), *(json.loads(value) for value in rest))))

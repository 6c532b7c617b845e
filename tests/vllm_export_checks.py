"""What test_vllm_exports.py runs on the stock vLLM engine: `python vllm_export_checks.py CHECK ARGUMENTS`, JSON out.

`VLLM_PLUGINS=""` keeps this package's plugin off: the engine sees a stock checkpoint and nothing else.
"""

import json
import os
import sys

SETTINGS = {"VLLM_PLUGINS": "", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def engine(folder):
    from vllm import LLM

    return LLM(folder, dtype="float32", enforce_eager=True, max_model_len=200, block_size=32, max_logprobs=5)


def check_greedy(jobs):
    """Greedy tokens by text for each `[folder, texts, number of tokens]`, one engine after the other; no eos."""
    from vllm import SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    found = []
    for folder, texts, new_tokens in jobs:
        llm = engine(folder)
        params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        outputs = llm.generate(texts, params, use_tqdm=False)
        found.append([list(output.outputs[0].token_ids) for output in outputs])
        del llm
        cleanup_dist_env_and_memory()
    return {"tokens": found, "package": "reasoning_palette" in sys.modules}


def check_sampling(folder, texts, tokens, new_tokens):
    """Samples at temperature 2, and how probable the most probable of the strategies' tokens ever was."""
    from vllm import SamplingParams

    llm = engine(folder)
    params = SamplingParams(temperature=2.0, max_tokens=new_tokens, ignore_eos=True, seed=0)
    outputs = llm.generate(texts, params, use_tqdm=False)
    sampled = [token for output in outputs for token in output.outputs[0].token_ids]
    # what the strategies' tokens are given as a continuation: their log-probabilities in the prompt
    prompts = [{"prompt_token_ids": [5, token, 6]} for token in tokens]
    scored = llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    logprobs = [output.prompt_logprobs[1][token].logprob for output, token in zip(scored, tokens, strict=True)]
    return {
        "count": len(sampled),
        "distinct": len(set(sampled)),
        "strategies": len(set(sampled) & set(tokens)),
        "largest_logprob": max(logprobs),
    }


if __name__ == "__main__":
    os.environ.update(SETTINGS, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    check, *arguments = sys.argv[1:]
    print("\n" + json.dumps(globals()[f"check_{check}"](*map(json.loads, arguments))))

"""What latent prefixes cost on vLLM: generated tokens per second with and without them, in turns, on the real engine.

Two engines, each in a process of its own, take batches in turns, in an order that rotates: vLLM's stock model of the
base on plain prompts; the palette checkpoint on plain prompts; and the palette checkpoint on prompts with L = 8 latent
ids, a new code for every prompt and turn. Completions have a fixed length. The figures are medians over turns of
the throughput of one against another, with the lower bound of the one-sided 95% bootstrap interval. In an environment
with vLLM (`make test-vllm` builds one for CPUs), about 10 minutes on two cores:

    python examples/benchmarks/vllm_rollouts.py --output examples/benchmarks/vllm_rollouts.json

It leaves out weight updates between batches, several processes and accelerators, whose figures will be others.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed_models import make_base, with_palette

from reasoning_palette.evaluation.countdown_tokenizer import build_tokenizer
from reasoning_palette.evaluation.paired_ratios import paired_ratios
from reasoning_palette.evaluation.result import describe_environment

PREFIX = 8
WARM_UP_TURNS = 1


def make_models(args: argparse.Namespace, folder: Path) -> Any:
    """Writes the base and its palette checkpoint."""
    tokenizer = build_tokenizer()
    base = make_base(args.hidden_size, args.num_layers, len(tokenizer), args.seed)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = with_palette(base, tokenizer=tokenizer)
    model.save_pretrained(folder / "palette")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=64, help="Prompts per turn.")
    parser.add_argument("--prompt_length", type=int, default=128, help="Tokens.")
    parser.add_argument("--completion_length", type=int, default=64, help="Tokens.")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--num_layers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="The result.")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM, SamplingParams

    folder = Path(tempfile.mkdtemp())
    model = make_models(args, folder)
    generator = torch.Generator().manual_seed(args.seed)
    engines = {
        name: LLM(str(folder / name), dtype="float32", enforce_eager=True, max_model_len=512)
        for name in ("base", "palette")
    }
    params = SamplingParams(temperature=1.0, max_tokens=args.completion_length, ignore_eos=True, logprobs=0)
    arms = {"stock": ("base", 0), "plain": ("palette", 0), "prefix_8": ("palette", PREFIX)}
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(WARM_UP_TURNS + args.turns):
        # new prompts in every turn, for none of them to be in a prefix cache
        shape = (args.batch_size, args.prompt_length)
        prompts = torch.randint(3, model.config.vocab_size, shape, generator=generator).tolist()
        names = list(arms)
        for arm in names[turn % 3 :] + names[: turn % 3]:
            engine, length = arms[arm]
            sent = prompts
            if length:
                prefixes = model.latent_ids(model.draw_codes(len(prompts), generator=generator), length).tolist()
                sent = [model.insert_latent_ids(ids, prefix) for ids, prefix in zip(prompts, prefixes, strict=True)]
            elif arm == "plain":  # not those that the other arm of this engine has seen
                sent = [ids[::-1] for ids in prompts]
            start = time.perf_counter()
            outputs = engines[engine].generate([{"prompt_token_ids": ids} for ids in sent], params, use_tqdm=False)
            seconds = time.perf_counter() - start
            rates[arm].append(sum(len(output.outputs[0].token_ids) for output in outputs) / seconds)
    found: dict[str, Any] = {
        "tokens_per_second": {arm: float(np.median(values[WARM_UP_TURNS:])) for arm, values in rates.items()}
    }
    for arm, other in (("plain", "stock"), ("prefix_8", "stock"), ("prefix_8", "plain")):
        figures = paired_ratios(rates[arm][WARM_UP_TURNS:], rates[other][WARM_UP_TURNS:], args.seed)
        found[f"{arm} / {other}"] = figures
        print(f"{arm} / {other}: {figures['median_ratio']:.3f}, lower 95% bound {figures['lower_95']:.3f}")
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    report = {"settings": settings, "results": found, "environment": describe_environment()}
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""One model, many threads: every thread's own latents and domains at once, against one call at a time.

16 threads take 200 calls each. The calls mix codes, explicit latents, domains with a seed, a code per row of a batch,
and no prefix. First every call is made alone; then all threads run, in blocks, in turns with 16 threads on the base,
whose prompts are longer by the prefix. The result: how many texts differ, and the palette's throughput over the
base's, median over blocks with the lower bound of its one-sided 95% bootstrap interval. About 15 minutes on two cores:

    OMP_NUM_THREADS=1 python examples/benchmarks/concurrency.py

It leaves out sampling, whose draws threads share in torch, and accelerators.
"""

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed_models import make_base, twin, with_palette

from reasoning_palette.evaluation.paired_ratios import paired_ratios
from reasoning_palette.evaluation.result import describe_environment

PREFIX = 8


def make_call(index: int, args: argparse.Namespace, latent_dim: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Prompt ids (B, S) and palette arguments of call `index`."""
    generator = torch.Generator().manual_seed(args.seed * 1_000_003 + index)
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"latent": int(torch.randint(1 << 20, (), generator=generator)), "num_prefix_tokens": PREFIX},
        lambda: {"latent": torch.randn(1, PREFIX, latent_dim, generator=generator)},
        lambda: {"domain": ("math", "code")[index % 2], "latent_seed": index, "num_prefix_tokens": PREFIX},
        lambda: {"latent": torch.randint(1 << 20, (2,), generator=generator), "num_prefix_tokens": PREFIX},
        lambda: {},
    ]
    arguments = kinds[index % len(kinds)]()
    rows = len(arguments["latent"]) if isinstance(arguments.get("latent"), torch.Tensor) else 1
    length = args.prompt_length + index % 7
    return torch.randint(3, args.vocab_size, (rows, length), generator=generator), arguments


def run_threads(num_threads: int, calls: list[Any], work: Callable[[Any], Any]) -> tuple[list[Any], float]:
    """`work` on every call, thread t on calls t, t + num_threads, ...; results in the order of the calls; seconds."""
    results: list[Any] = [None] * len(calls)

    def serve(thread: int) -> None:
        for index in range(thread, len(calls), num_threads):
            results[index] = work(calls[index])

    threads = [threading.Thread(target=serve, args=(thread,)) for thread in range(num_threads)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--calls", type=int, default=200, help="Calls of each thread.")
    parser.add_argument("--blocks", type=int, default=20, help="Parts that the calls are split into, timed in turns.")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--vocab_size", type=int, default=8_000)
    parser.add_argument("--prompt_length", type=int, default=16, help="Tokens of the shortest prompt.")
    parser.add_argument("--completion_length", type=int, default=16, help="Tokens.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="The result.")
    args = parser.parse_args()
    base = make_base(args.hidden_size, args.num_layers, args.vocab_size, args.seed)
    model = with_palette(twin(base))
    common = {"min_new_tokens": args.completion_length, "max_new_tokens": args.completion_length, "do_sample": False}

    def on_palette(call: tuple[torch.Tensor, dict[str, Any]]) -> list[list[int]]:
        ids, arguments = call
        return model.generate(ids, attention_mask=torch.ones_like(ids), **arguments, **common).tolist()

    def on_base(call: tuple[torch.Tensor, dict[str, Any]]) -> None:
        ids, arguments = call
        if arguments:
            ids = torch.cat([torch.full((len(ids), PREFIX), 5), ids], dim=1)
        base.generate(ids, attention_mask=torch.ones_like(ids), **common)

    num_calls = args.threads * args.calls
    calls = [make_call(index, args, model.config.latent_dim) for index in range(num_calls)]
    alone = [on_palette(call) for call in calls]
    seconds: dict[str, list[float]] = {"base": [], "palette": []}
    differing = 0
    size = num_calls // args.blocks
    for block in range(args.blocks):
        part = slice(block * size, num_calls if block == args.blocks - 1 else (block + 1) * size)
        for side in ("base", "palette") if block % 2 else ("palette", "base"):
            found, taken = run_threads(args.threads, calls[part], on_palette if side == "palette" else on_base)
            seconds[side].append(taken)
            if side == "palette":
                differing += sum(one != other for one, other in zip(found, alone[part], strict=True))
    # throughput is the inverse of time: the same calls on both sides
    throughput = paired_ratios(seconds["base"], seconds["palette"], args.seed)
    print(f"{num_calls} calls in {args.threads} threads: {differing} differ from one at a time")
    print(
        f"throughput over the base's: median {throughput['median_ratio']:.3f}, lower 95% bound "
        f"{throughput['lower_95']:.3f}"
    )
    report = {
        "settings": {key: value for key, value in vars(args).items() if key != "output"},
        "num_parameters": base.num_parameters(),
        "differing": differing,
        "throughput": throughput,
        "environment": describe_environment(),
    }
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What a palette costs in `generate`: calls of fixed length, in turns in one process, on one set of weights.

- `no_prefix`: the palette model without palette arguments, against its base on the same prompts;
- `prefix_8`: L = 8, a new draw in every call, against the base on prompts that are 8 real tokens longer;
- `prompt_tuning_8`: PEFT's prompt tuning with 8 virtual tokens, against the same;
- `prefix_8 / prompt_tuning_8`: the one against the other.

The order of the sides is drawn anew in every turn. Timed is the CPU time of the process, which other processes
disturb less than they do the clock; with one thread it is what a user waits for. The figure is the median over turns
of the ratio of times, with the bounds of its one-sided 95% bootstrap intervals. About 20 minutes on one core:

    OMP_NUM_THREADS=1 python examples/benchmarks/generate_overhead.py

It leaves out batches, sampling and accelerators. A batch spreads the same fixed cost over more tokens.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from speed_models import make_base, twin, with_palette

from reasoning_palette.evaluation.paired_ratios import paired_ratios
from reasoning_palette.evaluation.result import describe_environment

PREFIX = 8
WARM_UP_TURNS = 1


def make_sides(args: argparse.Namespace) -> dict[str, Callable[[torch.Tensor, torch.Tensor], Any]]:
    """Each side of the comparison, called with a prompt and the same prompt 8 tokens longer."""
    base = make_base(args.hidden_size, args.num_layers, args.vocab_size, args.seed)
    model = with_palette(twin(base))
    tuning = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=PREFIX)
    tuned = get_peft_model(twin(base), tuning).eval()
    common = {"min_new_tokens": args.completion_length, "max_new_tokens": args.completion_length, "do_sample": False}

    def run(side: Any, ids: torch.Tensor, **arguments: Any) -> None:
        output = side.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **common, **arguments)
        assert output.shape[1] in (ids.shape[1] + args.completion_length, args.completion_length)

    return {
        "base": lambda prompt, longer: run(base, prompt),
        "no_prefix": lambda prompt, longer: run(model, prompt),
        "base_longer": lambda prompt, longer: run(base, longer),
        "prefix_8": lambda prompt, longer: run(model, prompt, num_prefix_tokens=PREFIX),
        "prompt_tuning_8": lambda prompt, longer: run(tuned, prompt),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--num_layers", type=int, default=12)
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--prompt_length", type=int, default=32, help="Tokens.")
    parser.add_argument("--completion_length", type=int, default=64, help="Tokens.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="The result.")
    args = parser.parse_args()
    sides = make_sides(args)
    generator = torch.Generator().manual_seed(args.seed)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for _ in range(WARM_UP_TURNS + args.turns):
        longer = torch.randint(3, args.vocab_size, (1, args.prompt_length + PREFIX), generator=generator)
        for index in torch.randperm(len(names), generator=generator).tolist():
            name = names[index]
            start = time.process_time()
            sides[name](longer[:, PREFIX:], longer)
            seconds[name].append(time.process_time() - start)
    timed = {name: values[WARM_UP_TURNS:] for name, values in seconds.items()}
    pairs = {
        "no_prefix": ("no_prefix", "base"),
        "prefix_8": ("prefix_8", "base_longer"),
        "prompt_tuning_8": ("prompt_tuning_8", "base_longer"),
        "prefix_8 / prompt_tuning_8": ("prefix_8", "prompt_tuning_8"),
    }
    results = {name: paired_ratios(timed[ours], timed[theirs], args.seed) for name, (ours, theirs) in pairs.items()}
    for name, figures in results.items():
        print(
            f"{name:27s} median ratio {figures['median_ratio']:.4f}  95% bounds {figures['lower_95']:.4f} to "
            f"{figures['upper_95']:.4f}  ({figures['ours']:.3f} s against {figures['theirs']:.3f} s)"
        )
    report = {
        "settings": {key: value for key, value in vars(args).items() if key != "output"},
        "num_parameters": make_base(args.hidden_size, args.num_layers, args.vocab_size, args.seed).num_parameters(),
        "results": results,
        "environment": describe_environment(),
    }
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

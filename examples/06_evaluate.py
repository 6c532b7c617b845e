"""Sets the palette beside what it has to beat, at one sample budget, on held-out countdown problems.

For every checkpoint folder: greedy decoding without a latent, temperature sampling, a random soft prompt of the same
length (arXiv 2605.11936), draws from the prior, draws of each domain, and draws together with sampling. Prints one
table per folder (pass@1, pass@n, strategies) and writes the figures with seed, versions and hardware as JSON:

    python examples/06_evaluate.py --model demo_output/sft demo_output/grpo

A folder without a palette, such as `examples/countdown_base`, is measured with the methods that need none. It leaves
out confidence intervals beyond the standard error of the mean, and seeds: run it once per `--seed`.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from reasoning_palette.evaluation import Method, countdown_benchmark, evaluate_palette


@dataclass
class EvaluateArguments:
    """What to measure."""

    model: list[str] = field(
        default_factory=lambda: ["demo_output/palette", "demo_output/sft", "demo_output/grpo"],
        metadata={"help": "Checkpoint folders or Hub ids."},
    )
    output_dir: str = field(default="demo_output/evaluation", metadata={"help": "Folder of the JSON results."})
    split: str = field(default="test", metadata={"help": "'test', 'validation' or 'train'."})
    num_problems: int = field(default=100, metadata={"help": "Problems, the first of the split's fixed order."})
    num_samples: int = field(default=8, metadata={"help": "Samples per problem and method."})
    num_prefix_tokens: int = field(default=8, metadata={"help": "Prefix length L of palette and soft prompt."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the sampling methods."})
    seed: int = field(default=0, metadata={"help": "Seed of latents, soft prompts and sampled tokens."})


def methods_for(domains: list[str], has_palette: bool, length: int, temperature: float) -> list[Method]:
    """The rows of the table."""
    methods = [
        Method("greedy, no latent"),
        Method(f"sampling, T = {temperature:g}", temperature=temperature),
        Method("random soft prompt", prefix="random", num_prefix_tokens=length),
    ]
    if has_palette:
        drawn = partial(Method, prefix="palette", num_prefix_tokens=length)
        methods.append(drawn("prior draws"))
        methods += [drawn(f"domain {name}", domain=name) for name in domains]
        methods.append(drawn(f"prior draws, T = {temperature:g}", temperature=temperature))
    return methods


def main(args: EvaluateArguments) -> None:
    benchmark = countdown_benchmark(args.split, args.num_problems)
    for folder in args.model:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        palette = getattr(model, "palette", None)
        domains = list(palette.domains) if palette is not None else []
        methods = methods_for(domains, palette is not None, args.num_prefix_tokens, args.temperature)
        result = evaluate_palette(model, tokenizer, benchmark, methods, args.num_samples, seed=args.seed)
        path = Path(args.output_dir) / f"{Path(folder).name}-seed{args.seed}.json"
        result.save(path)
        print(f"\n{folder}, {benchmark.name}, {args.num_samples} samples, L = {args.num_prefix_tokens} ({path})")
        print(result.to_table(), flush=True)


if __name__ == "__main__":
    main(HfArgumentParser(EvaluateArguments).parse_args_into_dataclasses()[0])

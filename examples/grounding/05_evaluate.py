"""The four rows of the paper's table 2 on held-out scenes, at one sample budget, before and after training.

For every checkpoint folder: greedy decoding, sampling, latents with either; then the latents of each strategy. Prints
accuracy at IoU 0.5 and writes the figures with seed, versions and hardware as JSON:

    python examples/grounding/05_evaluate.py --model demo_output/grounding/palette demo_output/grounding/sft

A folder without a palette is measured with the two methods that need none. Run it once per `--seed`.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

from reasoning_palette.evaluation import Method, evaluate_palette, table_2_methods
from reasoning_palette.evaluation.shapes_benchmark import shapes_benchmark


@dataclass
class EvaluateArguments:
    """What to measure."""

    model: list[str] = field(
        default_factory=lambda: [f"demo_output/grounding/{stage}" for stage in ("palette", "sft", "grpo")],
        metadata={"help": "Checkpoint folders or Hub ids."},
    )
    output_dir: str = field(default="demo_output/grounding/evaluation", metadata={"help": "Folder of the results."})
    split: str = field(default="test", metadata={"help": "'test', 'validation' or 'train'."})
    num_problems: int = field(default=200, metadata={"help": "Scenes, the first of the split's fixed order."})
    num_samples: int = field(default=8, metadata={"help": "Samples per scene and method."})
    num_prefix_tokens: int = field(default=8, metadata={"help": "Prefix length L."})
    temperature: float = field(default=0.7, metadata={"help": "Temperature of the sampling methods."})
    device: str = field(default="cpu", metadata={"help": "Device of the model."})
    seed: int = field(default=0, metadata={"help": "Seed of latents and sampled tokens."})


def main(args: EvaluateArguments) -> None:
    benchmark = shapes_benchmark(args.split, args.num_problems)
    for folder in args.model:
        model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        model.to(args.device)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        palette = getattr(model, "palette", None)
        methods = table_2_methods(args.num_prefix_tokens, args.temperature)
        if palette is None:
            methods = [method for method in methods if method.prefix == "none"]
        else:
            drawn = partial(Method, prefix="palette", num_prefix_tokens=args.num_prefix_tokens)
            methods += [drawn(f"latents of {name}, greedy", domain=name) for name in palette.domains]
        result = evaluate_palette(
            model, processor, benchmark, methods, args.num_samples, max_new_tokens=40, seed=args.seed
        )
        path = Path(args.output_dir) / f"{Path(folder).name}-seed{args.seed}.json"
        result.save(path)
        print(f"\n{folder}, {benchmark.name}, {args.num_samples} samples, L = {args.num_prefix_tokens} ({path})")
        print(result.to_table(), flush=True)


if __name__ == "__main__":
    main(HfArgumentParser(EvaluateArguments).parse_args_into_dataclasses()[0])

"""The four configurations of the paper's table 2 on RefCOCO, RefCOCO+ or RefCOCOg, at one sample budget.

Greedy decoding, sampling, greedy decoding with latents, and both, on the referring expressions of a Hub set or of a
file of the same kind. Prints pass@1 and pass@n of the lenient and of the strict reading of answers, and writes the
figures as JSON and the first answers as boxes on their images:

    python examples/grounding/06_evaluate_refcoco.py --model your-name/qwen2.5-vl-3b-palette \
        --dataset lmms-lab/RefCOCO --split val --num_problems 500 --num_samples 32

The paper follows VLM-R1, which asks for thoughts and an answer in tags; `--protocol native` asks as the model's own
makers do. It leaves out intervals over seeds: run it once per `--seed`. A base without a palette is measured with the
two configurations that need none.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

from reasoning_palette.evaluation import (
    box_format_of,
    draw_results,
    evaluate_palette,
    grounding_benchmark,
    load_grounding,
    table_2_methods,
)
from reasoning_palette.evaluation.grounding import BoxReader


@dataclass
class RefCOCOArguments:
    """What to measure."""

    model: str = field(metadata={"help": "Checkpoint folder or Hub id of a vision-language model."})
    dataset: str = field(default="lmms-lab/RefCOCO", metadata={"help": "Hub id, folder or file of expressions."})
    split: str | None = field(default=None, metadata={"help": "Split of a set, 'val' if not given."})
    image_folder: str | None = field(default=None, metadata={"help": "Where the images are that a file names."})
    output_dir: str = field(default="refcoco", metadata={"help": "Folder of the JSON result and the images."})
    protocol: str = field(default="vlm-r1", metadata={"help": "'vlm-r1' or 'native': the question and its form."})
    num_problems: int | None = field(default=None, metadata={"help": "Problems, drawn at random; all if not given."})
    num_samples: int = field(default=32, metadata={"help": "Samples per problem and method."})
    num_prefix_tokens: int = field(default=8, metadata={"help": "Prefix length L."})
    temperature: float = field(default=0.7, metadata={"help": "Temperature of the sampling methods."})
    domain: str | None = field(default=None, metadata={"help": "Domain of the latents, the prior if not given."})
    max_pixels: int | None = field(default=None, metadata={"help": "Largest size of an image, for Qwen-VL."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer, in tokens."})
    batch_size: int = field(default=32, metadata={"help": "Sequences that are generated together."})
    device_map: str = field(default="auto", metadata={"help": "Where the weights go."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights."})
    num_images: int = field(default=8, metadata={"help": "Problems whose answers are drawn."})
    seed: int = field(default=0, metadata={"help": "Seed of the problems, latents and sampled tokens."})


def main(args: RefCOCOArguments) -> None:
    model = AutoModelForImageTextToText.from_pretrained(
        args.model, trust_remote_code=True, dtype=args.dtype, device_map=args.device_map
    )
    processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
    problems = load_grounding(args.dataset, args.split, args.image_folder, args.num_problems, args.seed)
    box_format = box_format_of(model)
    limits = {} if args.max_pixels is None else {"max_pixels": args.max_pixels}
    benchmark = grounding_benchmark(
        problems,
        box_format,
        processor,
        args.protocol,
        name=f"{args.dataset}-{args.split or 'val'}-{args.protocol}",
        image_limits=limits,
    )
    methods = table_2_methods(args.num_prefix_tokens, args.temperature, args.domain)
    if getattr(model, "palette", None) is None:
        methods = [method for method in methods if method.prefix == "none"]
    result = evaluate_palette(
        model,
        processor,
        benchmark,
        methods,
        args.num_samples,
        args.max_new_tokens,
        args.batch_size,
        args.seed,
        keep_completions=True,
    )
    folder = Path(args.output_dir)
    result.save(folder / f"result-seed{args.seed}.json")
    draw_results(
        problems, result.methods, BoxReader(box_format, processor, limits), folder / "images", args.num_images
    )
    print(result.to_table(), flush=True)


if __name__ == "__main__":
    main(HfArgumentParser(RefCOCOArguments).parse_args_into_dataclasses()[0])

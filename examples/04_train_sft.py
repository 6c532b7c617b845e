"""Teaches the base to follow its latents: supervised fine-tuning with a latent prefix in front of every trace.

Each trace is paired with a draw from its *own* posterior, so that latents come to mean strategies: with the defaults
(L = 8, 100 steps) greedy decoding under a domain's latents follows that domain. About 40 seconds on two cores:

    python examples/04_train_sft.py

The paper's own warm-up pairs traces with prior draws, one prefix token, ten steps. At this learning rate it teaches a
small model to ignore the prefix; watch `latent/sensitivity`:

    python examples/04_train_sft.py --latent_pairing prior --num_prefix_tokens 1 --max_steps 10 --output_dir out

With `--traces` (files of JSON-lines, plain or gzip, Parquet, or Hub ids) it trains on those instead; a palette on a
vision-language base reads their images too (columns `image` or `images`, or named in the messages). With `--task
grounding` they are referring expressions and boxes, answered in the form of the base's family. Every field of
`PaletteSFTConfig` is a flag, or a line of a YAML file (`--config hub_configs/qwen3-1.7b/sft.yaml`). It leaves out what
a real run needs beyond that: several processes, an evaluation split, checkpoints on the way.
"""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import AutoConfig, AutoProcessor
from trl import TrlParser

from reasoning_palette.evaluation import box_format_of, load_grounding
from reasoning_palette.evaluation.countdown import generate_traces
from reasoning_palette.evaluation.grounding_traces import grounding_traces
from reasoning_palette.trainers import PaletteSFTConfig, PaletteSFTTrainer
from reasoning_palette.trainers.message_images import images_to_column
from reasoning_palette.trainers.traces import load_traces

IMAGE_COLUMNS = {"image", "images"}


@dataclass
class SFTArguments:
    """Where model and traces come from."""

    model: str = field(default="demo_output/palette", metadata={"help": "Palette checkpoint (folder or Hub id)."})
    traces: list[str] | None = field(default=None, metadata={"help": "Trace files or Hub ids instead of countdown."})
    traces_per_source: int | None = field(
        default=None, metadata={"help": "How many traces of each of `traces` to use, the first ones. Default: all."}
    )
    num_traces: int = field(default=4000, metadata={"help": "Countdown traces to generate."})
    task: str = field(
        default="text",
        metadata={"help": "What `traces` are: texts, or referring expressions.", "choices": ["text", "grounding"]},
    )
    split: str | None = field(default=None, metadata={"help": "Split of sets for grounding. Default: 'val'."})
    image_folder: str | None = field(default=None, metadata={"help": "Where images are that files only name."})


DEMO_SETTINGS = {
    "output_dir": "demo_output/sft",
    "latent_pairing": "posterior",
    "num_prefix_tokens": 8,
    "max_steps": 100,
    "per_device_train_batch_size": 64,
    "learning_rate": 2e-3,
    "max_length": 256,
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
    # What TRL chooses for large models on accelerators costs more than it saves here.
    "bf16": False,
    "gradient_checkpointing": False,
}


def to_prompt_completion(row: dict[str, Any]) -> dict[str, Any]:
    """A row with `question`, `reasoning` and `answer` as TRL's prompt and completion; the text that the VAE pools.

    With an image they are messages: a chat template puts the image in."""
    if row.get("question") is None:  # of another source, that has prompts and completions
        return {"prompt": row["prompt"], "completion": row["completion"]}
    steps = [row["question"], row.get("reasoning"), row["answer"]]
    prompt, completion = row["question"], "".join(f"\n{step}" for step in steps[1:] if step)
    if not IMAGE_COLUMNS.isdisjoint(row):
        return {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion.lstrip("\n")}],
        }
    return {"prompt": prompt, "completion": completion}


def grounding_set(args: SFTArguments) -> Dataset:
    """Referring expressions with the answers that the base's family would give."""
    box_format = box_format_of(AutoConfig.from_pretrained(args.model))
    processor = AutoProcessor.from_pretrained(args.model)
    problems = [load_grounding(source, args.split, args.image_folder) for source in args.traces or ()]
    return concatenate_datasets(
        [grounding_traces(part[: args.traces_per_source], box_format, processor) for part in problems]
    )


def training_set(args: SFTArguments) -> Dataset:
    """Traces in a format that TRL trains on."""
    if args.task == "grounding":
        if args.traces is None:
            raise ValueError("`traces` is None, and for `task`='grounding' there are none to generate: name some.")
        return grounding_set(args)
    if args.traces is None:
        dataset = Dataset.from_list(generate_traces("train", args.num_traces))
    else:
        parts = [load_traces(source, keep_images=True) for source in args.traces]
        if args.traces_per_source is not None:
            parts = [part.select(range(min(args.traces_per_source, len(part)))) for part in parts]
        dataset = concatenate_datasets(parts)
    if "question" not in dataset.column_names:  # prompt and completion, or messages
        processor = AutoProcessor.from_pretrained(args.model)
        reads_images = getattr(processor, "image_processor", None) is not None
        named = reads_images and IMAGE_COLUMNS.isdisjoint(dataset.column_names)
        return images_to_column(dataset, processor) if named else dataset
    if "messages" in dataset.column_names:
        raise ValueError(
            f"`traces` are {args.traces}, of which some have messages and some question and answer. Train on one kind."
        )
    text_columns = [name for name in dataset.column_names if name not in IMAGE_COLUMNS]
    return dataset.map(to_prompt_completion, remove_columns=text_columns, desc="Formatting traces")


def main(args: SFTArguments, training_args: PaletteSFTConfig) -> None:
    trainer = PaletteSFTTrainer(model=args.model, args=training_args, train_dataset=training_set(args))
    trainer.train()
    trainer.save_model()
    sensitivity = [entry["latent/sensitivity"] for entry in trainer.state.log_history if "latent/sensitivity" in entry]
    if sensitivity:
        print(
            f"\n{training_args.latent_pairing} pairing, L = {training_args.num_prefix_tokens}, "
            f"{trainer.state.global_step} steps: the first answer token moved with the latent by "
            f"{sensitivity[0]:.3f} nats before and {sensitivity[-1]:.3f} after. Saved to {training_args.output_dir}."
        )


if __name__ == "__main__":
    parser = TrlParser((SFTArguments, PaletteSFTConfig))
    parser.set_defaults(**DEMO_SETTINGS)
    main(*parser.parse_args_and_config())

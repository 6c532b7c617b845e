"""Reinforcement learning with latent-guided rollouts: GRPO on countdown, rewarded by a checker.

In each group of 8 rollouts a share rho starts from a drawn latent, and rho decays with training (here linearly). The
checker's verdict, right or wrong, is the reward. A short run of 30 steps, about 40 seconds on two cores:

    python examples/05_train_grpo.py

`latent/guided/reward` and `latent/unguided/reward` tell what the prefix does, `--log_completions` writes a table with
the code of every rollout. Every field of `PaletteGRPOConfig` is a flag (`--latent_schedule two-phase`, `--beta 0.04`),
or a line of a YAML file (`--config hub_configs/qwen3-1.7b/grpo.yaml`). 05_train_rloo.py is the same with RLOO.

With `--traces` (files of JSON-lines, plain or gzip, Parquet, or Hub ids) the prompts are their questions, and a
completion whose last line is the trace's answer is rewarded: a base that never gets there learns nothing; images
beside a question go into its prompt. With `--task grounding` they are referring expressions, asked for in VLM-R1's way
(`--protocol`) and rewarded for the overlap of boxes and for the form of the answer, one point each. It leaves out what
a long run needs: evaluation on the way, checkpoints, several processes.
"""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import AutoConfig, AutoProcessor
from trl import TrlParser

from reasoning_palette.evaluation import box_format_of, box_format_reward, iou_reward, load_grounding
from reasoning_palette.evaluation.countdown import Problem, generate_problems, grade
from reasoning_palette.evaluation.grounding_traces import grounding_traces
from reasoning_palette.trainers import (
    PaletteGRPOConfig,
    PaletteGRPOTrainer,
    PaletteRLOOConfig,
    PaletteRLOOTrainer,
)
from reasoning_palette.trainers.traces import load_traces


@dataclass
class GRPOArguments:
    """Where model and problems come from."""

    model: str = field(default="demo_output/sft", metadata={"help": "Palette checkpoint (folder or Hub id)."})
    traces: list[str] | None = field(default=None, metadata={"help": "Trace files or Hub ids instead of countdown."})
    traces_per_source: int | None = field(
        default=None, metadata={"help": "How many traces of each of `traces` to use, the first ones. Default: all."}
    )
    num_problems: int = field(default=1000, metadata={"help": "Countdown problems to generate."})
    task: str = field(
        default="text",
        metadata={"help": "What `traces` are: texts, or referring expressions.", "choices": ["text", "grounding"]},
    )
    split: str | None = field(default=None, metadata={"help": "Split of sets for grounding. Default: 'val'."})
    image_folder: str | None = field(default=None, metadata={"help": "Where images are that files only name."})
    protocol: str = field(
        default="vlm-r1",
        metadata={"help": "How boxes are asked for: with thoughts, or natively.", "choices": ["vlm-r1", "native"]},
    )


DEMO_SETTINGS = {
    "output_dir": "demo_output/grpo",
    "latent_schedule": "linear-decay",
    "num_prefix_tokens": 8,
    "max_steps": 30,
    "num_generations": 8,
    "per_device_train_batch_size": 128,
    "max_completion_length": 64,
    "learning_rate": 1e-4,
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
    # What TRL chooses for large models on accelerators costs more than it saves here.
    "bf16": False,
    "gradient_checkpointing": False,
}


def countdown_reward(
    completions: list[str], numbers: list[list[int]], target: list[int], log_metric: Any, **columns: Any
) -> list[float]:
    """1 for an expression that uses every number once and reaches the target; what cannot be graded is logged."""
    problems = [Problem(tuple(row), goal) for row, goal in zip(numbers, target, strict=True)]  # type: ignore[arg-type]
    grades = [grade(problem, text) for problem, text in zip(problems, completions, strict=True)]
    log_metric("ungradable", grades.count("ungradable") / len(grades))
    return [float(verdict == "correct") for verdict in grades]


def last_line_reward(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """1 for a completion whose last line is the trace's."""

    def last_line(text: Any) -> str:
        text = text if isinstance(text, str) else text[-1]["content"]  # a message, where the prompt is one
        return (text.strip().splitlines() or [""])[-1].strip()

    return [float(last_line(text) == last_line(right)) for text, right in zip(completions, answer, strict=True)]


def countdown_task(args: GRPOArguments) -> tuple[Dataset, list[Any]]:
    """Generated problems, and their checker."""
    problems = generate_problems("train", args.num_problems)
    rows = [{"prompt": p.question, "numbers": list(p.numbers), "target": p.target} for p in problems]
    return Dataset.from_list(rows), [countdown_reward]


def question_task(args: GRPOArguments, sources: list[str]) -> tuple[Dataset, list[Any]]:
    """Questions, with their images where they have some, and the comparison with the last line of their answer."""
    parts = [load_traces(source, keep_images=True) for source in sources]
    dataset = concatenate_datasets([part.select(range(len(part))[: args.traces_per_source]) for part in parts])
    images = [name for name in ("image", "images") if name in dataset.column_names]
    dataset = dataset.select_columns(["question", "answer", *images])
    if images:
        messages = [[{"role": "user", "content": question}] for question in dataset["question"]]
        return dataset.remove_columns("question").add_column("prompt", messages), [last_line_reward]
    return dataset.rename_column("question", "prompt"), [last_line_reward]


def grounding_task(args: GRPOArguments, sources: list[str]) -> tuple[Dataset, list[Any]]:
    """Referring expressions, and rewards for the overlap of boxes and for the form of the answer."""
    box_format = box_format_of(AutoConfig.from_pretrained(args.model))
    processor = AutoProcessor.from_pretrained(args.model)
    problems = [load_grounding(source, args.split, args.image_folder) for source in sources]
    parts = [
        grounding_traces(part[: args.traces_per_source], box_format, processor, args.protocol) for part in problems
    ]
    return concatenate_datasets(parts), [
        iou_reward(box_format, processor),
        box_format_reward(box_format, args.protocol),
    ]


def main(args: GRPOArguments, training_args: PaletteGRPOConfig | PaletteRLOOConfig) -> None:
    if args.task == "grounding":
        if args.traces is None:
            raise ValueError("`traces` is None, and for `task`='grounding' there are none to generate: name some.")
        dataset, rewards = grounding_task(args, args.traces)
    else:
        dataset, rewards = countdown_task(args) if args.traces is None else question_task(args, args.traces)
    trainer_class = PaletteGRPOTrainer if isinstance(training_args, PaletteGRPOConfig) else PaletteRLOOTrainer
    trainer = trainer_class(model=args.model, reward_funcs=rewards, args=training_args, train_dataset=dataset)
    trainer.train()
    trainer.save_model()
    logged = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(
        f"\n{trainer_class._name}, {training_args.latent_schedule} schedule, L = {training_args.num_prefix_tokens}: "
        f"mean reward {logged[0]:.3f} at the beginning, {logged[-1]:.3f} at the end. Saved to "
        f"{training_args.output_dir}."
    )


if __name__ == "__main__":
    parser = TrlParser((GRPOArguments, PaletteGRPOConfig))
    parser.set_defaults(**DEMO_SETTINGS)
    main(*parser.parse_args_and_config())

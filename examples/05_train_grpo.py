"""Reinforcement learning with latent-guided rollouts: GRPO on countdown, rewarded by a checker.

In each group of 8 rollouts a share rho starts from a drawn latent, and rho decays with training (here linearly). The
checker's verdict, right or wrong, is the reward. A short run of 30 steps, about 40 seconds on two cores:

    python examples/05_train_grpo.py

`latent/guided/reward` and `latent/unguided/reward` tell what the prefix does, `--log_completions` writes a table with
the code of every rollout. Every field of `PaletteGRPOConfig` is a flag (`--latent_schedule two-phase`, `--beta 0.04`),
or a line of a YAML file (`--config hub_configs/qwen3-1.7b/grpo.yaml`). 05_train_rloo.py is the same with RLOO.

With `--traces` (files of JSON-lines, plain or gzip, Parquet, or Hub ids) the prompts are their questions, and a
completion whose last line is the trace's answer is rewarded: a base that never gets there learns nothing. It leaves
out what a long run needs: evaluation on the way, checkpoints, several processes.
"""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from trl import TrlParser

from reasoning_palette.evaluation.countdown import Problem, generate_problems, grade
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
    num_problems: int = field(default=1000, metadata={"help": "Countdown problems to generate."})


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


def last_line_reward(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """1 for a completion whose last line is the trace's."""

    def last_line(text: str) -> str:
        return (text.strip().splitlines() or [""])[-1].strip()

    return [float(last_line(text) == last_line(right)) for text, right in zip(completions, answer, strict=True)]


def main(args: GRPOArguments, training_args: PaletteGRPOConfig | PaletteRLOOConfig) -> None:
    if args.traces is None:
        problems = generate_problems("train", args.num_problems)
        rows = [{"prompt": p.question, "numbers": list(p.numbers), "target": p.target} for p in problems]
        dataset, reward = Dataset.from_list(rows), countdown_reward
    else:
        dataset = load_traces(args.traces).select_columns(["question", "answer"]).rename_column("question", "prompt")
        reward = last_line_reward
    trainer_class = PaletteGRPOTrainer if isinstance(training_args, PaletteGRPOConfig) else PaletteRLOOTrainer
    trainer = trainer_class(model=args.model, reward_funcs=reward, args=training_args, train_dataset=dataset)
    trainer.train()
    trainer.save_model()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(
        f"\n{trainer_class._name}, {training_args.latent_schedule} schedule, L = {training_args.num_prefix_tokens}: "
        f"mean reward {rewards[0]:.3f} at the beginning, {rewards[-1]:.3f} at the end. Saved to "
        f"{training_args.output_dir}."
    )


if __name__ == "__main__":
    parser = TrlParser((GRPOArguments, PaletteGRPOConfig))
    parser.set_defaults(**DEMO_SETTINGS)
    main(*parser.parse_args_and_config())

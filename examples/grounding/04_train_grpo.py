"""Reinforcement learning with latent-guided rollouts on pictures: GRPO, rewarded for boxes that overlap the target.

In each group of 8 rollouts a share rho starts from a drawn latent, and rho decays with training (here linearly). The
searches of the traces look ahead at nothing, so there is something to learn: to look at the target first.

    python examples/grounding/04_train_grpo.py

`--num_prefix_tokens 0` is plain GRPO. Every field of `PaletteGRPOConfig` is a flag.
"""

from dataclasses import dataclass, field

from datasets import Dataset, Features, Image, List, Value
from trl import TrlParser

from reasoning_palette.evaluation import iou_reward
from reasoning_palette.evaluation.shapes import generate_scenes
from reasoning_palette.evaluation.shapes_benchmark import BOX_FORMAT
from reasoning_palette.trainers import PaletteGRPOConfig, PaletteGRPOTrainer

MESSAGES = List({"role": Value("string"), "content": Value("string")})


@dataclass
class GRPOArguments:
    """Model and scenes."""

    model: str = field(default="demo_output/grounding/sft", metadata={"help": "Palette checkpoint."})
    num_scenes: int = field(default=1000, metadata={"help": "Scenes to generate."})


DEMO_SETTINGS = {
    "output_dir": "demo_output/grounding/grpo",
    "latent_schedule": "linear-decay",
    "num_prefix_tokens": 8,
    "max_steps": 30,
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "max_completion_length": 40,
    "learning_rate": 1e-4,
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
    # What TRL chooses for large models on accelerators costs more than it saves here.
    "bf16": False,
    "gradient_checkpointing": False,
}


def training_set(num_scenes: int) -> Dataset:
    """Prompts as chat messages, the picture, and the target's box in pixels, which the reward compares with."""
    features = Features({"prompt": MESSAGES, "images": List(Image()), "bbox_xyxy": List(Value("int64"))})
    rows = [
        {
            "prompt": [{"role": "user", "content": scene.question}],
            "images": [scene.render()],
            "bbox_xyxy": scene.target.bbox_xyxy,
        }
        for scene in generate_scenes("train", num_scenes)
    ]
    return Dataset.from_list(rows, features=features)


def main(args: GRPOArguments, training_args: PaletteGRPOConfig) -> None:
    trainer = PaletteGRPOTrainer(
        model=args.model,
        reward_funcs=iou_reward(BOX_FORMAT, threshold=0.5),
        args=training_args,
        train_dataset=training_set(args.num_scenes),
    )
    trainer.train()
    trainer.save_model()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(
        f"\n{training_args.latent_schedule} schedule, L = {training_args.num_prefix_tokens}: mean reward "
        f"{rewards[0]:.3f} at the beginning, {rewards[-1]:.3f} at the end. Saved to {training_args.output_dir}."
    )


if __name__ == "__main__":
    parser = TrlParser((GRPOArguments, PaletteGRPOConfig))
    parser.set_defaults(**DEMO_SETTINGS)
    main(*parser.parse_args_and_config())

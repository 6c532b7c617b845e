"""Teaches the base to follow its latents: supervised fine-tuning with a latent prefix in front of every trace.

The prefix stands before the prompt that holds the picture. Each trace is paired with a draw from its own posterior,
so that latents come to mean strategies:

    python examples/grounding/03_train_sft.py

Every field of `PaletteSFTConfig` is a flag; `../04_train_sft.py` says more about pairing.
"""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from trl import TrlParser

from reasoning_palette.evaluation.shapes import generate_traces
from reasoning_palette.trainers import PaletteSFTConfig, PaletteSFTTrainer


@dataclass
class SFTArguments:
    """Model and traces."""

    model: str = field(
        default="demo_output/grounding/palette", metadata={"help": "Palette checkpoint (folder or Hub id)."}
    )
    num_traces: int = field(default=4000, metadata={"help": "Traces to generate."})


DEMO_SETTINGS = {
    "output_dir": "demo_output/grounding/sft",
    "latent_pairing": "posterior",
    "num_prefix_tokens": 8,
    "max_steps": 300,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "max_length": None,  # a cut would go through the tokens of a picture
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
    # What TRL chooses for large models on accelerators costs more than it saves here.
    "bf16": False,
    "gradient_checkpointing": False,
}

MESSAGES = List({"role": Value("string"), "content": Value("string")})


def training_set(num_traces: int) -> Dataset:
    """Prompts and completions as chat messages, with the picture beside them."""

    def chat(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["reasoning"] + row["answer"]}],
            "images": [row["image"]],
        }

    features = Features({"prompt": MESSAGES, "completion": MESSAGES, "images": List(Image())})
    return Dataset.from_list([chat(row) for row in generate_traces("train", num_traces)], features=features)


def main(args: SFTArguments, training_args: PaletteSFTConfig) -> None:
    trainer = PaletteSFTTrainer(model=args.model, args=training_args, train_dataset=training_set(args.num_traces))
    trainer.train()
    trainer.save_model()
    print(
        f"\n{training_args.latent_pairing} pairing, L = {training_args.num_prefix_tokens}, "
        f"{trainer.state.global_step} steps. Saved to {training_args.output_dir}."
    )


if __name__ == "__main__":
    parser = TrlParser((SFTArguments, PaletteSFTConfig))
    parser.set_defaults(**DEMO_SETTINGS)
    main(*parser.parse_args_and_config())

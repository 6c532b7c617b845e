"""Trains the palette: a VAE over the mean input embeddings of grounding traces, with one Gaussian per search strategy.

What is pooled is the text of a trace (question, search and box); of the base only its input embedding is read. About
15 seconds on one core:

    python examples/grounding/02_train_palette.py

Every field of `PaletteVAEConfig` is a flag. `../02_train_vae.py` does the same for traces from files or the Hub.
"""

from dataclasses import dataclass, field

from trl import TrlParser

from reasoning_palette.evaluation.shapes import generate_traces
from reasoning_palette.trainers import PaletteVAEConfig, PaletteVAETrainer


@dataclass
class PaletteArguments:
    """Base and traces."""

    base: str = field(default="demo_output/grounding/base", metadata={"help": "Base model (folder or Hub id)."})
    num_traces: int = field(default=4000, metadata={"help": "Traces to generate."})


DEMO_SETTINGS = {
    "output_dir": "demo_output/grounding/palette",
    "beta": 0.01,
    "max_steps": 1000,
    "logging_steps": 100,
    "save_strategy": "no",
    "report_to": "none",
}


def traces(split: str, count: int) -> list[dict[str, str]]:
    """Traces without their pictures."""
    return [
        {name: row[name] for name in ("question", "reasoning", "answer", "domain")}
        for row in generate_traces(split, count)
    ]


def main(args: PaletteArguments, training_args: PaletteVAEConfig) -> None:
    trainer = PaletteVAETrainer(
        args.base, training_args, traces("train", args.num_traces), traces("validation", args.num_traces // 10)
    )
    metrics = trainer.train().metrics
    trainer.save_model()
    print(
        f"\nHeld-out traces: {metrics['eval_reconstruction']:.3f} of the variance is unexplained, KL "
        f"{metrics['eval_kl']:.1f} nats, {metrics['eval_active_units']} active units. Domains: "
        f"{', '.join(trainer.palette.domains)}. Saved to {training_args.output_dir}."
    )


if __name__ == "__main__":
    parser = TrlParser((PaletteArguments, PaletteVAEConfig))
    parser.set_defaults(**DEMO_SETTINGS)
    main(*parser.parse_args_and_config())

"""Trains the palette: a VAE over the mean input embeddings of reasoning traces, with one Gaussian per domain.

The base is only read, once, for its input embedding. Prints reconstruction (unexplained share of the variance), KL in
nats and active units on training and held-out traces, and writes a palette-only checkpoint. About 15 seconds on two
cores:

    python examples/02_train_vae.py

With `--traces` (files of JSON-lines, plain or gzip, Parquet, or Hub ids, `id:configuration` where there are several)
it trains on those instead. Put `name=` in front where the rows have no `domain` column:

    python examples/02_train_vae.py --base Qwen/Qwen3-1.7B-Base \
        --traces math=openai/gsm8k:main qa.jsonl.gz --output_dir my_palette

Every field of `PaletteVAEConfig` is a flag. It leaves out a search for `beta`: look at the KL it prints, and raise
`beta` if a warning says that the latent carries too much.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from trl import TrlParser

from reasoning_palette.evaluation.countdown import generate_traces
from reasoning_palette.trainers.palette_vae_config import PaletteVAEConfig
from reasoning_palette.trainers.palette_vae_trainer import PaletteVAETrainer
from reasoning_palette.trainers.traces import load_traces


@dataclass
class VAEArguments:
    """Where base and traces come from."""

    base: str = field(default="examples/countdown_base", metadata={"help": "Base model (folder or Hub id)."})
    traces: list[str] | None = field(
        default=None, metadata={"help": "Trace files or Hub ids instead of countdown; `domain=source` sets a domain."}
    )
    eval_traces: list[str] | None = field(default=None, metadata={"help": "Held-out traces, in the same form."})
    num_traces: int = field(default=4000, metadata={"help": "Countdown traces to generate."})
    metrics_file: str | None = field(default=None, metadata={"help": "Where to write the figures as JSON."})


DEMO_SETTINGS = {
    "output_dir": "demo_output/palette",
    "beta": 0.01,
    "max_steps": 1000,
    "logging_steps": 100,
    "save_strategy": "no",
    "report_to": "none",
}


def load_sources(sources: list[str]) -> Dataset:
    """Traces of several sources, each `source` or `domain=source`, one after the other."""
    parts = []
    for source in sources:
        domain, equals, rest = source.partition("=")
        named = bool(equals) and not Path(source).exists()
        parts.append(load_traces(rest, domain=domain) if named else load_traces(source))
    return concatenate_datasets(parts)


def main(args: VAEArguments, training_args: PaletteVAEConfig) -> None:
    if args.traces is None:
        train_traces, eval_traces = generate_traces("train", args.num_traces), generate_traces("validation", 500)
    else:
        train_traces = load_sources(args.traces)
        eval_traces = load_sources(args.eval_traces) if args.eval_traces else None
    trainer = PaletteVAETrainer(args.base, training_args, train_traces, eval_traces)
    metrics = trainer.train().metrics
    trainer.save_model()

    print(f"\n{'traces':<10} {'reconstruction':>14} {'KL (nats)':>10} {'active units':>13}")
    for prefix, name in (("train", "training"), ("eval", "held-out")):
        if f"{prefix}_kl" in metrics:
            reconstruction, kl = metrics[f"{prefix}_reconstruction"], metrics[f"{prefix}_kl"]
            active_units = f"{metrics[f'{prefix}_active_units']} of {training_args.latent_dim}"
            print(f"{name:<10} {reconstruction:>14.3f} {kl:>10.1f} {active_units:>13}")
    if args.metrics_file:
        figures = {name: value for name, value in metrics.items() if name.endswith(("construction", "kl", "units"))}
        Path(args.metrics_file).write_text(json.dumps(figures, indent=2) + "\n")
    domains = ", ".join(f"{name} ({entry['count']} traces)" for name, entry in trainer.palette.domains.items())
    print(f"Domains: {domains or 'none'}. Palette saved to {training_args.output_dir}.")


if __name__ == "__main__":
    parser = TrlParser((VAEArguments, PaletteVAEConfig))
    parser.set_defaults(**DEMO_SETTINGS)
    main(*parser.parse_args_and_config())

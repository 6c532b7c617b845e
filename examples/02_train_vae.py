"""Trains the palette: a VAE over the mean input embeddings of reasoning traces, with one Gaussian per domain.

The base is only read, once, for its input embedding. Prints reconstruction (unexplained share of the variance), KL in
nats and active units on training and held-out traces, and writes a palette-only checkpoint with `training.json`, the
record of traces, settings and figures that 09_push_to_hub.py publishes. About 15 seconds on two cores:

    python examples/02_train_vae.py

With `--traces` (files of JSON-lines, plain or gzip, Parquet, or Hub ids, `id:configuration` where there are several)
it trains on those instead. Put `name=` in front where the rows have no `domain` column:

    python examples/02_train_vae.py --base Qwen/Qwen3-1.7B-Base \
        --traces math=openai/gsm8k:main qa.jsonl.gz --output_dir my_palette

With `--task grounding` the traces are referring expressions and boxes in the form of the base's family: Hub sets such
as RefCOCO, folders or files that `load_grounding` takes. The palette's checkpoint has the base's processor in it, with
`--max_pixels` as the largest size of an image, so that all later stages see images of one size:

    python examples/02_train_vae.py --config hub_configs/qwen3-vl-4b/vae.yaml

Every field of `PaletteVAEConfig` is a flag, or a line of a YAML file (`--config hub_configs/qwen3-1.7b/vae.yaml`). It
leaves out a search for `beta`: look at the KL it prints, and raise `beta` if a warning says that the latent carries
too much.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import AutoConfig, AutoProcessor
from trl import TrlParser

from reasoning_palette.evaluation import box_format_of, load_grounding
from reasoning_palette.evaluation.countdown import generate_traces
from reasoning_palette.evaluation.grounding_traces import grounding_traces
from reasoning_palette.evaluation.result import describe_environment
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
    traces_per_source: int | None = field(
        default=None, metadata={"help": "How many traces of each of `traces` to use, the first ones. Default: all."}
    )
    eval_traces: list[str] | None = field(default=None, metadata={"help": "Held-out traces, in the same form."})
    task: str = field(
        default="text",
        metadata={"help": "What `traces` are: texts, or referring expressions.", "choices": ["text", "grounding"]},
    )
    split: str | None = field(default=None, metadata={"help": "Split of sets for grounding. Default: 'val'."})
    image_folder: str | None = field(default=None, metadata={"help": "Where images are that files only name."})
    max_pixels: int | None = field(default=None, metadata={"help": "Largest size of an image, for Qwen-VL bases."})
    num_traces: int = field(default=4000, metadata={"help": "Countdown traces to generate."})
    metrics_file: str | None = field(default=None, metadata={"help": "Where to write the figures as JSON."})


NUM_EVAL_TRACES = 500
DEMO_SETTINGS = {
    "output_dir": "demo_output/palette",
    "beta": 0.01,
    "max_steps": 1000,
    "logging_steps": 100,
    "save_strategy": "no",
    "report_to": "none",
}


class Sources:
    """Traces of the sources that the arguments name, `source` or `domain=source`."""

    def __init__(self, args: VAEArguments, keep_images: bool, processor: Any = None) -> None:
        self.args, self.keep_images, self.processor = args, keep_images, processor

    def load(self, source: str, limit: int | None = None) -> Dataset:
        """The first traces of one source."""
        domain, rest = split_source(source)
        if self.args.task == "grounding":
            problems = load_grounding(rest, self.args.split, self.args.image_folder)[:limit]
            box_format = box_format_of(AutoConfig.from_pretrained(self.args.base))
            traces = grounding_traces(problems, box_format, self.processor)
            return load_traces(traces, domain=domain, keep_images=self.keep_images)
        traces = load_traces(rest, domain=domain, keep_images=self.keep_images)
        return traces if limit is None else traces.select(range(min(limit, len(traces))))

    def load_all(self, sources: list[str], limit: int | None = None) -> Dataset:
        """The first traces of several sources, one source after the other."""
        return concatenate_datasets([self.load(source, limit) for source in sources])

    def describe(self, source: str, limit: int | None = None) -> dict[str, Any]:
        """A source for the record: its name (without the folder, which is this machine's), traces, licence."""
        domain, name = split_source(source)
        traces = self.load(source, limit)  # from the cache of `datasets`
        is_on_hub = not Path(name).exists()
        shown = name if is_on_hub else Path(name).name
        license_ = traces.info.license or None
        return {"source": shown, "is_on_hub": is_on_hub, "domain": domain, "count": len(traces), "license": license_}


def split_source(source: str) -> tuple[str | None, str]:
    """Domain and source of `domain=source`."""
    domain, equals, rest = source.partition("=")
    return (domain, rest) if equals and not Path(source).exists() else (None, source)


def load_processor(args: VAEArguments) -> Any:
    """The base's processor, with the limit of its images; None where the trainer loads what there is by itself."""
    if args.task == "text" and args.max_pixels is None:
        return None
    limits = {} if args.max_pixels is None else {"max_pixels": args.max_pixels}
    processor = AutoProcessor.from_pretrained(args.base, **limits)
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"`task` is {args.task!r} and `max_pixels` {args.max_pixels}, but the base {args.base!r} reads no images. "
            "Use a vision-language base, or text without a limit of pixels."
        )
    size = dict(processor.image_processor.size)
    if args.max_pixels is not None and size.get("longest_edge") != args.max_pixels:
        raise ValueError(
            f"`max_pixels` is {args.max_pixels}, but {type(processor).__name__} has no such limit (`size` is {size}). "
            "Leave it out."
        )
    return processor


def describe_training(
    args: VAEArguments, sources: Sources, trainer: PaletteVAETrainer, metrics: dict[str, float]
) -> dict[str, Any]:
    """The record of a training: traces, settings, figures, versions and hardware."""
    if args.traces is None:
        made = {"source": "countdown, generated by reasoning-palette", "is_on_hub": False, "domain": None}
        traces = [{**made, "count": args.num_traces, "license": None}]
        eval_traces = [{**made, "count": NUM_EVAL_TRACES, "license": None}]
    else:
        traces = [sources.describe(source, args.traces_per_source) for source in args.traces]
        eval_traces = [sources.describe(source) for source in args.eval_traces or []]
    settings = ("latent_dim", "hidden_sizes", "decoder_type", "num_slots", "num_decoder_layers", "num_segments")
    settings += ("merge_images", "beta", "kl_warmup_ratio", "learning_rate", "seed")
    return {
        "traces": traces,
        "eval_traces": eval_traces,
        "settings": {**{name: getattr(trainer.args, name) for name in settings}, "steps": trainer.state.global_step},
        "figures": figures_of(metrics),
        "environment": describe_environment(),
    }


def figures_of(metrics: dict[str, float]) -> dict[str, float]:
    """Reconstruction, KL and active units among all metrics."""
    return {name: value for name, value in metrics.items() if name.endswith(("construction", "kl", "units"))}


def main(args: VAEArguments, training_args: PaletteVAEConfig) -> None:
    if args.traces is None and args.task == "grounding":
        raise ValueError(
            "`traces` is None, and for `task`='grounding' there are none to generate: name a set or file."
        )
    processor = load_processor(args)
    sources = Sources(args, training_args.merge_images, processor)
    if args.traces is None:
        train_traces, eval_traces = (
            generate_traces("train", args.num_traces),
            generate_traces("validation", NUM_EVAL_TRACES),
        )
    else:
        train_traces = sources.load_all(args.traces, args.traces_per_source)
        eval_traces = sources.load_all(args.eval_traces) if args.eval_traces else None
    trainer = PaletteVAETrainer(args.base, training_args, train_traces, eval_traces, processor)
    metrics = trainer.train().metrics
    trainer.save_model()

    print(f"\n{'traces':<10} {'reconstruction':>14} {'KL (nats)':>10} {'active units':>13}")
    for prefix, name in (("train", "training"), ("eval", "held-out")):
        if f"{prefix}_kl" in metrics:
            reconstruction, kl = metrics[f"{prefix}_reconstruction"], metrics[f"{prefix}_kl"]
            active_units = f"{metrics[f'{prefix}_active_units']} of {training_args.latent_dim}"
            print(f"{name:<10} {reconstruction:>14.3f} {kl:>10.1f} {active_units:>13}")
    if args.metrics_file:
        Path(args.metrics_file).write_text(json.dumps(figures_of(metrics), indent=2) + "\n")
    record = json.dumps(describe_training(args, sources, trainer, metrics), indent=2)
    (Path(training_args.output_dir) / "training.json").write_text(record + "\n")
    domains = ", ".join(f"{name} ({entry['count']} traces)" for name, entry in trainer.palette.domains.items())
    print(f"Domains: {domains or 'none'}. Palette saved to {training_args.output_dir}.")


if __name__ == "__main__":
    parser = TrlParser((VAEArguments, PaletteVAEConfig))
    parser.set_defaults(**DEMO_SETTINGS)
    main(*parser.parse_args_and_config())

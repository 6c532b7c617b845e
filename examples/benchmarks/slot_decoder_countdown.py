"""What a model makes of the prefixes of the two decoders: greedy answers to countdown problems, without any SFT.

The base is the shipped one, which has read texts of a style and responds to what stands before its prompt. For each
seed a palette is trained for each decoder on the same traces, and at the same budget (8 samples, prefixes of 8) the
prior's and the domains' draws are decoded greedily: pass@1, pass@8 and the strategies that the answers follow. A
prefix of the MLP decoder has a latent for each position, or one for all of them (*tiled*), as with the other decoder.

    python examples/benchmarks/slot_decoder_countdown.py --seeds 0 1 2

It leaves out SFT and everything after it: see countdown_seeds.py. `slot_decoder.py` has the figures of the latents.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, HfArgumentParser

from reasoning_palette.evaluation import Method, countdown_benchmark, evaluate_palette
from reasoning_palette.evaluation.countdown import generate_traces
from reasoning_palette.evaluation.result import describe_environment
from reasoning_palette.modeling_palette import PaletteForCausalLM
from reasoning_palette.trainers.palette_vae_config import PaletteVAEConfig
from reasoning_palette.trainers.palette_vae_trainer import PaletteVAETrainer

LENGTH, NUM_SAMPLES = 8, 8
# name -> what the palette's training is given
DECODERS: dict[str, dict[str, Any]] = {
    "mlp": {"decoder_type": "mlp", "beta": 0.01},  # beta: the examples' for these traces
    "gpt": {"decoder_type": "gpt", "beta": 0.005},
}


@dataclass
class CountdownArguments:
    """The runs."""

    base: str = field(default="examples/countdown_base", metadata={"help": "Base model (folder or Hub id)."})
    decoders: list[str] = field(
        default_factory=lambda: list(DECODERS), metadata={"help": "Decoders; what the file has of others stays."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of palettes and draws."})
    num_traces: int = field(default=4000, metadata={"help": "Countdown traces to train on."})
    max_steps: int = field(default=1000, metadata={"help": "Training steps of a palette."})
    num_problems: int = field(default=100, metadata={"help": "Test problems."})
    output: str = field(default="examples/benchmarks/slot_decoder_countdown.json", metadata={"help": "The result."})


def measure(args: CountdownArguments, decoder: str, seed: int) -> dict[str, dict[str, Any]]:
    """Source of the draws -> figures, and `latents` -> figures of the training."""
    with tempfile.TemporaryDirectory() as folder:
        settings = PaletteVAEConfig(
            folder,
            max_steps=args.max_steps,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **DECODERS[decoder],
        )
        traces = Dataset.from_list(generate_traces("train", args.num_traces))
        trainer = PaletteVAETrainer(args.base, settings, traces)
        metrics = trainer.train().metrics
    model = PaletteForCausalLM.from_base(args.base, trainer.palette)
    sources = {"prior": None, **{name: name for name in trainer.palette.domains}}
    methods = [
        Method(name, prefix="palette", num_prefix_tokens=LENGTH, domain=domain) for name, domain in sources.items()
    ]
    if decoder == "mlp":
        methods.append(Method("prior, tiled", prefix="palette", num_prefix_tokens=LENGTH, latent_tile=True))
    result = evaluate_palette(
        model,
        AutoTokenizer.from_pretrained(args.base),
        countdown_benchmark("test", args.num_problems),
        methods,
        NUM_SAMPLES,
        seed=seed,
        disable_progress_bar=True,
    )
    figures = {name: round(metrics[f"train_{name}"], 3) for name in ("reconstruction", "kl", "active_units")}
    found: dict[str, dict[str, Any]] = {"latents": figures}
    for one in result.to_dict()["methods"]:
        passed = {int(k): round(value, 4) for k, value in one["pass_at_k"].items()}
        strategies = {name: round(share, 3) for name, share in one["strategies"].items()}
        found[one["method"]["name"]] = {"pass@1": passed[1], "pass@8": passed[8], "strategies": strategies}
    return found


def summarise(runs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Mean over seeds, with the standard deviation where there are several."""
    summary: dict[str, Any] = {}
    for source in runs[0]:
        if source in ("latents", "seed"):
            continue
        summary[source] = {}
        for name in ("pass@1", "pass@8"):
            values = [run[source][name] for run in runs]
            summary[source][name] = {"mean": round(mean(values), 4)}
            if len(values) > 1:
                summary[source][name]["std"] = round(stdev(values), 4)
    return summary


def main(args: CountdownArguments) -> None:
    output = Path(args.output)
    kept = json.loads(output.read_text())["runs"] if output.exists() else {}
    runs: dict[str, list[dict[str, Any]]] = {**kept, **{decoder: [] for decoder in args.decoders}}
    for seed in args.seeds:
        for decoder in args.decoders:
            runs[decoder].append({"seed": seed, **measure(args, decoder, seed)})
            print(json.dumps({"decoder": decoder, **runs[decoder][-1]}), flush=True)
    result = {
        "settings": DECODERS,
        "num_prefix_tokens": LENGTH,
        "num_samples": NUM_SAMPLES,
        "num_problems": args.num_problems,
        "num_traces": args.num_traces,
        "max_steps": args.max_steps,
        "summary": {decoder: summarise(found) for decoder, found in runs.items()},
        "runs": runs,
        "environment": describe_environment(),
    }
    output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(HfArgumentParser(CountdownArguments).parse_args_into_dataclasses()[0])

"""The two decoders, and what the `"gpt"` one is trained on: a latent for each row, or one latent for a whole prefix.

What the paper's decoder of 8 slots is trained on is not published. Two targets are compared with the MLP decoder: the
mean of its 8 rows decodes the mean embedding of the whole trace (`num_segments=1`), or each row that of its eighth of
the trace (`num_segments=8`). Figures are of held-out traces:

- reconstruction (unexplained share of the variance of the target; targets differ, so compare it within one), KL in
  nats, active units, in total and for each slot;
- whether a linear probe reads a trace's domain in its latent, and in the mean row of prefixes drawn from a domain;
- the share of the variance of rows under the prior that lies within prefixes: 0 if a prefix repeats one row.

    python examples/benchmarks/slot_decoder.py --base real_output/base --traces ... --eval_traces ...

The base is the one that `real_traces.py` makes. It leaves out what a model makes of the prefixes.
"""

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import HfArgumentParser

from reasoning_palette.trainers.palette_vae_config import PaletteVAEConfig
from reasoning_palette.trainers.palette_vae_trainer import PaletteVAETrainer
from reasoning_palette.trainers.pooled_traces import PooledTraces
from reasoning_palette.trainers.traces import load_traces
from reasoning_palette.trainers.trainable_palette import ACTIVE_UNIT_VARIANCE

LENGTH = 8
NUM_PREFIXES = 500
# what is compared: decoder, segments, beta
SETTINGS: list[dict[str, Any]] = [
    {"decoder_type": "mlp", "beta": 0.02},
    {"decoder_type": "gpt", "num_segments": 1, "beta": 0.02},
    {"decoder_type": "gpt", "num_segments": 8, "beta": 0.02},
    {"decoder_type": "gpt", "num_segments": 8, "beta": 0.01},
    {"decoder_type": "gpt", "num_segments": 8, "beta": 0.005},
    {"decoder_type": "gpt", "num_segments": 8, "beta": 0.0025},
]


@dataclass
class DecoderArguments:
    """The comparison."""

    base: str = field(metadata={"help": "Base model (folder or Hub id)."})
    traces: list[str] = field(metadata={"help": "Trace files or Hub ids."})
    eval_traces: list[str] = field(metadata={"help": "Held-out traces."})
    max_steps: int = field(default=600, metadata={"help": "Training steps."})
    seed: int = field(default=0, metadata={"help": "Seed."})
    output: str = field(default="examples/benchmarks/slot_decoder.json", metadata={"help": "The result."})


def rows_of(palette: Any, latents: torch.Tensor) -> torch.Tensor:
    """Rows `(N, 8, H)` of prefixes: of latents `(N, Z)` each, or of `(N, 8, Z)` with the MLP decoder."""
    rows = palette.decode(latents)
    assert rows.shape[1] == LENGTH
    return rows


def latent_shape(palette: Any) -> tuple[int, ...]:
    """Of what makes a prefix of 8 rows."""
    return (palette.latent_dim,) if palette.num_slots else (LENGTH, palette.latent_dim)


def new_probe() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, class_weight="balanced"))


@torch.no_grad()
def figures(trainer: PaletteVAETrainer, whole: PooledTraces, seed: int) -> dict[str, Any]:
    """Figures beside the trainer's own. `whole`: the training traces, pooled as a whole."""
    palette, train, held_out = trainer.palette, trainer.train_dataset, trainer.eval_dataset
    generator = torch.Generator().manual_seed(seed)
    mean, _ = palette.encode(torch.cat(list(train.chunks())))
    held_out_mean, _ = palette.encode(torch.cat(list(held_out.chunks())))
    domains = np.array(train.domains)
    in_latents = new_probe().fit(mean.numpy(), domains).score(held_out_mean.numpy(), held_out.domains)

    rows = rows_of(palette, torch.randn(NUM_PREFIXES, *latent_shape(palette), generator=generator))
    within = (rows.var(dim=1).mean() / rows.var(dim=(0, 1)).mean()).item()
    # a probe that has seen real traces alone reads the mean row of drawn prefixes
    probe, right = new_probe().fit(torch.cat(list(whole.chunks())).numpy(), domains), []
    for name, entry in palette.domains.items():
        noise = torch.randn(NUM_PREFIXES, *latent_shape(palette), generator=generator)
        cholesky = palette.domain_cholesky[entry["source"] - 1]
        drawn = rows_of(palette, palette.domain_means[entry["source"] - 1] + noise @ cholesky.T)
        right.append((probe.predict(drawn.mean(dim=1).numpy()) == name).mean())
    active = held_out_mean.var(dim=0, correction=0) > ACTIVE_UNIT_VARIANCE
    slots = active.reshape(palette.num_slots, -1).sum(dim=1).tolist() if palette.num_slots else None
    return {
        "active_units_by_slot": slots,
        "latents_read_as_their_domain": round(float(in_latents), 4),
        "drawn_prefixes_read_as_their_domain": round(float(np.mean(right)), 4),
        "variance_of_rows_within_prefixes": round(within, 3),
        "palette_mb": round(sum(buffer.nbytes for buffer in palette.buffers()) / 2**20, 1),
    }


def main(args: DecoderArguments) -> None:
    train_traces, eval_traces = load_traces(args.traces), load_traces(args.eval_traces)
    rows: list[dict[str, Any]] = []
    whole: PooledTraces | None = None
    for setting in SETTINGS:
        settings = PaletteVAEConfig(
            "slot_decoder_output",
            max_steps=args.max_steps,
            seed=args.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            **setting,
        )
        trainer = PaletteVAETrainer(args.base, settings, train_traces, eval_traces)
        whole = trainer.train_dataset if whole is None else whole  # the first setting's
        metrics = trainer.train().metrics
        own = {name: round(metrics[f"eval_{name}"], 3) for name in ("reconstruction", "kl", "active_units")}
        rows.append({**setting, "latent_dim": settings.latent_dim, **own, **figures(trainer, whole, args.seed)})
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "training_traces": [Path(path).name for path in args.traces],
        "held_out_traces": [Path(path).name for path in args.eval_traces],
        "hidden_size": trainer.palette.hidden_size,
        "max_steps": args.max_steps,
        "seed": args.seed,
        "held_out": rows,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    Path(args.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(HfArgumentParser(DecoderArguments).parse_args_into_dataclasses()[0])

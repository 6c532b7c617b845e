"""What `beta` does: reconstruction, KL and active units on held-out traces, and whether draws keep to their domain.

Trains a VAE for each `beta`. For the domain Gaussians, 1,000 draws per domain are decoded, and a linear probe that was
trained on decoded posterior draws of the training traces says which domain they belong to; once with Gaussians of the
posterior means (what the trainer fits) and once with Gaussians of posterior draws. Three minutes on two cores:

    python examples/benchmarks/vae_beta.py
    python examples/benchmarks/vae_beta.py --base real_output/base --traces ... --eval_traces ...

It leaves out what a model makes of the prefixes: see 06_evaluate.py.
"""

import copy
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

from reasoning_palette.evaluation.countdown import generate_traces
from reasoning_palette.trainers.palette_vae_config import PaletteVAEConfig
from reasoning_palette.trainers.palette_vae_trainer import PaletteVAETrainer
from reasoning_palette.trainers.traces import load_traces

NUM_DRAWS = 1000


@dataclass
class BetaArguments:
    """The sweep."""

    base: str = field(default="examples/countdown_base", metadata={"help": "Base model (folder or Hub id)."})
    traces: list[str] | None = field(default=None, metadata={"help": "Trace files or Hub ids instead of countdown."})
    eval_traces: list[str] | None = field(default=None, metadata={"help": "Held-out traces."})
    betas: list[float] = field(
        default_factory=lambda: [0.003, 0.01, 0.02, 0.03, 0.1], metadata={"help": "Values of beta."}
    )
    max_steps: int = field(default=1000, metadata={"help": "Training steps."})
    seed: int = field(default=0, metadata={"help": "Seed."})
    name: str = field(default="countdown", metadata={"help": "Name of the traces; its entry in the file is replaced."})
    output: str = field(default="examples/benchmarks/vae_beta.json", metadata={"help": "The result."})


@torch.no_grad()
def draws_read_as_their_domain(trainer: PaletteVAETrainer, seed: int) -> dict[str, float]:
    """Share of decoded domain draws that a probe reads as their domain, by what the Gaussians were fitted on."""
    palette, traces = trainer.palette, trainer.train_dataset
    generator = torch.Generator().manual_seed(seed)
    domains = np.array(traces.domains)
    mean, logvar = palette.encode(torch.cat(list(traces.chunks())))
    samples = palette.sample_posterior(mean, logvar, torch.randn(mean.shape, generator=generator))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    probe.fit(palette.decode(samples).numpy(), domains)
    result = {}
    for fitted_on, latents in (("posterior_means", mean), ("posterior_draws", samples)):
        fitted = copy.deepcopy(palette)
        right = []
        for name in traces.domain_counts():
            source = fitted.fit_domain(name, latents[torch.from_numpy(domains == name)])
            noise = torch.randn(NUM_DRAWS, fitted.latent_dim, generator=generator)
            drawn = fitted.domain_means[source - 1] + noise @ fitted.domain_cholesky[source - 1].T
            right.append((probe.predict(fitted.decode(drawn).numpy()) == name).mean())
        result[fitted_on] = round(float(np.mean(right)), 4)
    return result


def main(args: BetaArguments) -> None:
    if args.traces is None:
        train_traces, eval_traces = generate_traces("train", 4000), generate_traces("validation", 500)
    else:
        train_traces, eval_traces = load_traces(args.traces), load_traces(args.eval_traces)
    rows: list[dict[str, Any]] = []
    for beta in args.betas:
        settings = PaletteVAEConfig(
            "beta_output",
            beta=beta,
            max_steps=args.max_steps,
            seed=args.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
        )
        trainer = PaletteVAETrainer(args.base, settings, train_traces, eval_traces)
        metrics = trainer.train().metrics
        figures = {name: round(metrics[f"eval_{name}"], 3) for name in ("reconstruction", "kl", "active_units")}
        draws = draws_read_as_their_domain(trainer, args.seed)
        rows.append({"beta": beta, **figures, "decoded_draws_read_as_their_domain": draws})
        print(json.dumps(rows[-1]), flush=True)
    output = Path(args.output)
    results = json.loads(output.read_text()) if output.exists() else {}
    results[args.name] = {
        "training_traces": [Path(path).name for path in args.traces] if args.traces else "countdown, 4,000",
        "hidden_size": trainer.palette.hidden_size,
        "latent_dim": trainer.palette.latent_dim,
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
    output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(HfArgumentParser(BetaArguments).parse_args_into_dataclasses()[0])

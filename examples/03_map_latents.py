"""Draws the palette's maps: latents and decoded prefixes of held-out traces, coloured by domain (the paper's Fig. 3).

Four panels (PCA and t-SNE of each) go to `latent_map.png`. How well the domains separate is measured on the same
held-out latents by a linear probe under 5-fold cross-validation; the probe also reads draws from the domain Gaussians,
which is what generation uses. Both go to `latent_map.json`. About 15 seconds on two cores:

    python examples/03_map_latents.py

With `--traces` (files of JSON-lines, plain or gzip, Parquet, or Hub ids) it maps those instead: pass traces that the
palette was not trained on. It leaves out everything about the text that the prefixes lead to; see 06_evaluate.py.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import HfArgumentParser

from reasoning_palette.evaluation.countdown import generate_traces
from reasoning_palette.modeling_palette import PaletteForCausalLM
from reasoning_palette.trainers.traces import load_traces

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which colour-blind readers tell apart too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

NUM_FOLDS = 5


@dataclass
class MapArguments:
    """What to map."""

    palette: str = field(default="demo_output/palette", metadata={"help": "Palette checkpoint (folder or Hub id)."})
    traces: list[str] | None = field(default=None, metadata={"help": "Held-out trace files or Hub ids."})
    num_traces: int = field(default=600, metadata={"help": "Countdown traces to generate."})
    num_mapped: int = field(default=200, metadata={"help": "Traces per domain in the map; the probe uses all."})
    output_dir: str = field(default="demo_output/maps", metadata={"help": "Folder of the PNG and the JSON."})
    seed: int = field(default=0, metadata={"help": "Seed of draws, folds and t-SNE."})


def probe_domains(latents: np.ndarray, domains: np.ndarray, model: Any, seed: int) -> dict[str, Any]:
    """How well a linear probe tells the domains of held-out latents, and of draws from the domain Gaussians."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    predicted = cross_val_predict(probe, latents, domains, cv=folds)
    names, counts = np.unique(domains, return_counts=True)
    result: dict[str, Any] = {
        "traces": {str(name): int(count) for name, count in zip(names, counts, strict=True)},
        "accuracy": float((predicted == domains).mean()),
        "balanced_accuracy": float(balanced_accuracy_score(domains, predicted)),
        "largest_domain_share": float(counts.max() / counts.sum()),
    }
    fitted = [str(name) for name in names if name in model.palette.domains]
    if fitted:
        probe.fit(latents, domains)
        generator = torch.Generator().manual_seed(seed)
        result["draws_read_as_their_domain"] = {}
        for name in fitted:
            codes = model.draw_codes(500, domain=name, generator=generator)
            draws = model.latents_from_codes(codes, num_prefix_tokens=1)[:, 0]
            result["draws_read_as_their_domain"][name] = float((probe.predict(draws.numpy()) == name).mean())
    return result


def select_for_map(domains: np.ndarray, per_domain: int, seed: int) -> np.ndarray:
    """Row numbers of at most `per_domain` traces of each domain, shuffled, so that none is painted over another."""
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(domains == name))[:per_domain] for name in np.unique(domains)]
    return generator.permutation(np.concatenate(chosen))


def draw_map(
    latents: np.ndarray, prefixes: np.ndarray, domains: np.ndarray, title: str, path: Path, seed: int
) -> None:
    """Four panels: PCA and t-SNE of latents (top) and of decoded prefixes (bottom)."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 9.4), layout="constrained")
    names = [str(name) for name in np.unique(domains)]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    for row, (what, points) in enumerate((("Latents", latents), ("Decoded prefixes", prefixes))):
        pca = PCA(min(50, *points.shape), random_state=seed).fit(points)
        components = pca.transform(points)
        shares = pca.explained_variance_ratio_
        perplexity = min(30.0, (len(points) - 1) / 3)
        embedded = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(components)
        for column, (method, flat) in enumerate((("PCA", components[:, :2]), ("t-SNE", embedded))):
            axis = axes[row, column]
            axis.scatter(flat[:, 0], flat[:, 1], s=16, c=[colours[name] for name in domains], alpha=0.65, linewidths=0)
            axis.set_title(f"{what}, {method}", fontsize=12)
            axis.set_xticks([])
            axis.set_yticks([])
            if method == "PCA":
                axis.set_xlabel(f"component 1 ({shares[0]:.0%} of the variance)")
                axis.set_ylabel(f"component 2 ({shares[1]:.0%})")
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=colours[name], label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False, fontsize=12)
    figure.suptitle(title, fontsize=13)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(args: MapArguments) -> None:
    rows = generate_traces("test", args.num_traces) if args.traces is None else load_traces(args.traces)
    rows = [row for row in rows if row.get("domain")]
    counts = Counter(row["domain"] for row in rows)
    if len(counts) < 2 or min(counts.values()) < NUM_FOLDS:
        raise ValueError(
            f"`--traces` need a `domain` column with at least two domains of {NUM_FOLDS} traces each, to colour by "
            f"and to probe; found {dict(counts)}."
        )
    model = PaletteForCausalLM.from_pretrained(args.palette)
    domains = np.array([row["domain"] for row in rows])
    with torch.no_grad():
        mean, _ = model.palette.encode(model.pool_traces(rows))
        prefixes = model.palette.decode(mean).flatten(1).numpy()  # whole prefixes with the "gpt" decoder
    latents = mean.numpy()

    result = probe_domains(latents, domains, model, args.seed)
    chosen = select_for_map(domains, args.num_mapped, args.seed)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    title = f"{len(chosen)} held-out traces; a linear probe on the latents is right on {result['accuracy']:.1%}"
    draw_map(latents[chosen], prefixes[chosen], domains[chosen], title, output / "latent_map.png", args.seed)
    (output / "latent_map.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(f"Map and figures are in {output}.")


if __name__ == "__main__":
    main(HfArgumentParser(MapArguments).parse_args_into_dataclasses()[0])

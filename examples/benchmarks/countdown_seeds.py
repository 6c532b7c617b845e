"""The demo's figures over several palette seeds: is a latent better than no latent, than noise, than temperature?

For every base and seed it runs the numbered examples 02 (VAE), 04 (SFT) and 06 (evaluation on the test split) as they
are, in folders of their own, and gathers pass@1, pass@8 and strategies into one JSON with a mean and a standard
deviation over seeds. What is there already is not run again, so an interrupted run goes on (after a change of the
examples' own settings give another `--work`):

    python examples/benchmarks/countdown_seeds.py --seeds 0 1 2 --output examples/benchmarks/countdown_seeds.json

It leaves out the seeds of the base (give several `--bases`) and reinforcement learning. `--table` prints the committed
result as a table without running anything.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1]


def run(script: str, done: Path, *arguments: Any) -> None:
    """Runs one numbered example, unless its output is there."""
    if not done.exists():
        subprocess.run([sys.executable, EXAMPLES / script, *map(str, arguments)], check=True)


def figures_of(base: str, seed: int, work: Path, num_problems: int, length: int) -> dict[str, dict[str, Any]]:
    """Stage (`base`, `palette`, `sft`) -> method -> figures, for one seed."""
    folder = work / f"{Path(base).name}-seed{seed}-L{length}-n{num_problems}"
    palette, sft, results = folder / "palette", folder / "sft", folder / "results"
    run("02_train_vae.py", palette / "config.json", "--base", base, "--output_dir", palette, "--seed", seed)
    run(
        "04_train_sft.py",
        sft / "config.json",
        *("--model", palette, "--output_dir", sft, "--seed", seed, "--num_prefix_tokens", length),
    )
    stages = {"base": Path(base), "palette": palette, "sft": sft}
    found = {}
    for stage, model in stages.items():
        path = results / f"{model.name}-seed{seed}.json"
        run(
            "06_evaluate.py",
            path,
            *("--model", model, "--output_dir", results, "--seed", seed),
            *("--num_problems", num_problems, "--num_prefix_tokens", length),
        )
        found[stage] = json.loads(path.read_text())
    return found


def summarise(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Stage -> method -> per-seed figures with mean and standard deviation; for domains also their control."""
    summary: dict[str, dict[str, Any]] = {}
    for stage in results[0]:
        summary[stage] = {}
        for index, first in enumerate(results[0][stage]["methods"]):
            methods = [result[stage]["methods"][index] for result in results]
            budget = str(results[0][stage]["num_samples"])
            figures = {
                "mean@1": [method["mean_at_1"] for method in methods],
                f"pass@{budget}": [method["pass_at_k"][budget] for method in methods],
                f"maj@{budget}": [method["maj_at_k"][budget] for method in methods],
                "generated_tokens": [method["generated_tokens"] for method in methods],
            }
            domain = first["method"]["domain"]
            if domain is not None:
                figures["control"] = [method["strategies"].get(domain, 0.0) for method in methods]
            summary[stage][first["method"]["name"]] = {
                name: {"seeds": values, "mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
                for name, values in figures.items()
            } | {"strategies": [method["strategies"] for method in methods]}
    return summary


def print_table(report: dict[str, Any]) -> None:
    """One row per base, stage and method."""
    for base, stages in report["bases"].items():
        print(f"\n{base}: {report['num_problems']} test problems, seeds {report['seeds']}, L = {report['length']}")
        for stage, methods in stages.items():
            for name, figures in methods.items():
                cells = [
                    f"{key} {value['mean']:.3f}" + (f" +- {value['std']:.3f}" if value["std"] is not None else "")
                    for key, value in figures.items()
                    if key not in ("strategies", "generated_tokens")
                ]
                print(f"  {stage:8s} {name:24s} {'  '.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=[str(EXAMPLES / "countdown_base")], help="Base folders.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Seeds of VAE, SFT and draws.")
    parser.add_argument("--num_problems", type=int, default=200, help="Test problems.")
    parser.add_argument("--length", type=int, default=8, help="L, in SFT and evaluation.")
    parser.add_argument("--work", type=Path, default=Path("demo_output/seeds"), help="Folder of the runs.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="The result.")
    parser.add_argument("--table", action="store_true", help="Print the committed result; run nothing.")
    args = parser.parse_args()
    if not args.table:
        bases, environment = {}, None
        for base in args.bases:
            results = [figures_of(base, seed, args.work, args.num_problems, args.length) for seed in args.seeds]
            environment = results[0]["sft"]["environment"]
            bases[Path(base).name] = summarise(results)
        report = {
            "task": "countdown, test split",
            "num_problems": args.num_problems,
            "seeds": args.seeds,
            "length": args.length,
            "environment": environment,
            "bases": bases,
        }
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(json.loads(args.output.read_text()))


if __name__ == "__main__":
    main()

"""Reinforcement learning on the demo's task: do latent-guided rollouts leave a better model behind than plain ones?

For every seed (of VAE, SFT, rollouts and draws alike) it trains a palette with example 02 and an SFT start with
example 04, both as they are, and from that one checkpoint runs GRPO and RLOO, each without latents (`plain`) and with
the paper's two schedules, all with the same number of rollouts. Accuracy is measured on the test split *without* a
latent, by greedy decoding and by sampling; draws and domains are measured too, to see what is left of the latent's
meaning. Both algorithms run with the same `beta` (TRL's defaults differ: 0 and 0.05), so only the estimator differs.

Every training is a process with a folder of its own under `--work`. What is finished is not run again, and a broken
run goes on from its last checkpoint to the result of an unbroken one, so more seeds can be added at any time:

    OMP_NUM_THREADS=1 python examples/benchmarks/countdown_rl.py --seeds 0 1 2

It leaves out the seeds of the base and a search for settings. The learning rate was chosen for plain GRPO on seed 100,
which is not reported, by a short look at the validation split (3e-4: slow; 1e-3: a third of the answers run to the
length limit), the number of steps by the time there was. `--start palette` adds plain runs that skip the SFT. The
`-per-prompt` schedules let the guided rollouts of a group share one draw: `two-phase-per-prompt` was added to the
committed result after the others were seen, and ran on a later commit. A run takes two minutes on one free core.
`--table` and `--plot` read the committed result and run nothing.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy import stats

EXAMPLES = Path(__file__).resolve().parents[1]
ALGORITHMS = ("grpo", "rloo")
SCHEDULES = ("plain", "two-phase", "linear-decay")
VARIANTS = ("two-phase-per-prompt", "linear-decay-per-prompt")  # the guided rollouts of a group share one draw
STARTS = ("sft", "palette")  # palette: the base's own weights, which have seen no SFT
HISTORY = {
    "reward": "reward",
    "guided": "latent/guided/reward",
    "unguided": "latent/unguided/reward",
    "zero_variance_groups": "frac_reward_zero_std",
    "entropy": "entropy",
    "mean_length": "completions/mean_length",
    "clipped": "completions/clipped_ratio",
    "sensitivity": "latent/sensitivity",
    "validation": "validation/greedy",
}
NUM_RESAMPLES = 10_000
WASHOUT_RATIO = 0.25  # that of trainers/latent_sensitivity.py


@dataclass(frozen=True)
class Settings:
    """What all runs share."""

    num_steps: int = 72
    prompts_per_step: int = 16
    group_size: int = 8
    learning_rate: float = 6e-4
    beta: float = 0.0
    temperature: float = 1.0
    num_prefix_tokens: int = 8
    num_train_problems: int = 2500
    num_validation_problems: int = 100
    validation_steps: int = 8
    num_test_problems: int = 200
    num_samples: int = 8
    num_control_samples: int = 2


@dataclass(frozen=True)
class Run:
    """One training."""

    seed: int
    algorithm: str
    schedule: str
    start: str = "sft"

    @property
    def name(self) -> str:
        """What the runs of all seeds have in common."""
        name = "no RL" if self.algorithm == "none" else f"{self.algorithm}/{self.schedule}"
        return name + ("" if self.start == "sft" else f"/from {self.start}")

    def folder(self, work: Path) -> Path:
        """Where it lives."""
        return work / f"seed{self.seed}" / self.name.replace("/", "-").replace(" ", "-")


# One training and its evaluation, in a process of their own


def load_example(script: str) -> ModuleType:
    """A numbered example as a module: its name is not one that `import` takes."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), EXAMPLES / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Writes in one stroke, so that a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=indent) + "\n")
    part.replace(path)


def train(run: Run, settings: Settings, folder: Path) -> None:
    """Trains to the end from the last checkpoint, writes the model, and last the history."""
    from datasets import Dataset
    from transformers import TrainerCallback

    from reasoning_palette import trainers
    from reasoning_palette.evaluation import Method, countdown_benchmark, evaluate_palette
    from reasoning_palette.evaluation.countdown import generate_problems

    class ValidationCurve(TrainerCallback):
        """Greedy accuracy without a latent, kept in the log history, which travels with the checkpoints."""

        benchmark = countdown_benchmark("validation", settings.num_validation_problems)
        greedy = Method("greedy, no latent")

        def measure(self, state: Any, model: Any, tokenizer: Any) -> None:
            result = evaluate_palette(model, tokenizer, self.benchmark, [self.greedy], 1, disable_progress_bar=True)
            accuracy = result[self.greedy.name].mean_at_1
            state.log_history.append({"step": state.global_step, HISTORY["validation"]: accuracy})

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                self.measure(state, kwargs["model"], kwargs["processing_class"])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % settings.validation_steps == 0 or state.global_step == state.max_steps:
                self.measure(state, kwargs["model"], kwargs["processing_class"])

    example = load_example("05_train_grpo.py")
    prefix = run.algorithm.upper()
    trainer_class = getattr(trainers, f"Palette{prefix}Trainer")
    config_class = getattr(trainers, f"Palette{prefix}Config")
    options = example.DEMO_SETTINGS | {
        "output_dir": str(folder / "checkpoints"),
        "max_steps": settings.num_steps,
        "num_generations": settings.group_size,
        "per_device_train_batch_size": settings.prompts_per_step * settings.group_size,
        "learning_rate": settings.learning_rate,
        "beta": settings.beta,
        "temperature": settings.temperature,
        "num_prefix_tokens": 0 if run.schedule == "plain" else settings.num_prefix_tokens,
        "latent_schedule": "constant" if run.schedule == "plain" else run.schedule.removesuffix("-per-prompt"),
        "latent_per": "prompt" if run.schedule in VARIANTS else "rollout",
        "seed": run.seed,
        # Every step is a generation, so every checkpoint falls on a boundary and resuming is exact.
        "logging_steps": 4,
        "save_strategy": "steps",
        "save_steps": 24,
        "save_total_limit": 1,
        "disable_tqdm": True,
    }
    problems = generate_problems("train", settings.num_train_problems)
    trainer = trainer_class(
        model=str(folder.parent / run.start),
        reward_funcs=example.countdown_reward,
        args=config_class(**options),
        train_dataset=Dataset.from_list(
            [{"prompt": p.question, "numbers": list(p.numbers), "target": p.target} for p in problems]
        ),
        callbacks=[ValidationCurve()],
    )
    trainer.train(resume_from_checkpoint=any((folder / "checkpoints").glob("checkpoint-*")) or None)
    trainer.save_model(str(folder / "model"))
    write_json(folder / "history.json", trainer.state.log_history)


def evaluate(model_folder: Path, run: Run, settings: Settings) -> dict[str, Any]:
    """The test split without a latent, greedy and sampled; with draws from the prior and from each domain, greedy."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from reasoning_palette.evaluation import Method, countdown_benchmark, evaluate_palette

    model = AutoModelForCausalLM.from_pretrained(model_folder, trust_remote_code=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=True)
    benchmark = countdown_benchmark("test", settings.num_test_problems)
    drawn = partial(Method, prefix="palette", num_prefix_tokens=settings.num_prefix_tokens)
    methods = [Method("greedy"), Method("sampling", temperature=settings.temperature), drawn("prior")]
    domains = [drawn(f"domain {name}", domain=name) for name in sorted(model.palette.domains)]
    measure = partial(evaluate_palette, model, tokenizer, benchmark, seed=run.seed, disable_progress_bar=True)
    result = measure(methods, settings.num_samples).to_dict()
    result["methods"] += measure(domains, settings.num_control_samples).to_dict()["methods"]
    for method in result["methods"]:
        del method["latent_codes"]
    return result


def work_on(run: Run, settings: Settings, work: Path) -> None:
    """What the process of one run does. A run without an algorithm is its start, measured before training."""
    folder = run.folder(work)
    if run.algorithm == "none":
        result = {"evaluation": evaluate(folder.parent / run.start, run, settings)}
    else:
        if not (folder / "history.json").exists():
            train(run, settings, folder)
        history = json.loads((folder / "history.json").read_text())
        result = {"evaluation": evaluate(folder / "model", run, settings), "history": history}
    write_json(folder / "result.json", {"run": asdict(run), "settings": asdict(settings)} | result)


# All runs


def run_example(script: str, done: Path, **arguments: Any) -> None:
    """Runs one numbered example, unless its output is there."""
    if not done.exists():
        flags = [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
        subprocess.run([sys.executable, EXAMPLES / script, *flags], check=True)


def prepare(seed: int, work: Path, base: str, length: int) -> None:
    """Palette and SFT start of one seed."""
    palette, sft = work / f"seed{seed}" / "palette", work / f"seed{seed}" / "sft"
    run_example("02_train_vae.py", palette / "config.json", base=base, output_dir=palette, seed=seed)
    run_example(
        "04_train_sft.py",
        sft / "config.json",
        **{"model": palette, "output_dir": sft, "seed": seed, "num_prefix_tokens": length},
    )


def result_of(run: Run, settings: Settings, work: Path) -> dict[str, Any]:
    """The result of one run, from its folder or from a process that is started for it.

    Raises:
        ValueError: If the folder holds a run with other settings.
    """
    folder = run.folder(work)
    wanted = {"run": asdict(run), "settings": asdict(settings)}
    if (folder / "wanted.json").exists():
        found = json.loads((folder / "wanted.json").read_text())
        if found != wanted:
            raise ValueError(f"{folder} holds a run with other settings: {found}. Give another `--work`.")
    else:
        write_json(folder / "wanted.json", wanted)
    if not (folder / "result.json").exists():
        print(f"seed {run.seed}: {run.name}", flush=True)
        with (folder / "log.txt").open("a") as log:
            command = [sys.executable, __file__, "--work", work, "--worker", json.dumps(wanted)]
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return json.loads((folder / "result.json").read_text())


# Figures


def t_interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Mean and its interval under Student's t over seeds; no interval for one value.

    Args:
        values (`Sequence[float]`): One value per seed.
        confidence (`float`, *optional*, defaults to 0.95): Coverage.

    Returns:
        `dict[str, Any]`: `seeds`, `mean` and `interval` (lower and upper end, or None).
    """
    mean = float(np.mean(values))
    interval = None
    if len(values) > 1:
        half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
        interval = [mean - float(half), mean + float(half)]
    return {"seeds": list(values), "mean": mean, "interval": interval}


def bootstrap_interval(differences: np.ndarray, confidence: float = 0.95, seed: int = 0) -> list[float]:
    """Percentile bootstrap over problems of a mean paired difference; it leaves out the spread over seeds.

    Args:
        differences (`np.ndarray`): (problems,), each the mean over seeds.
        confidence (`float`, *optional*, defaults to 0.95): Coverage.
        seed (`int`, *optional*, defaults to 0): Seed of the resampling.
    """
    chosen = np.random.default_rng(seed).integers(len(differences), size=(NUM_RESAMPLES, len(differences)))
    tail = 50 * (1 - confidence)
    return np.percentile(differences[chosen].mean(1), [tail, 100 - tail]).tolist()


def figures_of(result: dict[str, Any]) -> dict[str, float]:
    """The figures of one evaluation that the table shows, and the control of each domain."""
    methods = {method["method"]["name"]: method for method in result["evaluation"]["methods"]}
    budget = str(result["settings"]["num_samples"])
    figures = {
        "greedy": methods["greedy"]["mean_at_1"],
        "sampled mean@1": methods["sampling"]["mean_at_1"],
        f"sampled pass@{budget}": methods["sampling"]["pass_at_k"][budget],
        "prior mean@1": methods["prior"]["mean_at_1"],
        f"prior pass@{budget}": methods["prior"]["pass_at_k"][budget],
    }
    control = {
        f"control {name}": method["strategies"].get(method["method"]["domain"], 0.0)
        for name, method in ((method["method"]["domain"], method) for method in methods.values())
        if name is not None
    }
    return figures | {"control": float(np.mean(list(control.values())))} | control


def strategies_of(result: dict[str, Any], name: str) -> dict[str, float]:
    """Shares of the strategies under one method."""
    return next(m["strategies"] for m in result["evaluation"]["methods"] if m["method"]["name"] == name)


def correct_of(result: dict[str, Any], name: str) -> list[float]:
    """Share of correct samples of each problem under one method."""
    method = next(m for m in result["evaluation"]["methods"] if m["method"]["name"] == name)
    return [count / result["settings"]["num_samples"] for count in method["num_correct"]]


def curves_of(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Quantity -> steps and, per seed, values; a quantity that no seed logged is left out."""
    curves = {}
    for name, key in HISTORY.items():
        points = [{entry["step"]: entry[key] for entry in result["history"] if key in entry} for result in results]
        steps = sorted(set.intersection(*(set(seed) for seed in points)))
        if steps:
            curves[name] = {"steps": steps, "seeds": [[round(seed[step], 4) for step in steps] for seed in points]}
    return curves


def summarise(results: list[dict[str, Any]], plain: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Figures of one method over seeds; beside plain training of the same seeds, also the paired differences."""
    figures = [figures_of(result) for result in results]
    summary: dict[str, Any] = {
        "figures": {name: t_interval([seed[name] for seed in figures]) for name in figures[0]},
        "strategies": {
            method: {
                name: float(np.mean([strategies_of(result, method).get(name, 0.0) for result in results]))
                for name in strategies_of(results[0], method)
            }
            for method in ("greedy", "sampling", "prior")
        },
    }
    if plain is not None:
        baseline = [figures_of(result) for result in plain]
        summary["minus_plain"] = {
            name: t_interval([ours[name] - theirs[name] for ours, theirs in zip(figures, baseline, strict=True)])
            for name in figures[0]
        }
        for figure, method in (("greedy", "greedy"), ("sampled mean@1", "sampling")):
            ours, theirs = (np.mean([correct_of(result, method) for result in each], 0) for each in (results, plain))
            summary["minus_plain"][figure]["interval_over_problems"] = bootstrap_interval(ours - theirs)
    if "history" in results[0]:
        summary["curves"] = curves_of(results)
    return summary


def washout(methods: dict[str, dict[str, Any]], seeds: list[int], num_steps: int) -> list[dict[str, Any]]:
    """Guided runs, with what was left of the latent's effect half-way and what they gained over plain training.

    Returns:
        `list[dict[str, Any]]`: `run`, `seed`, `left` (sensitivity at the last measurement of the first half as a share
        of that before training; below the trainers' `WASHOUT_RATIO` they warn) and `greedy_minus_plain`.
    """
    found = []
    for name, method in methods.items():
        curve = method.get("curves", {}).get("sensitivity")
        if curve is None or "minus_plain" not in method:
            continue
        half = max(index for index, step in enumerate(curve["steps"]) if 2 * step <= num_steps)
        for seed, values, gain in zip(seeds, curve["seeds"], method["minus_plain"]["greedy"]["seeds"], strict=True):
            left = values[half] / values[0]
            found.append({"run": name, "seed": seed, "left": round(left, 4), "greedy_minus_plain": round(gain, 4)})
    return sorted(found, key=lambda row: row["left"])


def report_of(results: dict[Run, dict[str, Any]], settings: Settings, seeds: list[int]) -> dict[str, Any]:
    """The committed result."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run, result in results.items():
        by_name.setdefault(run.name, []).append(result)
    methods = {}
    for name, group in by_name.items():
        algorithm, *schedule = name.split("/")
        guided = schedule and schedule[0] != "plain"
        methods[name] = summarise(group, by_name.get(f"{algorithm}/plain") if guided else None)
        methods[name]["commits"] = sorted({result["evaluation"]["environment"]["commit"] for result in group})
    environments = [result["evaluation"]["environment"] for result in results.values()]
    return {
        "task": "countdown, test split, trained with reinforcement learning",
        "seeds": seeds,
        "settings": asdict(settings),
        "rollouts_per_run": settings.num_steps * settings.prompts_per_step * settings.group_size,
        "environment": environments[0],
        "methods": methods,
        "washout": washout(methods, seeds, settings.num_steps),
    }


def compact(report: dict[str, Any]) -> str:
    """JSON with one line per list of numbers."""
    text = json.dumps(report, indent=1)
    return re.sub(r"\[[-+\d\s,.e]+\]", lambda match: json.dumps(json.loads(match.group())), text) + "\n"


# Table and plot


def cell(figure: dict[str, Any], signed: bool = False) -> str:
    """`mean [lower, upper]`."""
    style = "{:+.3f}" if signed else "{:.3f}"
    text = style.format(figure["mean"])
    return text if figure["interval"] is None else text + " [{}, {}]".format(*map(style.format, figure["interval"]))


def table(report: dict[str, Any]) -> str:
    """Accuracy without a latent and control per method, then the paired differences to plain training, as Markdown."""
    budget = report["settings"]["num_samples"]
    columns = ["greedy", "sampled mean@1", f"sampled pass@{budget}", f"prior pass@{budget}", "control"]
    lines = [
        f"{report['settings']['num_test_problems']} test problems, seeds {report['seeds']}, "
        f"{report['rollouts_per_run']} rollouts per run; mean [95% interval over seeds]\n",
        f"| method | {' | '.join(columns)} | strategies, sampled |",
        "| --- " * (len(columns) + 2) + "|",
    ]
    for name, method in report["methods"].items():
        shares = " / ".join(f"{share:.0%} {strategy}" for strategy, share in method["strategies"]["sampling"].items())
        cells = [cell(method["figures"][column]) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} | {shares} |")
    lines += [
        "\n| minus plain, same seed | greedy | over problems | sampled mean@1 | over problems | "
        f"sampled pass@{budget} |",
        "| --- " * 6 + "|",
    ]
    for name, method in report["methods"].items():
        if (difference := method.get("minus_plain")) is not None:
            cells = []
            for column in columns[:3]:
                cells.append(cell(difference[column], signed=True))
                if "interval_over_problems" in difference[column]:
                    cells.append("[{:+.3f}, {:+.3f}]".format(*difference[column]["interval_over_problems"]))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "\n| guided runs, by the latent's effect half-way | runs | greedy minus plain, mean |",
        "| --- " * 3 + "|",
    ]
    for label, survived in ((f"below {WASHOUT_RATIO} of before RL", False), ("above", True)):
        gains = [row["greedy_minus_plain"] for row in report["washout"] if (row["left"] >= WASHOUT_RATIO) == survived]
        if gains:
            lines.append(f"| {label} | {len(gains)} | {np.mean(gains):+.3f} |")
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Learning curves: validation accuracy and training reward, one column per algorithm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Okabe and Ito's colours, which colour-blind readers can tell apart; markers for print in grey.
    styles = {
        "plain": ("#000000", "o", "plain (no latents)"),
        "two-phase": ("#D55E00", "s", "two-phase"),
        "linear-decay": ("#0072B2", "^", "linear decay"),
        "two-phase-per-prompt": ("#CC79A7", "v", "two-phase, one draw per prompt"),
        "linear-decay-per-prompt": ("#009E73", "d", "linear decay, one draw per prompt"),
    }
    rows = {
        "validation": f"accuracy without a latent\n({report['settings']['num_validation_problems']} validation "
        "problems, greedy)",
        "reward": "mean training reward\n(share of correct rollouts)",
    }
    algorithms = [name for name in ALGORITHMS if any(key.startswith(f"{name}/") for key in report["methods"])]
    plt.rcParams.update({"font.size": 11})
    figure, axes = plt.subplots(
        len(rows), len(algorithms), figsize=(1.6 + 4.4 * len(algorithms), 7), sharex=True, sharey="row", squeeze=False
    )
    for column, algorithm in enumerate(algorithms):
        for row, (quantity, label) in enumerate(rows.items()):
            axis = axes[row][column]
            for schedule, (colour, marker, name) in styles.items():
                curve = report["methods"].get(f"{algorithm}/{schedule}", {}).get("curves", {}).get(quantity)
                if curve is None:
                    continue
                values = np.array(curve["seeds"])
                axis.fill_between(curve["steps"], values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
                axis.plot(curve["steps"], values.mean(0), color=colour, marker=marker, markersize=4, label=name)
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            if row == 0:
                axis.set_title(algorithm.upper())
            if row == len(rows) - 1:
                rollouts = report["settings"]["prompts_per_step"] * report["settings"]["group_size"]
                axis.set_xlabel(f"training step ({rollouts} rollouts each)")
            if column == 0:
                axis.set_ylabel(label)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.965), ncols=len(labels))
    figure.suptitle(f"Countdown: mean of {len(report['seeds'])} seeds, bands from lowest to highest seed", fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(EXAMPLES / "countdown_base"), help="Base folder.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Seeds of everything but the base.")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), choices=SCHEDULES + VARIANTS)
    parser.add_argument("--start", nargs="+", default=["sft"], choices=STARTS, help="'palette' is plain RL, no SFT.")
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help="Default: %(default)s.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at the same time.")
    parser.add_argument("--work", type=Path, default=Path("demo_output/rl"), help="Folder of the runs.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="The result.")
    parser.add_argument("--table", action="store_true", help="Print the committed result; run nothing.")
    parser.add_argument("--plot", action="store_true", help="Draw the committed result beside it; run nothing.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        wanted = json.loads(args.worker)
        work_on(Run(**wanted["run"]), Settings(**wanted["settings"]), args.work)
        return
    if not args.table and not args.plot:
        settings = Settings(**{name: getattr(args, name) for name in asdict(Settings())})
        runs = [Run(seed, "none", "plain", start) for seed in args.seeds for start in args.start]
        # Seed by seed, so that what is there after an interruption is whole seeds.
        runs += [
            Run(seed, algorithm, schedule, start)
            for seed in args.seeds
            for start in args.start
            for algorithm in args.algorithms
            for schedule in (args.schedules if start == "sft" else ["plain"])
        ]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda seed: prepare(seed, args.work, args.base, args.num_prefix_tokens), args.seeds))
            found = list(pool.map(lambda run: result_of(run, settings, args.work), runs))
        report = report_of(dict(zip(runs, found, strict=True)), settings, args.seeds)
        args.output.write_text(compact(report))
    report = json.loads(args.output.read_text())
    if not args.plot or args.table:
        print(table(report))
    if not args.table or args.plot:
        plot(report, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()

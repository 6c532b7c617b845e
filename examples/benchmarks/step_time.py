"""What latents cost per training step: each palette trainer against the stock TRL trainer, step by step in turns.

Both trainers run TRL's real loop on the same model in one process, each in a thread of its own, and hand over to each
other after every step (generation, scoring, update, logging), in an order that changes from pair to pair: whatever the
machine does beside, it does to both. The figure is the median over pairs of (palette step / stock step), with the
upper bound of its one-sided 95% bootstrap interval. Two questions per trainer:

- `no_prefix`: latents configured, but no rollout or document guided (for SFT: L = 0), against stock on the same data;
- `prefix_8`: L = 8 everywhere, against stock on prompts that are 8 real tokens longer.

Completions have a fixed length, so that both sides compute on equally many tokens. About 15 minutes on one core:

    OMP_NUM_THREADS=1 python examples/benchmarks/step_time.py --output examples/benchmarks/step_time.json

It leaves out several processes, vLLM and accelerators; `--hidden_size` and `--num_layers` set the model.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from speed_models import make_base, with_palette
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from reasoning_palette.evaluation.paired_ratios import paired_ratios
from reasoning_palette.evaluation.result import describe_environment
from reasoning_palette.trainers import (
    PaletteGRPOConfig,
    PaletteGRPOTrainer,
    PaletteRLOOConfig,
    PaletteRLOOTrainer,
    PaletteSFTConfig,
    PaletteSFTTrainer,
)

PREFIX = 8
WARM_UP_STEPS = 2
TRAINERS = {
    "grpo": (GRPOConfig, GRPOTrainer, PaletteGRPOConfig, PaletteGRPOTrainer),
    "rloo": (RLOOConfig, RLOOTrainer, PaletteRLOOConfig, PaletteRLOOTrainer),
    "sft": (SFTConfig, SFTTrainer, PaletteSFTConfig, PaletteSFTTrainer),
}
QUESTIONS = {"no_prefix": 0, "prefix_8": PREFIX}  # tokens by which the stock trainer's prompts are longer


class Turns(TrainerCallback):
    """Lets two training loops take their steps in turns and times each step, from one beginning to the next."""

    def __init__(self, shared: "Schedule", side: str) -> None:
        self.shared, self.side = shared, side
        self.seconds: list[float] = []
        self._begun: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_step()
        self.shared.wait_for(self.side)
        self._begun = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_step()

    def _end_step(self) -> None:
        if self._begun is not None:
            self.seconds.append(time.perf_counter() - self._begun)
            self._begun = None
            self.shared.pass_on()


class Schedule:
    """Whose step it is: A B, B A, A B, ..."""

    def __init__(self, num_pairs: int) -> None:
        pairs = [["stock", "palette"], ["palette", "stock"]]
        self._order = [side for pair in range(num_pairs) for side in pairs[pair % 2]]
        self._position = 0
        self._changed = threading.Condition()

    def wait_for(self, side: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._order[self._position] == side)

    def pass_on(self) -> None:
        with self._changed:
            self._position = min(self._position + 1, len(self._order) - 1)
            self._changed.notify_all()


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    names = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(vocab_size - 3))]
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=512
    )


def make_model(args: argparse.Namespace) -> Any:
    return make_base(args.hidden_size, args.num_layers, args.vocab_size, args.seed, max_positions=512)


def make_dataset(args: argparse.Namespace, is_sft: bool, longer: int) -> Dataset:
    generator = torch.Generator().manual_seed(args.seed)

    def words(count: int) -> str:
        return " ".join(f"w{n}" for n in torch.randint(args.vocab_size - 3, (count,), generator=generator).tolist())

    rows = [{"prompt": words(args.prompt_length + longer)} for _ in range(256)]
    if is_sft:
        rows = [{**row, "completion": " " + words(args.completion_length)} for row in rows]
    return Dataset.from_list(rows)


def make_trainer(args: argparse.Namespace, name: str, question: str, is_palette: bool, callback: Turns) -> Any:
    stock_config, stock, palette_config, palette = TRAINERS[name]
    longer = 0 if is_palette else QUESTIONS[question]
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": args.pairs + WARM_UP_STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-5,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    if name != "sft":
        settings |= {
            "num_generations": 8,
            "beta": 0.0,
            "max_completion_length": args.completion_length,
            "generation_kwargs": {"min_new_tokens": args.completion_length},
        }
    model: Any = make_model(args)
    tokenizer = make_tokenizer(args.vocab_size)
    if is_palette:
        model = with_palette(model, tokenizer=tokenizer)
        settings["num_prefix_tokens"] = PREFIX
        if name == "sft":
            settings["num_prefix_tokens"] = PREFIX if question == "prefix_8" else 0
        else:
            settings |= {"latent_schedule": "constant", "latent_fraction": float(question == "prefix_8")}
    keywords: dict[str, Any] = {
        "model": model,
        "args": (palette_config if is_palette else stock_config)(**settings),
        "train_dataset": make_dataset(args, name == "sft", longer),
        "processing_class": tokenizer,
        "callbacks": [callback],
    }
    if name != "sft":
        keywords["reward_funcs"] = lambda completion_ids, **columns: [float(sum(ids) % 97) for ids in completion_ids]
    return (palette if is_palette else stock)(**keywords)


def measure(args: argparse.Namespace, name: str, question: str) -> dict[str, Any]:
    """Steps in turns, and what they say."""
    schedule = Schedule(args.pairs + WARM_UP_STEPS)
    callbacks = {side: Turns(schedule, side) for side in ("stock", "palette")}
    trainers = [make_trainer(args, name, question, side == "palette", callbacks[side]) for side in callbacks]
    threads = [threading.Thread(target=trainer.train) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stock, palette = (callbacks[side].seconds[WARM_UP_STEPS:] for side in ("stock", "palette"))
    if len(stock) != args.pairs or len(palette) != args.pairs:
        raise RuntimeError(
            f"{name}, {question}: {len(stock)} and {len(palette)} steps, not {args.pairs}: a run failed."
        )
    return {
        **paired_ratios(palette, stock, args.seed),
        "ratio_of_totals": sum(palette) / sum(stock),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="+", default=["grpo", "rloo", "sft"], choices=list(TRAINERS))
    parser.add_argument("--pairs", type=int, default=24, help="Pairs of steps per question.")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--num_layers", type=int, default=8)
    parser.add_argument("--vocab_size", type=int, default=16_000)
    parser.add_argument("--prompt_length", type=int, default=64, help="Tokens.")
    parser.add_argument("--completion_length", type=int, default=32, help="Tokens.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="The result.")
    args = parser.parse_args()
    results = {name: {question: measure(args, name, question) for question in QUESTIONS} for name in args.trainers}
    for name, questions in results.items():
        for question, figures in questions.items():
            print(
                f"{name:5s} {question:10s} stock {figures['theirs']:.2f} s  palette {figures['ours']:.2f} s  median "
                f"ratio {figures['median_ratio']:.4f}  upper 95% "
                f"{figures['upper_95']:.4f}  totals {figures['ratio_of_totals']:.4f}"
            )
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    report = {
        "settings": settings,
        "num_parameters": make_model(args).num_parameters(),
        "results": results,
        "environment": describe_environment(),
    }
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

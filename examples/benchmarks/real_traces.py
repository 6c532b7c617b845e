"""The VAE on real traces: how well do math, code and question answering separate in latents it has not seen?

Runs the numbered examples on GSM8K, MBPP and CommonsenseQA rationales: 01 makes a BPE tokenizer and a small base from
the training texts, 02 trains the palette on them, 03 maps and probes the held-out traces. MBPP has no split of its own
here, so every fifth row is held out. Ten minutes on two cores, most of it for the base:

    python examples/benchmarks/real_traces.py --data folder

The folder holds `gsm8k_train`, `gsm8k_test_a`, `mbpp_a`, `csqa_cose_train` and `csqa_cose_dev_a`, each `.jsonl.gz`,
with columns question, reasoning, answer and domain. Figures go to `real_traces.json`, the map to `real_traces.png`
beside this script. It leaves out everything after the VAE.
"""

import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser

HERE = Path(__file__).resolve().parent
HELD_OUT_EVERY = 5


@dataclass
class RealTracesArguments:
    """The run."""

    data: str = field(metadata={"help": "Folder of the trace files."})
    output_dir: str = field(default="real_output", metadata={"help": "Folder of base, palette and maps."})
    hidden_size: int = field(default=256, metadata={"help": "H of the base."})
    vocab_size: int = field(default=8192, metadata={"help": "Size of the BPE vocabulary."})
    base_steps: int = field(default=400, metadata={"help": "Training steps of the base."})
    vae_steps: int = field(default=2000, metadata={"help": "Training steps of the VAE."})
    beta: float = field(default=0.02, metadata={"help": "Weight of the KL divergence."})
    seed: int = field(default=0, metadata={"help": "Seed of everything."})


def split_mbpp(source: Path, folder: Path) -> tuple[Path, Path]:
    """Writes every fifth row to one file and the rest to another; returns training and held-out file."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        lines = list(file)
    paths = folder / "mbpp_train.jsonl.gz", folder / "mbpp_held_out.jsonl.gz"
    for path, held_out in zip(paths, (False, True), strict=True):
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(line for index, line in enumerate(lines) if (index % HELD_OUT_EVERY == 0) == held_out)
    return paths


def run(script: str, **arguments: Any) -> None:
    """Runs a numbered example in a process of its own."""
    command = [sys.executable, str(HERE.parent / script)]
    for name, value in arguments.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    subprocess.run(command, check=True)


def main(args: RealTracesArguments) -> None:
    data, output = Path(args.data), Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    mbpp_train, mbpp_held_out = split_mbpp(data / "mbpp_a.jsonl.gz", output)
    training = [data / "gsm8k_train.jsonl.gz", mbpp_train, data / "csqa_cose_train.jsonl.gz"]
    held_out = [data / "gsm8k_test_a.jsonl.gz", mbpp_held_out, data / "csqa_cose_dev_a.jsonl.gz"]

    run(
        "01_train_base.py",
        traces=training,
        output_dir=output / "base",
        hidden_size=args.hidden_size,
        vocab_size=args.vocab_size,
        max_steps=args.base_steps,
        seed=args.seed,
    )
    run(
        "02_train_vae.py",
        base=output / "base",
        traces=training,
        eval_traces=held_out,
        output_dir=output / "palette",
        max_steps=args.vae_steps,
        beta=args.beta,
        metrics_file=output / "vae.json",
        seed=args.seed,
    )
    run(
        "03_map_latents.py",
        palette=output / "palette",
        traces=held_out,
        output_dir=output / "maps",
        seed=args.seed,
    )
    config = {name: value for name, value in asdict(args).items() if name not in ("data", "output_dir")}
    result = {
        "config": config,
        "training_traces": [path.name for path in training],
        "held_out_traces": [path.name for path in held_out],
        "vae": json.loads((output / "vae.json").read_text()),
        "held_out_probe": json.loads((output / "maps" / "latent_map.json").read_text()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    (HERE / "real_traces.json").write_text(json.dumps(result, indent=2) + "\n")
    shutil.copyfile(output / "maps" / "latent_map.png", HERE / "real_traces.png")


if __name__ == "__main__":
    main(HfArgumentParser(RealTracesArguments).parse_args_into_dataclasses()[0])

"""How long a full palette checkpoint takes to load, against its base's checkpoint, and how large its palette file is.

Each load is a fresh process, base and palette in turns, both through `AutoModelForCausalLM.from_pretrained` with the
files in the page cache; the palette's with `trust_remote_code=True` and the code of its own folder. `load` is the time
of that call alone, `process` that of the whole process, imports and all. About five minutes:

    python examples/benchmarks/load_time.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open
from speed_models import make_base, with_palette

from reasoning_palette.evaluation.paired_ratios import paired_ratios
from reasoning_palette.evaluation.result import describe_environment

WARM_UP_TURNS = 1
# Without the package in sight: what a user of the Hub runs.
LOAD = """
import sys, time
sys.modules["reasoning_palette"] = None
from transformers import AutoModelForCausalLM
start = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == "palette")
print(time.perf_counter() - start)
assert type(model).__name__ == {"base": "Qwen3ForCausalLM", "palette": "PaletteQwen3ForCausalLM"}[sys.argv[2]]
"""


def load(folder: Path, side: str) -> tuple[float, float]:
    """Seconds of the load, and of the process."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder / side), side], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"The {side} did not load:\n{done.stderr}")
    return float(done.stdout.split()[-1]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--hidden_size", type=int, default=1024)
    parser.add_argument("--num_layers", type=int, default=12)
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="The result.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_base(args.hidden_size, args.num_layers, args.vocab_size, args.seed)
        base.save_pretrained(folder / "base")
        model = with_palette(base, base_model_name_or_path=str(folder / "base"))
        model.save_pretrained(folder / "palette")
        model.save_pretrained(folder / "palette_only", palette_only=True)
        num_bytes = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
        palette_file = folder / "palette_only" / "palette.safetensors"
        with safe_open(palette_file, framework="pt") as file:
            tensor_bytes = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118 (no mapping)
        file_bytes = palette_file.stat().st_size
        found: dict[str, list[tuple[float, float]]] = {"base": [], "palette": []}
        for turn in range(WARM_UP_TURNS + args.turns):
            for side in ("base", "palette") if turn % 2 else ("palette", "base"):
                found[side].append(load(folder, side))
    results: dict[str, Any] = {}
    for index, figure in enumerate(("load", "process")):
        ours, theirs = ([times[index] for times in found[side][WARM_UP_TURNS:]] for side in ("palette", "base"))
        results[figure] = paired_ratios(ours, theirs, args.seed)
        print(
            f"{figure:8s} median ratio {results[figure]['median_ratio']:.3f}  upper 95% bound "
            f"{results[figure]['upper_95']:.3f}  ({results[figure]['ours']:.3f} s against "
            f"{results[figure]['theirs']:.3f} s)"
        )
    print(f"base: {num_bytes:,} bytes; palette.safetensors: {file_bytes / tensor_bytes:.4f} of its tensors' bytes")
    report = {
        "settings": {key: value for key, value in vars(args).items() if key != "output"},
        "base_bytes": num_bytes,
        "palette_bytes": {"file": file_bytes, "tensors": tensor_bytes},
        "results": results,
        "environment": describe_environment(),
    }
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

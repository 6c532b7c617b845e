"""Peak memory of real training steps against the estimates of `hub_configs/estimates`.

Each case trains a small base with the project's SFT or GRPO trainer for two steps in a process of its own, on a CPU,
under PyTorch's profiler; the peak is the most bytes that the allocator had handed out at a time. (The process's
resident memory says little: the C library keeps what was freed.) Ten minutes on one busy core:

    python examples/benchmarks/preset_memory.py

With images, which need torchvision:

    python examples/benchmarks/preset_memory.py --cases "vision sft" "vision sft, no checkpointing" "vision grpo" \
        --output examples/benchmarks/preset_memory_vision.json

The vocabulary is small on purpose: TRL's LM head works in place on an accelerator, and on a CPU makes copies of its
logits, which would drown the rest. It leaves out what only an accelerator has, and sharding.
"""

import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from PIL import Image
from transformers import (
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from reasoning_palette.evaluation.countdown_tokenizer import build_tokenizer
from reasoning_palette.evaluation.shapes_processor import (
    MERGE_SIZE,
    PATCH_SIZE,
    TEMPORAL_PATCH_SIZE,
    build_processor,
)
from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteForVision2Seq, PaletteVAE
from reasoning_palette.trainers import PaletteGRPOConfig, PaletteGRPOTrainer, PaletteSFTConfig, PaletteSFTTrainer

ROOT = Path(__file__).parents[2]
GIB = 2**30
BASE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 1024,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
COMMON = {"gradient_accumulation_steps": 2, "max_steps": 2, "save_strategy": "no", "latent_sensitivity_steps": 0}
SFT = {**COMMON, "per_device_train_batch_size": 2, "max_length": 256}
GRPO = {**COMMON, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 16, "beta": 0.0}
PROMPT_LENGTH = 112
CASES = {
    "sft": SFT,
    "sft, no checkpointing": {**SFT, "gradient_checkpointing": False},
    "sft, float32": {**SFT, "bf16": False},
    "sft, float32, no checkpointing": {**SFT, "bf16": False, "gradient_checkpointing": False},
    "grpo": GRPO,
    "grpo, reference model, no checkpointing": {**GRPO, "beta": 0.04, "gradient_checkpointing": False},
}
TOWER = {
    "depth": 6,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_heads": 8,
    "out_hidden_size": 512,
    "patch_size": PATCH_SIZE,
    "spatial_merge_size": MERGE_SIZE,
    "temporal_patch_size": TEMPORAL_PATCH_SIZE,
    "deepstack_visual_indexes": [1, 3],
}
SIDE = 160  # of images in pixels, the most that their processor leaves as it is
VISION_CASES = {
    "vision sft": SFT,
    "vision sft, no checkpointing": {**SFT, "gradient_checkpointing": False},
    "vision grpo": GRPO,
}
SETTINGS = {**CASES, **VISION_CASES}


@dataclass
class MemoryArguments:
    """Which cases."""

    cases: list[str] = field(
        default_factory=lambda: list(CASES),
        metadata={"help": "Names of cases; those with images are not among the default."},
    )
    child: bool = field(default=False, metadata={"help": "Run the one case here and print its peak in bytes."})
    output: str = field(
        default="examples/benchmarks/preset_memory.json", metadata={"help": "Where to write the figures."}
    )


def training_arguments(case: str, folder: str) -> Any:
    """The config of a case."""
    common = {"output_dir": folder, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "optim": "adamw_torch"}
    config_class = PaletteSFTConfig if "sft" in case else PaletteGRPOConfig
    return config_class(**common, **SETTINGS[case])


def base_config(case: str) -> PreTrainedConfig:
    """The config of a case's base."""
    if case not in VISION_CASES:
        return Qwen3Config(**BASE)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    return Qwen3VLConfig(text_config={**BASE, "rope_parameters": rope}, vision_config=TOWER, tie_word_embeddings=True)


def palette_model(case: str) -> PreTrainedModel:
    """A random base with a palette, and with the tokenizer or processor of a demo."""
    config = base_config(case)
    processor = build_processor() if case in VISION_CASES else build_tokenizer()
    tokenizer = getattr(processor, "tokenizer", processor)
    text_config = config.get_text_config()
    text_config.pad_token_id, text_config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    text_config.bos_token_id = None
    palette = PaletteVAE(text_config.hidden_size)
    palette.trained.fill_(True)
    if case not in VISION_CASES:
        return PaletteForCausalLM.from_base(Qwen3ForCausalLM(config), palette=palette, tokenizer=tokenizer)
    for name in ("image", "video", "vision_start", "vision_end"):
        setattr(config, f"{name}_token_id", getattr(processor, f"{name}_token_id"))
    base = Qwen3VLForConditionalGeneration(config)
    return PaletteForVision2Seq.from_base(base, palette=palette, tokenizer=processor)


def training_row(case: str, args: Any) -> dict[str, Any]:
    """A row that is as long as the arguments allow."""
    word = " the" if case in VISION_CASES else " yes"
    prompt, completion = "numbers", word * (args.max_length if "sft" in case else 0)
    if "grpo" in case:
        prompt = word.lstrip() + word * (PROMPT_LENGTH - 1)
    row: dict[str, Any] = {"prompt": prompt, **({"completion": completion} if completion else {})}
    if case not in VISION_CASES:
        return row
    roles = {"prompt": "user", "completion": "assistant"}
    messages = {name: [{"role": roles[name], "content": text}] for name, text in row.items()}
    return {**messages, "images": [Image.new("RGB", (SIDE, SIDE))]}


def by_position(completions: list[str], **columns: Any) -> list[float]:
    """A reward that differs within a group."""
    return [float(position) for position in range(len(completions))]


def peak_of_case(case: str) -> int:
    """Trains, and returns the most bytes held at a time."""
    torch.manual_seed(0)
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        model = palette_model(case)
        args = training_arguments(case, folder)
        rows = Dataset.from_list([training_row(case, args)] * 16)
        if "sft" in case:
            PaletteSFTTrainer(model, args, train_dataset=rows).train()
        else:
            PaletteGRPOTrainer(model, by_position, args, train_dataset=rows).train()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def estimated_gib(case: str) -> float:
    """The peak of a case by the estimates."""
    if str(ROOT / "hub_configs") not in sys.path:
        sys.path.insert(0, str(ROOT / "hub_configs"))
    from estimates.memory import training_memory
    from estimates.preset_arguments import palette_bytes
    from estimates.training_setup import setup_of
    from estimates.vision_tower import largest_image

    config = base_config(case)
    image = largest_image(config, SIDE**2) if case in VISION_CASES else None
    with tempfile.TemporaryDirectory() as folder:
        setup = setup_of(training_arguments(case, folder), PROMPT_LENGTH, image=image)
    return training_memory(config, setup, palette_bytes(PaletteVAE(BASE["hidden_size"])))["peak"]


def measured_and_estimated(case: str) -> dict[str, float]:
    """Both peaks of a case in GiB, and their ratio."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", "--cases", case]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The case {case!r} failed:\n{done.stderr[-4000:]}")
    measured = int(done.stdout.splitlines()[-1]) / GIB
    estimated = estimated_gib(case)
    return {
        "measured_gib": round(measured, 4),
        "estimated_gib": round(estimated, 4),
        "measured_over_estimated": round(measured / estimated, 3),
    }


def main(args: MemoryArguments) -> None:
    if args.child:
        print(peak_of_case(args.cases[0]))
        return
    result: dict[str, Any] = {"base": BASE, "prompt_length": PROMPT_LENGTH, "cases": {}}
    if not VISION_CASES.keys().isdisjoint(args.cases):
        result["tower"] = {**TOWER, "side_of_images": SIDE}
    for case in args.cases:
        result["cases"][case] = {**SETTINGS[case], **measured_and_estimated(case)}
        print(case, result["cases"][case])
    result["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
    result["hardware"] = f"{platform.machine()}, {os.cpu_count()} cores"
    Path(args.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(HfArgumentParser(MemoryArguments).parse_args_into_dataclasses()[0])

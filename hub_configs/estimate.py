"""Estimates memory and time of a preset, computed from its arguments and from its base's config; nothing is loaded.

    python hub_configs/estimate.py --config hub_configs/qwen3-1.7b/grpo.yaml
    python hub_configs/estimate.py --config hub_configs/qwen3-8b/grpo.yaml --devices 8 --strategy fsdp2 \
        --max_completion_length 4096

Any flag of the training goes before the preset's value. How the figures come about: `estimates/memory.py` and
`estimates/compute_time.py`; how far to trust them: `README.md`.
"""

import sys
from dataclasses import dataclass, field

from estimates.compute_time import HARDWARE, step_seconds
from estimates.memory import training_memory
from estimates.preset_arguments import base_of, image_of, palette_bytes, palette_of, parse_preset
from estimates.training_setup import STRATEGIES, setup_of


@dataclass
class EstimateArguments:
    """What the preset does not say."""

    devices: int = field(default=1, metadata={"help": "Number of devices; accumulation steps are divided by it."})
    strategy: str = field(default="single", metadata={"help": "How devices share work.", "choices": list(STRATEGIES)})
    hardware: str = field(default="h100", metadata={"help": "The device.", "choices": list(HARDWARE)})
    prompt_length: int = field(default=256, metadata={"help": "Tokens of the longest prompt, without its image."})


def main(flags: list[str]) -> None:
    if "--config" not in flags:
        raise SystemExit("Name a preset: --config hub_configs/<base>/<sft, grpo or rloo>.yaml")
    path = flags.pop(flags.index("--config") + 1)
    flags.remove("--config")
    own, _, args = parse_preset(path, *flags, own=(EstimateArguments,))
    if path.endswith("vae.yaml"):
        raise SystemExit("A palette's training takes less than loading its base: see README.md.")
    base, hardware = base_of(path), HARDWARE[own.hardware]
    config = base.build_config()
    setup = setup_of(args, own.prompt_length, own.devices, own.strategy, image_of(path))
    memory = training_memory(config, setup, palette_bytes(palette_of(path)), hardware.memory)
    print(f"{base.id} on {own.devices} x {hardware.name}, {own.strategy}; GiB per device:")
    for name, gib in memory.items():
        print(f"  {name:<12} {gib:8.2f}")
    seconds = step_seconds(config, setup, hardware)
    print(f"Seconds: {seconds['training']:.1f} training + {seconds['sampling']:.1f} sampling per step;")
    print(f"{setup.steps} steps: {setup.steps * seconds['step'] / 3600:.2f} hours.")
    if memory["peak"] > hardware.memory:
        print(f"This does not fit: {memory['peak']:.1f} of {hardware.memory} GiB.")


if __name__ == "__main__":
    main(sys.argv[1:])

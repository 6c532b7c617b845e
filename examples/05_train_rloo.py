"""Reinforcement learning with latent-guided rollouts by RLOO: 05_train_grpo.py, which describes the task, with the
other trainer:

    python examples/05_train_rloo.py

Every field of `PaletteRLOOConfig` is a flag, or a line of a YAML file (`--config hub_configs/qwen3-1.7b/rloo.yaml`).
TRL has `beta` at 0.05 here, which holds a reference model beside the policy; 0 as for GRPO is this script's default.
"""

import importlib

from trl import TrlParser

from reasoning_palette.trainers import PaletteRLOOConfig

train_grpo = importlib.import_module("05_train_grpo")
GRPOArguments = train_grpo.GRPOArguments

DEMO_SETTINGS = {**train_grpo.DEMO_SETTINGS, "output_dir": "demo_output/rloo", "beta": 0.0}


if __name__ == "__main__":
    parser = TrlParser((GRPOArguments, PaletteRLOOConfig))
    parser.set_defaults(**DEMO_SETTINGS)
    train_grpo.main(*parser.parse_args_and_config())

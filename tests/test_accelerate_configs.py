"""The configs of hub_configs/accelerate, read by what reads them at a launch: accelerate, transformers, DeepSpeed."""

import os
from unittest import mock

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from distributed_run import CONFIGS, launch_environment
from transformers.integrations import HfDeepSpeedConfig, HfTrainerDeepSpeedConfig

TYPES = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero3": "DEEPSPEED"}


def test_every_config_is_tested():
    assert {path.stem for path in CONFIGS.iterdir()} == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_accepts_it_and_drops_nothing(name):
    path = CONFIGS / f"{name}.yaml"
    written = yaml.safe_load(path.read_text())
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.distributed_type == DistributedType(TYPES[name])
    args, environment = launch_environment(name)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert (args.num_processes, args.num_machines) == (8, 1)
    # Keys inside of a section are not checked by accelerate: a misspelt one would be an unused attribute.
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(written.get(section, {})) <= set(vars(launch_command_parser().parse_args(["train.py"]))), section


def test_processes_of_a_launch_are_a_flag():
    args, _ = launch_environment("ddp", "--num_processes", "4")
    assert args.num_processes == 4


def test_fsdp2_reads_as_meant():
    _, environment = launch_environment("fsdp2")
    with mock.patch.dict(os.environ, environment):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert not plugin.activation_checkpointing


def test_deepspeed_reads_as_meant():
    deepspeed = pytest.importorskip(
        "deepspeed", reason="DeepSpeed is not installed; the package does not depend on it"
    )
    _, environment = launch_environment("deepspeed_zero3")
    with mock.patch.dict(os.environ, environment):
        plugin = DeepSpeedPlugin()
    config = plugin.deepspeed_config
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert plugin.zero3_init_flag is True
    assert HfDeepSpeedConfig(config).is_zero3()
    assert not HfDeepSpeedConfig(config).is_offload()
    # "auto" is for transformers to fill in from the training arguments; what is left DeepSpeed itself must take.
    filled = HfTrainerDeepSpeedConfig({**config, "train_micro_batch_size_per_gpu": 2, "train_batch_size": 2})
    settings = {key: value for key, value in filled.config.items() if value != "auto"}
    assert deepspeed.DeepSpeedConfig({**settings, "gradient_accumulation_steps": 1}).zero_optimization_stage == 3

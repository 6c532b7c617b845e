"""
What test_distributed.py compares between numbers of processes. Run by it in one process, and in two:

    torchrun --nproc_per_node 2 tests/distributed_run.py OUTPUT_FOLDER ddp fsdp2 zero3

Every rank writes `OUTPUT_FOLDER/<strategy>-rank<rank>.pt`: what each case drew, sampled and learned.

accelerate 1.15 takes FSDP and DeepSpeed for GPU matters: on a CPU it ignores FSDP (and trains with DDP) and does not
count DeepSpeed's processes. `on_gloo` tells it otherwise, so that its own FSDP2 and ZeRO-3 code runs here.
"""

import contextlib
import os
import sys
import warnings
from pathlib import Path
from unittest import mock

import accelerate.commands.launch
import torch
import torch.distributed as dist
import transformers.trainer
from accelerate import Accelerator
from accelerate.commands.launch import launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from peft import LoraConfig
from trainer_testing import (
    common_arguments,
    record_generations,
    rl_dataset,
    sft_dataset,
    tiny_base,
    tiny_palette,
    tiny_palette_model,
    tiny_tokenizer,
    word_reward,
)
from transformers import TrainerCallback

from reasoning_palette.modeling_palette import PaletteForCausalLM
from reasoning_palette.trainers import (
    PaletteGRPOConfig,
    PaletteGRPOTrainer,
    PaletteRLOOConfig,
    PaletteRLOOTrainer,
    PaletteSFTConfig,
    PaletteSFTTrainer,
)

CONFIGS = Path(__file__).parent.parent / "hub_configs" / "accelerate"
CHECKPOINT = "palette_model"  # a saved palette model in the output folder
GLOBAL_BATCH, GROUP, STEPS = 8, 4, 2
ROLLOUTS = {"num_generations": GROUP, "max_completion_length": 6, "num_prefix_tokens": 3, "beta": 0.0}
GREEDY = {"generation_kwargs": {"do_sample": False}, "latent_schedule": "constant", "latent_fraction": 0.75}
SFT = {"max_length": 32, "num_prefix_tokens": 2}
# Rank-dependent lengths of rows and numbers of documents are what could make draws depend on the number of ranks.
CASES = {
    "sft-prior": ("sft", {**SFT, "latent_domain": {"math": 0.5, "code": 0.5}}),
    "sft-posterior": ("sft", {**SFT, "latent_pairing": "posterior"}),
    "sft-padding-free": ("sft", {**SFT, "padding_free": True, "max_length": None}),
    "sft-packed": ("sft", {**SFT, "packing": True, "max_length": 16, "latent_pairing": "posterior"}),
    "sft-lora": ("sft", {**SFT, "peft_config": LoraConfig(r=2, target_modules="all-linear")}),
    "grpo": ("grpo", {**ROLLOUTS, **GREEDY, "beta": 0.1}),  # the reference of a model in memory
    "rloo": ("rloo", {**ROLLOUTS, **GREEDY}),
    "grpo-reference": ("grpo", {**ROLLOUTS, **GREEDY, "beta": 0.1}),  # model and reference come from a checkpoint
    "grpo-sampled": ("grpo", {**ROLLOUTS, "latent_schedule": "linear-decay"}),
}
SHARDED_CASES = ["sft-prior", "sft-posterior", "grpo-reference", "rloo"]


class Recorder(TrainerCallback):
    """Gradients as the optimizer gets them, unclipped and whole, step by step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if hasattr(model, "module"):
            model = model.module
        # TRL's LoRA has the names of parameters inside of the adapter's wrapper.
        parameters = {name.removeprefix("base_model.model."): value for name, value in model.named_parameters()}
        self.gradients.append({name: whole(value.grad) for name, value in parameters.items() if value.requires_grad})


def whole(tensor):
    """A copy of a tensor, gathered where FSDP2 shards it."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def build(case, folder, model=None, **arguments):
    """A trainer of a case with `GLOBAL_BATCH` rows per step, split between the processes there are."""
    method, settings = CASES[case]
    trainer_class, config_class = {
        "sft": (PaletteSFTTrainer, PaletteSFTConfig),
        "grpo": (PaletteGRPOTrainer, PaletteGRPOConfig),
        "rloo": (PaletteRLOOTrainer, PaletteRLOOConfig),
    }[method]
    keywords = {"peft_config": settings["peft_config"]} if "peft_config" in settings else {}
    accumulation = arguments.get("gradient_accumulation_steps", 1)
    arguments = {
        "per_device_train_batch_size": GLOBAL_BATCH // accumulation // int(os.environ.get("WORLD_SIZE", 1)),
        "max_steps": STEPS,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "dataloader_pin_memory": False,
        "use_cpu": "ACCELERATE_USE_DEEPSPEED" not in os.environ,
        **{name: value for name, value in settings.items() if name not in keywords},
        **arguments,
    }
    if case == "grpo-reference":
        model = str(Path(folder).parent.parent / CHECKPOINT)
    packed = GLOBAL_BATCH * (6 if arguments.get("packing") else 2)
    return trainer_class(
        tiny_palette_model() if model is None else model,
        **keywords,
        **({} if method == "sft" else {"reward_funcs": word_reward}),
        args=config_class(**common_arguments(folder, **arguments)),
        train_dataset=sft_dataset(packed) if method == "sft" else rl_dataset(),
        processing_class=tiny_tokenizer(),
    )


def record_draws(trainer):
    """The latents of every batch that SFT trains on: ids of prior draws, vectors of posterior ones."""
    draws, original = [], trainer._prepare_inputs

    def recording(inputs):
        batch = original(inputs)
        if trainer.model.training:
            ids = batch["input_ids"]
            ids = ids[ids >= trainer.palette_model.config.latent_id_base]
            if trainer.args.latent_pairing == "posterior":
                palette = trainer.palette_model._latent_embedding
                ids = palette.explicit.look_up(ids, palette.palette.latent_dim)
            draws.append(ids.clone())
        return batch

    trainer._prepare_inputs = recording
    return draws


def run(case, folder, resume=None, gradients=True, **arguments):
    """
    Trains a case.

    Returns:
        `dict`: `draws` (SFT: a tensor per micro-batch; RL: prompts with latent ids per generation), `completions` and
        `rewards` of RL, `gradients` per step, `weights` at the end (whole), `sensitivity` as logged, `palette`.
    """
    trainer = build(case, folder, **arguments)
    recorder = Recorder()
    if gradients:
        trainer.add_callback(recorder)
    completions, rewards = [], []
    if hasattr(trainer, "reward_funcs"):
        draws = record_generations(trainer)
        original = trainer._calculate_rewards

        def recording(inputs, prompts, texts, ids):
            completions.append([list(row) for row in ids])
            rewards.append(original(inputs, prompts, texts, ids))
            return rewards[-1]

        trainer._calculate_rewards = recording
    else:
        draws = record_draws(trainer)
    trainer.train(resume_from_checkpoint=resume)
    palette = {id(value) for value in trainer.palette_model.palette.buffers()}
    return {
        # How many of the palette's buffers DDP would broadcast again at every forward.
        "broadcast": sum(id(value) in palette for value in getattr(trainer.model_wrapped, "modules_buffers", [])),
        "draws": draws,
        "completions": completions,
        "rewards": [value[:, 0].tolist() for value in rewards],
        "gradients": recorder.gradients,
        "weights": weights_of(trainer),
        "sensitivity": [e["latent/sensitivity"] for e in trainer.state.log_history if "latent/sensitivity" in e],
        "palette": {name: value.clone() for name, value in trainer.palette_model.palette.state_dict().items()},
        "type": str(trainer.accelerator.distributed_type),
    }


def weights_of(trainer):
    parameters = dict(trainer.palette_model.named_parameters())
    if trainer.is_deepspeed_enabled:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            return {name: value.detach().clone() for name, value in parameters.items()}
    return {name: whole(value) for name, value in parameters.items()}


def tear_and_resume(case, folder, **arguments):
    """Trains with a checkpoint per step, tears the last one, resumes from it by name. Returns what both runs did."""
    unbroken = run(case, folder, save_strategy="steps", save_steps=1, **arguments)
    last = Path(folder) / f"checkpoint-{STEPS}"
    if int(os.environ.get("RANK", 0)) == 0:
        (last / "trainer_state.json").unlink()
    if dist.is_initialized():
        dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed = run(case, folder, str(last), save_strategy="steps", save_steps=1, **arguments)
    message = [str(warning.message) for warning in caught if "is torn" in str(warning.message)]
    return {"unbroken": unbroken, "resumed": resumed, "warned": message}


def refusal(make):
    """The text of the ValueError that a construction ends in."""
    try:
        make()
    except ValueError as error:
        return str(error)
    return None


def ddp(folder):
    results = {case: run(case, folder / case) for case in CASES if case not in ("sft-prior", "grpo-sampled")}
    results["accumulated"] = run("sft-prior", folder / "accumulated", gradient_accumulation_steps=2)
    for case in ("sft-prior", "grpo-sampled"):
        results[f"torn {case}"] = tear_and_resume(case, folder / case)
        results[case] = results[f"torn {case}"]["unbroken"]
    palette = tiny_palette(seed=1 + int(os.environ["RANK"]))
    model = PaletteForCausalLM.from_base(tiny_base(), palette=palette, tokenizer=tiny_tokenizer())
    results["refusal"] = refusal(lambda: build("sft-prior", folder / "refused", model))
    return results


def fsdp2(folder):
    with on_gloo_fsdp2():
        results = {case: run(case, folder / case) for case in [*SHARDED_CASES, "sft-lora"]}
        # (torch 2.13 cannot load the state of an optimizer that has none, as plain SGD's, under FSDP2.)
        results["torn sft-posterior"] = tear_and_resume("sft-posterior", folder / "torn", optim="adamw_torch")
        results["bf16"] = run("sft-posterior", folder / "bf16", bf16=True)
    with on_gloo_fsdp2(FSDP_CPU_RAM_EFFICIENT_LOADING="true"):  # as in TRL's config
        results["refusal"] = refusal(lambda: build("sft-prior", folder / "refused"))
    version_1 = {"FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD", "FSDP_SYNC_MODULE_STATES": "false"}
    with on_gloo_fsdp2(**version_1):
        results["refusal of version 1"] = refusal(lambda: build("sft-prior", folder / "refused", bf16=True))
    return results


def zero3(folder):
    with on_gloo_zero3():
        results = {case: run(case, folder / case, gradients=False) for case in ("sft-prior", "grpo-reference", "rloo")}
        results["torn sft-posterior"] = tear_and_resume("sft-posterior", folder / "sft-posterior", gradients=False)
        results["sft-posterior"] = results["torn sft-posterior"]["unbroken"]
        results["bf16"] = run("sft-posterior", folder / "bf16", gradients=False, bf16=True)
    return results


def launch_environment(config, *flags):
    """
    What `accelerate launch` does with one of hub_configs/accelerate, and further flags.

    Returns:
        `tuple[argparse.Namespace, dict[str, str]]`: The launcher's arguments, and the variables that it adds to the
        environment of the processes.
    """
    caught = []
    with (
        mock.patch.object(accelerate.commands.launch, "multi_gpu_launcher", caught.append),
        mock.patch.object(accelerate.commands.launch, "deepspeed_launcher", caught.append),
    ):
        arguments = ["--config_file", str(CONFIGS / f"{config}.yaml"), *flags, "train.py"]
        accelerate.commands.launch.launch_command(launch_command_parser().parse_args(arguments))
    (args,) = caught
    environment = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    names = ("ACCELERATE_", "FSDP_")
    return args, {name: value for name, value in environment.items() if name.startswith(names)}


@contextlib.contextmanager
def launched_with(config, **changes):
    """The environment that `accelerate launch` makes of a config, in float32 unless a case says otherwise."""
    environment = {**launch_environment(config)[1], **changes}
    del environment["ACCELERATE_MIXED_PRECISION"]
    with mock.patch.dict(os.environ, environment):
        yield


@contextlib.contextmanager
def on_gloo_fsdp2(**changes):
    """Lets the trainers' accelerator use FSDP2 on CPUs, with the settings of hub_configs/accelerate/fsdp2.yaml."""

    class FSDP2Accelerator(Accelerator):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            PartialState().distributed_type = self.state.distributed_type = DistributedType.FSDP
            self.state.fsdp_plugin = FullyShardedDataParallelPlugin()
            if self.mixed_precision != "no":
                self.state.fsdp_plugin.set_mixed_precision(self.mixed_precision)

    with launched_with("fsdp2", **changes), mock.patch.object(transformers.trainer, "Accelerator", FSDP2Accelerator):
        yield


@contextlib.contextmanager
def on_gloo_zero3():
    """
    Lets accelerate see DeepSpeed's processes on CPUs, with hub_configs/accelerate/deepspeed_zero3.yaml.
    Every parameter is partitioned, however small: DeepSpeed leaves those of less than 100,000 entries whole.
    """
    read_environment = DeepSpeedPlugin.__post_init__

    def partition_everything(plugin):
        read_environment(plugin)
        thresholds = {"stage3_param_persistence_threshold": 0, "stage3_model_persistence_threshold": 0}
        plugin.deepspeed_config["zero_optimization"].update(thresholds)

    def see_processes(state, *args, **kwargs):
        return "gloo", DistributedType.MULTI_CPU

    with (
        launched_with("deepspeed_zero3"),
        mock.patch.object(DeepSpeedPlugin, "__post_init__", partition_everything),
        mock.patch.object(PartialState, "_prepare_backend", see_processes),
        mock.patch("transformers.training_args.is_torch_bf16_gpu_available", return_value=True),
    ):
        yield


if __name__ == "__main__":
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    for strategy in sys.argv[2:]:
        recorded = {"ddp": ddp, "fsdp2": fsdp2, "zero3": zero3}[strategy](output / strategy)
        torch.save(recorded, output / f"{strategy}-rank{os.environ['RANK']}.pt")
    dist.destroy_process_group()

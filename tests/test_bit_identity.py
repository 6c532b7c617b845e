"""Without prefixes the trainers are TRL's, bit for bit: losses, gradients, sampled tokens, weights and logs.

Both ways to have none: `num_prefix_tokens=0`, and `latent_fraction=0.0` (rho = 0 throughout).
"""

import pytest
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
from training_records import assert_identical, train_and_record
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from reasoning_palette.trainers.palette_grpo_trainer import PaletteGRPOConfig, PaletteGRPOTrainer
from reasoning_palette.trainers.palette_rloo_trainer import PaletteRLOOConfig, PaletteRLOOTrainer
from reasoning_palette.trainers.palette_sft_trainer import PaletteSFTConfig, PaletteSFTTrainer

CLASSES = {
    "grpo": (GRPOTrainer, GRPOConfig, PaletteGRPOTrainer, PaletteGRPOConfig),
    "rloo": (RLOOTrainer, RLOOConfig, PaletteRLOOTrainer, PaletteRLOOConfig),
    "sft": (SFTTrainer, SFTConfig, PaletteSFTTrainer, PaletteSFTConfig),
}
NO_PREFIX = [{"num_prefix_tokens": 0}, {"num_prefix_tokens": 3, "latent_fraction": 0.0}]
ROLLOUTS = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6, "max_steps": 3}
DOCUMENTS = {"per_device_train_batch_size": 4, "max_length": 32, "max_steps": 3}
LORA = {"peft_config": {"r": 2, "target_modules": "all-linear", "init_lora_weights": "gaussian"}}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}
REUSED = {"num_iterations": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 2, "max_steps": 4}


def compare_with_stock(folder, method, base, settings, no_prefix):
    """
    Trains TRL's class and ours on the same data; `base` is a folder, or None for models in memory.

    Ours is built after TRL's has trained: building a trainer seeds its sampling.
    """
    stock_class, stock_config, palette_class, palette_config = CLASSES[method]
    settings = dict(settings)
    peft = settings.pop("peft_config", None)
    dataset = sft_dataset(8) if method == "sft" else rl_dataset(4)  # two steps an epoch: runs go through several
    keywords = {"train_dataset": dataset, "processing_class": tiny_tokenizer()}
    if method != "sft":
        keywords["reward_funcs"] = word_reward
    if "eval_strategy" in settings:
        keywords["eval_dataset"] = dataset.select(range(4))
    records, generations = [], []
    for trainer_class, config_class, arguments, palette in (
        (stock_class, stock_config, {}, None),
        (palette_class, palette_config, no_prefix, tiny_palette()),
    ):
        args = config_class(**common_arguments(folder, **settings, **arguments))
        if base is not None:
            model = base
        else:
            model, palette = (tiny_base() if palette is None else tiny_palette_model()), None
        extra = {} if palette is None else {"palette": palette}
        if peft:
            extra["peft_config"] = LoraConfig(**peft)
        trainer = trainer_class(model=model, args=args, **keywords, **extra)
        generations.append([] if method == "sft" else record_generations(trainer))
        records.append(train_and_record(trainer))
    assert_identical(records[1], records[0])
    assert generations[1] == generations[0]
    assert method == "sft" or generations[0]


@pytest.mark.parametrize("no_prefix", NO_PREFIX, ids=["zero_tokens", "zero_fraction"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("grpo", EVALUATED),
        ("grpo", {**REUSED, "loss_type": "dr_grpo", "importance_sampling_level": "sequence", "temperature": 0.7}),
        ("grpo", {**LORA, "beta": 0.1, "loss_type": "grpo", "bf16": True, "gradient_checkpointing": True}),
        ("rloo", {**EVALUATED, "beta": 0.0}),
        ("rloo", {**REUSED, "beta": 0.05, **LORA}),
    ],
)
def test_rollouts(tmp_path, method, settings, no_prefix):
    compare_with_stock(tmp_path, method, None, {**ROLLOUTS, **settings}, no_prefix)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_rollouts_with_a_reference_that_follows(tmp_path, method):
    tiny_base().save_pretrained(tmp_path / "base")
    settings = {**ROLLOUTS, "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1}
    compare_with_stock(tmp_path, method, str(tmp_path / "base"), settings, NO_PREFIX[1])


@pytest.mark.parametrize(
    "settings",
    [
        EVALUATED,
        {"packing": True, "gradient_accumulation_steps": 2},
        {"loss_type": "dft", "neftune_noise_alpha": 5.0, "bf16": True, "gradient_checkpointing": True},
        {**LORA, "learning_rate": 1e-1, "completion_only_loss": False, "label_smoothing_factor": 0.1},
    ],
)
def test_sft(tmp_path, settings):
    compare_with_stock(tmp_path, "sft", None, {**DOCUMENTS, **settings}, {"num_prefix_tokens": 0})

"""One latent per rollout: at the rollout, at every scoring and in the reference; and the log-probs that follow."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rollout_records import RolloutRecord
from trainer_testing import (
    common_arguments,
    rl_dataset,
    tiny_base,
    tiny_palette,
    tiny_palette_model,
    tiny_tokenizer,
    word_reward,
)

from reasoning_palette.trainers.palette_grpo_trainer import PaletteGRPOConfig, PaletteGRPOTrainer
from reasoning_palette.trainers.palette_rloo_trainer import PaletteRLOOConfig, PaletteRLOOTrainer

CLASSES = {"grpo": (PaletteGRPOTrainer, PaletteGRPOConfig), "rloo": (PaletteRLOOTrainer, PaletteRLOOConfig)}
# Two micro-steps per generation, each used twice: four optimizer steps on each of two generations.
SETTINGS = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 6,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_steps": 8,
    "num_prefix_tokens": 3,
    "latent_schedule": "constant",
    "latent_fraction": 0.5,
    "latent_domain": {"math": 1, "code": 1},
    "beta": 0.1,
    "temperature": 0.9,
}
LORA = {"r": 2, "lora_alpha": 2, "target_modules": "all-linear"}


def tokenizer_with_bos():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "w0"
    return tokenizer


def prompts_with_bos():
    return rl_dataset().map(lambda row: {"prompt": "w0 " + row["prompt"]})


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("checkpoint", "grpo"),
        ("checkpoint", "rloo"),
        ("base_and_palette", "rloo"),
        ("peft_config", "grpo"),
        ("peft_model", "grpo"),
        ("peft_model", "rloo"),
        ("dora", "rloo"),
        ("after_bos", "grpo"),
    ],
)
def test_rollout_scoring_and_reference_see_the_same_latent(tmp_path, kind, method):
    config = {"tie_word_embeddings": kind in ("checkpoint", "peft_model")}
    model, keywords, dataset, tokenizer = tiny_palette_model(**config), {}, rl_dataset(), tiny_tokenizer()
    if kind == "checkpoint":
        model.save_pretrained(tmp_path / "palette")
        model = str(tmp_path / "palette")
    elif kind == "base_and_palette":
        tiny_base(**config).save_pretrained(tmp_path / "base")
        model, keywords = str(tmp_path / "base"), {"palette": tiny_palette()}
    elif kind == "peft_config":
        keywords = {"peft_config": LoraConfig(**LORA)}
    elif kind == "dora":
        keywords = {"peft_config": LoraConfig(**LORA, use_dora=True)}
    elif kind == "peft_model":
        torch.manual_seed(3)  # an adapter that has been trained before: its copy is the reference, not the base
        model = get_peft_model(model, LoraConfig(**LORA, init_lora_weights=False))
    elif kind == "after_bos":
        config |= {"bos_token_id": 3}
        model = tiny_palette_model(**config)
        model.config.prefix_position = "after_bos"
        model.save_pretrained(tmp_path / "palette")
        model, dataset, tokenizer = str(tmp_path / "palette"), prompts_with_bos(), tokenizer_with_bos()
    trainer_class, config_class = CLASSES[method]
    trainer = trainer_class(
        model=model,
        reward_funcs=word_reward,
        args=config_class(**common_arguments(tmp_path, **SETTINGS)),
        train_dataset=dataset,
        processing_class=tokenizer,
        **keywords,
    )
    record = RolloutRecord(trainer, config)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert len(record.generations) == 2
    assert record.check(num_iterations=2) < 1e-5
    moved = {name: not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters() if name in before}
    assert all(moved.values()), moved
    # What was scored is what the policy has become: the loss and the reference have parted.
    roles = {role: [s for s in record.scorings if s.role == role][-1] for role in ("loss", "reference")}
    row = roles["loss"].rows[0]
    reference = dict(zip(roles["reference"].rows, roles["reference"].log_probs, strict=True))[row]
    assert (roles["loss"].log_probs[0] - reference).abs().max() > 1e-3
    if kind == "after_bos":
        guided = [prompt for prompt, _ in record.generations[0].rows if max(prompt) >= 1 << 24]
        assert all(prompt[0] == 3 and min(prompt[1:4]) >= 1 << 24 for prompt in guided)

"""RLOO shares its rollouts with GRPO (see test_grpo_trainer.py); here is what could differ."""

import torch
from trainer_testing import (
    assert_logps_equal_spliced,
    assert_same_weights,
    assert_weights_moved,
    common_arguments,
    guided_counts,
    record_generations,
    rl_dataset,
    snapshot,
    tiny_base,
    tiny_palette,
    tiny_palette_model,
    tiny_tokenizer,
    word_reward,
)

from reasoning_palette.trainers.palette_rloo_trainer import PaletteRLOOConfig, PaletteRLOOTrainer

GROUP = 4
BATCH = {"per_device_train_batch_size": 8, "num_generations": GROUP, "max_completion_length": 6, "max_steps": 4}


def rloo_trainer(folder, model=None, palette=None, **arguments):
    settings = {**BATCH, "num_prefix_tokens": 3, "beta": 0.0, **arguments}
    return PaletteRLOOTrainer(
        model=tiny_palette_model() if model is None else model,
        reward_funcs=word_reward,
        args=PaletteRLOOConfig(**common_arguments(folder, **settings)),
        train_dataset=rl_dataset(),
        processing_class=tiny_tokenizer(),
        palette=palette,
    )


def generate(trainer):
    trainer.model.train()
    trainer.state.max_steps = trainer.args.max_steps
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def test_schedule_counts_and_logs(tmp_path):
    trainer = rloo_trainer(tmp_path, latent_schedule="linear-decay")
    calls = record_generations(trainer)
    palette, weights = snapshot(trainer.palette_model.palette), snapshot(trainer.model)
    trainer.train()
    assert [guided_counts(trainer, ids, GROUP) for _, _, ids in calls] == [[4, 4], [3, 3], [2, 2], [1, 1]]
    assert all(torch.equal(value, palette[name]) for name, value in trainer.palette_model.palette.state_dict().items())
    assert_weights_moved(trainer.model, weights)
    rho = [entry["latent/rho"] for entry in trainer.state.log_history if "latent/rho" in entry]
    assert rho == [1.0, 0.75, 0.5, 0.25]
    codes = trainer._logs["extra"]["latent_code"]  # TRL's RLOO sends its table to trackers only
    assert [code >= 0 for code in codes] == [True, False, False, False] * 2


def test_log_probs_of_policy_and_reference_equal_a_hand_spliced_reference(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base")
    trainer = rloo_trainer(
        tmp_path, str(tmp_path / "base"), tiny_palette(), beta=0.1, latent_schedule="constant", latent_fraction=0.5
    )
    inputs = generate(trainer)
    assert_logps_equal_spliced(trainer, trainer.model, tiny_base(), inputs)
    assert_logps_equal_spliced(trainer, trainer.ref_model, tiny_base(), inputs)


def test_resumed_run_ends_with_the_same_weights(tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 2}
    unbroken = rloo_trainer(tmp_path / "a", **arguments)
    unbroken.train()
    resumed = rloo_trainer(tmp_path / "b", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert_same_weights(unbroken.model, resumed.model)


def test_the_default_on_a_model_made_in_memory(tmp_path):
    trainer = rloo_trainer(tmp_path, beta=0.05)
    assert_logps_equal_spliced(trainer, trainer.ref_model, tiny_base(), generate(trainer))

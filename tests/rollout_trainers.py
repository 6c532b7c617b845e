"""GRPO and RLOO trainers of tiny models, half of whose rollouts are guided."""

import torch
from trainer_testing import (
    common_arguments,
    guided_counts,
    record_generations,
    rl_dataset,
    snapshot,
    tiny_palette_model,
    tiny_tokenizer,
    word_reward,
)
from training_records import train_and_record

from reasoning_palette.trainers.palette_grpo_trainer import PaletteGRPOConfig, PaletteGRPOTrainer
from reasoning_palette.trainers.palette_rloo_trainer import PaletteRLOOConfig, PaletteRLOOTrainer

CLASSES = {"grpo": (PaletteGRPOTrainer, PaletteGRPOConfig), "rloo": (PaletteRLOOTrainer, PaletteRLOOConfig)}
GROUP = 4
SETTINGS = {
    "per_device_train_batch_size": 8,
    "num_generations": GROUP,
    "max_completion_length": 6,
    "max_steps": 2,
    "num_prefix_tokens": 3,
    "latent_schedule": "constant",
    "latent_fraction": 0.5,
    "beta": 0.0,
}
KEYWORDS = (
    "reward_funcs",
    "train_dataset",
    "eval_dataset",
    "peft_config",
    "reward_processing_classes",
    "quantization_config",
    "rollout_func",
)


def make_trainer(folder, method, model=None, **settings):
    keywords = {"reward_funcs": word_reward, "train_dataset": rl_dataset()}
    keywords |= {name: settings.pop(name) for name in KEYWORDS if name in settings}
    trainer_class, config_class = CLASSES[method]
    return trainer_class(
        model=tiny_palette_model() if model is None else model,
        args=config_class(**common_arguments(folder, **{**SETTINGS, **settings})),
        processing_class=tiny_tokenizer(),
        **keywords,
    )


def train_under_watch(trainer):
    """Trains; half of each group is guided, the policy moves, the palette does not. Returns the record of the run."""
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    palette, calls = snapshot(trainer.palette_model.palette), record_generations(trainer)
    record = train_and_record(trainer)
    assert calls
    for training, _, ids in calls:
        if training:
            assert guided_counts(trainer, ids, GROUP) == [GROUP // 2] * (len(ids) // GROUP)
    assert all(torch.isfinite(loss) for loss in record.losses)
    parameters = dict(trainer.model.named_parameters())
    assert all(not torch.equal(parameters[name], weight) for name, weight in weights.items() if weight.dim() > 1)
    for name, value in trainer.palette_model.palette.state_dict().items():
        assert value.dtype == palette[name].dtype
        assert torch.equal(value, palette[name])
    return record


def generate(trainer):
    trainer.model.train()
    trainer.state.max_steps = trainer.args.max_steps
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))

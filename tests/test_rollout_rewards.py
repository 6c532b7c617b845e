"""Rewards of GRPO and RLOO with latents on: every kind, weights, scaling, rollouts that nothing scores."""

import asyncio

import pandas as pd
import pytest
import torch
from rollout_trainers import CLASSES, GROUP, generate, make_trainer, train_under_watch
from trainer_testing import rl_dataset, tiny_tokenizer, word_reward
from transformers import Qwen3Config, Qwen3ForSequenceClassification

METHODS = pytest.mark.parametrize("method", list(CLASSES))


def reward_model():
    torch.manual_seed(5)
    settings = {"vocab_size": 43, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "num_labels": 1}
    return Qwen3ForSequenceClassification(Qwen3Config(**settings, **heads, pad_token_id=0)).eval()


async def async_reward(completions, **kwargs):
    await asyncio.sleep(0)
    return [float("w3" in text) for text in completions]


def sometimes_none(completions, log_extra, log_metric, trainer_state, **kwargs):
    log_extra("words", [len(text.split()) for text in completions])
    log_metric("tau", trainer_state.global_step / trainer_state.max_steps)
    return [None if index % 3 == 0 else float(len(text)) for index, text in enumerate(completions)]


@METHODS
def test_rewards_of_every_kind_with_weights(tmp_path, method):
    seen = []

    def spy(prompts, completions, completion_ids, target, **kwargs):
        seen.append((prompts, completions, completion_ids, target))
        return [0.0] * len(prompts)

    trainer = make_trainer(
        tmp_path, method, reward_funcs=[word_reward, async_reward, sometimes_none, reward_model(), spy],
        reward_weights=[1.0, 0.5, 0.1, 2.0, 1.0], reward_processing_classes=[None, None, None, tiny_tokenizer(), None],
        train_dataset=rl_dataset().add_column("target", list(range(16))), log_completions=True,
    )  # fmt: skip
    train_under_watch(trainer)
    for prompts, completions, completion_ids, target in seen:
        # Rewards see the user's prompts and the model's words; never a latent id.
        assert all(set(text.split()) <= set(tiny_tokenizer().get_vocab()) for text in [*prompts, *completions])
        assert all(max(ids) < trainer.palette_model.config.latent_id_base for ids in completion_ids)
        assert len(target) == len(prompts)
    entry = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert entry["tau"] == 0.0
    parts = [entry[f"latent/{name}/reward"] for name in ("guided", "unguided")]
    assert sum(parts) / 2 == pytest.approx(entry["reward"], rel=1e-5)  # None counts as nothing in both
    if method == "grpo":  # TRL's RLOO sends its table to trackers only
        table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
        assert (table["latent_code"] >= 0).tolist() == [True, True, False, False] * 2
        assert table["words"].tolist() == [len(text.split()) for text in table["completion"]]


@METHODS
def test_rollouts_that_no_reward_function_scores(tmp_path, method):
    def reward(completions, **kwargs):
        return [None if index % GROUP in (0, 2) else float(len(text)) for index, text in enumerate(completions)]

    trainer = make_trainer(tmp_path, method, reward_funcs=reward)
    train_under_watch(trainer)
    entry = next(entry for entry in trainer.state.log_history if "reward" in entry)
    parts = [entry[f"latent/{name}/reward"] for name in ("guided", "unguided")]
    assert sum(parts) / 2 == pytest.approx(entry["reward"])  # one scored rollout of each kind in every group


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_reward_scaling(tmp_path, scale, aggregation):
    trainer = make_trainer(
        tmp_path, "grpo", reward_funcs=[word_reward, async_reward], scale_rewards=scale,
        multi_objective_aggregation=aggregation, max_steps=1,
    )  # fmt: skip
    rewards, calculate = [], trainer._calculate_rewards

    def recording(*args):
        rewards.append(calculate(*args))
        return rewards[-1]

    trainer._calculate_rewards = recording
    advantages = generate(trainer)["advantages"]
    groups = rewards[0].view(2, GROUP, 2)
    if aggregation == "sum_then_normalize":
        summed = groups.sum(-1)
        expected = summed - summed.mean(1, keepdim=True)
        if scale != "none":
            expected = expected / ((summed.std(1, keepdim=True) if scale == "group" else summed.std()) + 1e-4)
    else:
        normalised = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).sum(-1)
        expected = (normalised - normalised.mean()) / (normalised.std() + 1e-4)
    torch.testing.assert_close(advantages, expected.flatten())

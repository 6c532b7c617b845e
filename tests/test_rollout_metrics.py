"""What GRPO and RLOO log of their latents, against numbers worked by hand, and rollouts replayed from their codes."""

import copy

import pandas as pd
import pytest
import torch
import trl.trainer.rloo_trainer as trl_rloo
from datasets import Dataset
from peft import LoraConfig
from trainer_testing import (
    assert_same_weights,
    common_arguments,
    rl_dataset,
    spliced_logits,
    tiny_base,
    tiny_palette_model,
    tiny_tokenizer,
    word_reward,
)
from transformers import TrainerCallback

from reasoning_palette.trainers.latent_sensitivity import LatentWashoutWarning, latent_sensitivity
from reasoning_palette.trainers.palette_grpo_trainer import PaletteGRPOConfig, PaletteGRPOTrainer
from reasoning_palette.trainers.palette_rloo_trainer import PaletteRLOOConfig, PaletteRLOOTrainer
from reasoning_palette.trainers.rollout_metrics import UNGUIDED, ScoredRollouts, rollout_metrics, weighted_rewards

GROUP, NAN = 4, float("nan")
TRAINERS = {"grpo": (PaletteGRPOTrainer, PaletteGRPOConfig), "rloo": (PaletteRLOOTrainer, PaletteRLOOConfig)}


def rl_trainer(folder, kind="grpo", model=None, **arguments):
    trainer_class, config_class = TRAINERS[kind]
    keywords = {
        key: arguments.pop(key)
        for key in ("peft_config", "callbacks", "rollout_func", "eval_dataset", "processing_class")
        if key in arguments
    }
    settings = {
        "per_device_train_batch_size": 8, "num_generations": GROUP, "max_completion_length": 6, "max_steps": 4,
        "num_prefix_tokens": 3, "latent_schedule": "constant", "beta": 0.0,
    }  # fmt: skip
    return trainer_class(
        model=tiny_palette_model() if model is None else model,
        reward_funcs=arguments.pop("reward_funcs", word_reward),
        train_dataset=arguments.pop("train_dataset", rl_dataset()),
        args=config_class(**common_arguments(folder, **{**settings, **arguments})),
        **{"processing_class": tiny_tokenizer(), **keywords},
    )


def sensitivities(trainer):
    return {
        entry["step"]: entry["latent/sensitivity"]
        for entry in trainer.state.log_history
        if "latent/sensitivity" in entry
    }


def test_figures_of_a_generation_worked_by_hand():
    rollouts = ScoredRollouts(
        mode="train",
        codes=torch.tensor([7, 7, -1, -1, 5, 6, 8, -1, 9, 4, -1, -1]),
        rewards=torch.tensor([1.0, 1, 0, 0.25, 1, 0, NAN, 0.5, 2, 2, 2, NAN]),
        lengths=torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        group_size=4,
    )
    assert rollout_metrics(rollouts) == pytest.approx(
        {
            "guided_fraction": 7 / 12,
            "distinct_codes_per_group": (1 + 3 + 2) / 3,
            "guided/reward": (1 + 1 + 1 + 0 + 2 + 2) / 6,
            "unguided/reward": (0 + 0.25 + 0.5 + 2) / 4,
            "guided/mean_length": (1 + 2 + 5 + 6 + 7 + 9 + 10) / 7,
            "unguided/mean_length": (3 + 4 + 8 + 11 + 12) / 5,
            "frac_reward_zero_std": 1 / 3,  # the third group
            "guided/frac_reward_zero_std": 2 / 3,  # 1 1; 1 0; 2 2
            "unguided/frac_reward_zero_std": 0.0,  # 0 0.25; the others have one rollout with a reward
        }
    )


def test_figures_that_have_nothing_to_be_taken_of_are_left_out():
    codes, nothing = torch.tensor([3, 3]), torch.tensor([NAN, NAN])
    assert rollout_metrics(ScoredRollouts("train", codes, nothing, torch.ones(2), 2)) == {
        "guided_fraction": 1.0,
        "guided/mean_length": 1.0,
        "distinct_codes_per_group": 1.0,
    }


def test_rewards_are_weighted_sums_and_nan_without_any_score():
    rewards = weighted_rewards(torch.tensor([[1.0, 2.0], [NAN, 2.0], [NAN, NAN]]), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(rewards, torch.tensor([2.0, 1.0, NAN]), equal_nan=True)


@pytest.mark.parametrize("scale_rewards", ["group", "batch"])
def test_groups_without_variance_are_counted_whatever_rewards_are_scaled_by(tmp_path, scale_rewards):
    def reward(prompts, **kwargs):  # the first prompt's rollouts all get the same
        return [1.0 if prompt == prompts[0] else index / 10 for index, prompt in enumerate(prompts)]

    trainer = rl_trainer(tmp_path, reward_funcs=reward, scale_rewards=scale_rewards, max_steps=1)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert logged["latent/frac_reward_zero_std"] == 0.5
    assert logged["frac_reward_zero_std"] == (0.5 if scale_rewards == "group" else 0.0)  # TRL's is of the batch


@pytest.mark.parametrize("latent_tile", [False, True])
def test_greedy_rollout_is_replayed_from_the_completions_table(tmp_path, latent_tile):
    # One step: what generated is what is loaded again below.
    trainer = rl_trainer(
        tmp_path, max_steps=1, log_completions=True, latent_tile=latent_tile, latent_fraction=0.5,
        latent_domain={"math": 1, "code": 1}, generation_kwargs={"do_sample": False},
    )  # fmt: skip
    trainer.train()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    model, tokenizer = tiny_palette_model().eval(), tiny_tokenizer()
    completions = []
    for row in table.itertuples():
        latent = {"latent": row.latent_code, "num_prefix_tokens": 3, "latent_tile": latent_tile}
        prompt = tokenizer(row.prompt, return_tensors="pt")
        ids = model.generate(
            **prompt, do_sample=False, max_new_tokens=6, **({} if row.latent_code == UNGUIDED else latent)
        )
        completions.append(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    assert completions == table["completion"].tolist()
    assert sorted((table["latent_code"] == UNGUIDED).tolist()) == [False] * 4 + [True] * 4
    assert len(set(completions)) > 2  # the latent decides: two prompts alone would make two completions


def test_rloo_shows_codes_where_trl_shows_completions(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(trl_rloo, "is_rich_available", lambda: True)
    monkeypatch.setattr(trl_rloo, "print_prompt_completions_sample", lambda *args, extra: shown.append(extra))
    trainer = rl_trainer(tmp_path, "rloo", log_completions=True, max_steps=1, latent_fraction=0.5)
    trainer.train()
    codes = list(shown[0]["latent_code"])
    assert [code == UNGUIDED for code in codes] == [False, False, True, True] * 2


@pytest.mark.parametrize("kind", TRAINERS)
def test_sensitivity_equals_one_computed_from_hand_spliced_rows(tmp_path, kind):
    """TRL has patched the forward for its fused log-probs; the figure must still be that of the model's logits."""
    trainer = rl_trainer(tmp_path, kind, latent_domain="math", max_steps=1)
    trainer.train()
    base, tokenizer = tiny_base(), tiny_tokenizer()
    prefixes, divergences = trainer._monitor_prefixes, []
    assert (prefixes.shape, len(set(prefixes[:, 0].tolist()))) == ((8, 3), 8)
    sources = (prefixes - trainer.model.config.latent_id_base) // 64 // trainer.model.config.num_codes
    assert (sources == 1).all()
    for row in rl_dataset().select(range(4)):
        tokens = tokenizer(row["prompt"])["input_ids"]
        logits = torch.stack([spliced_logits(base, trainer.model, ids, tokens)[-1] for ids in prefixes.tolist()])
        probs = logits.double().softmax(-1)
        mean = probs.mean(0)
        divergences.append((probs * (probs / mean).log()).sum(-1).mean())  # mean of KL(p_k || mean of p)
    assert sensitivities(trainer)[0] == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-4)
    assert sensitivities(trainer)[0] > 0.01


def test_sensitivity_is_measured_at_logging_steps_that_are_far_enough_apart(tmp_path):
    for settings, steps in [
        ({"latent_sensitivity_steps": 3, "logging_steps": 2}, [0, 4]),
        ({}, [0]),
        ({"latent_sensitivity_steps": 0}, []),
        ({"num_prefix_tokens": 0}, []),
        ({"latent_fraction": 0.0, "latent_sensitivity_steps": 4}, [0, 4]),
    ]:
        trainer = rl_trainer(tmp_path, **settings)
        trainer.train()
        assert list(sensitivities(trainer)) == steps


@pytest.mark.parametrize("settings", [{}, {"bf16": True, "gradient_checkpointing": True}])
def test_measuring_sensitivity_does_not_disturb_the_run(tmp_path, settings):
    """With dropout, whose generator it must leave alone."""
    runs = []
    for steps in (0, 1):
        model = tiny_palette_model(attention_dropout=0.3, attn_implementation="eager")
        trainer = rl_trainer(tmp_path, model=model, latent_sensitivity_steps=steps, **settings)
        measured = []
        original = trainer._measure_sensitivity
        trainer._measure_sensitivity = lambda m=measured, o=original, t=trainer: m.append(
            (torch.get_rng_state(), [x.training for x in t.model.modules()], o(), torch.get_rng_state(),
             [x.training for x in t.model.modules()])
        ) or m[-1][2]  # fmt: skip
        trainer.train()
        runs.append(trainer)
        for before, modes_before, _, after, modes_after in measured:
            assert torch.equal(before, after)
            assert modes_before == modes_after
        assert len(measured) == (5 if steps else 0)
    assert_same_weights(runs[0].model, runs[1].model)
    keys = ("loss", "reward", "grad_norm")
    logs = [[[e[k] for k in keys] for e in run.state.log_history if "reward" in e] for run in runs]
    assert logs[0] == logs[1]


def test_modules_that_their_owner_keeps_in_evaluation_mode_stay_in_it():
    model = tiny_palette_model().train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    latent_sensitivity(model, [[5, 6]], torch.tensor([[7], [8]]), model.insert_latent_ids)
    assert [module.training for module in model.modules()] == modes
    assert set(modes) == {False, True}


def test_resumed_run_measures_what_the_unbroken_one_did(tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 2, "latent_sensitivity_steps": 1}
    unbroken = rl_trainer(tmp_path / "a", **arguments)
    unbroken.train()
    resumed = rl_trainer(tmp_path / "b", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert list(sensitivities(resumed)) == [0, 1, 2, 3, 4]
    assert sensitivities(resumed) == sensitivities(unbroken)


def test_washout_is_warned_of_in_rl(tmp_path):
    trainer = rl_trainer(tmp_path, latent_sensitivity_steps=1)
    values = iter([0.8, 0.7, 0.1, 0.1, 0.1])
    trainer._measure_sensitivity = lambda: next(values)
    with pytest.warns(LatentWashoutWarning, match=r"by 0\.1 nats, .* it was 0\.8\. .* raise `beta`") as caught:
        trainer.train()
    assert len([entry for entry in caught if entry.category is LatentWashoutWarning]) == 1


def test_adapter_is_measured_as_it_is(tmp_path):
    trainer = rl_trainer(
        tmp_path, peft_config=LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False), max_steps=1,
        latent_sensitivity_steps=1,
    )  # fmt: skip
    adapted = trainer._measure_sensitivity()
    with trainer.model.disable_adapter():
        plain = trainer._measure_sensitivity()
    assert adapted != pytest.approx(plain, rel=1e-3)
    trainer.train()
    assert sensitivities(trainer)[0] == pytest.approx(adapted, rel=1e-6)


def test_streaming_dataset_loses_no_rows(tmp_path):
    whole = rl_trainer(tmp_path, train_dataset=rl_dataset().to_iterable_dataset(), latent_sensitivity_steps=0)
    watched = rl_trainer(tmp_path, train_dataset=rl_dataset().to_iterable_dataset())
    seen = [[row["prompt"] for row in next(iter(trainer.get_train_dataloader()))] for trainer in (whole, watched)]
    assert seen[0] == seen[1]
    assert watched._monitor_prompts == [tiny_tokenizer()(row["prompt"])["input_ids"] for row in rl_dataset()][:4]


TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool['function']['name'] }} {% endfor %}"
    "{% for message in messages %}{{ message['content'] }} {% endfor %}{% if add_generation_prompt %}w39{% endif %}"
)


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_conversations_are_tokenised_as_rollouts_are(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"w{index} w2"}]} for index in range(4)]
    trainer = rl_trainer(
        tmp_path,
        train_dataset=Dataset.from_list(rows),
        processing_class=chat_tokenizer(),
        reward_funcs=lambda completions, **kwargs: [float(len(turns[0]["content"])) for turns in completions],
        max_steps=1,
    )
    assert trainer._monitor_prompts == [tiny_tokenizer()(f"w{i} w2 w39")["input_ids"] for i in range(4)]
    trainer.train()
    assert 0 in sensitivities(trainer)


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_rollout_function_is_measured_on_its_own_first_prompts(tmp_path):
    def rollout(prompts, trainer):
        prompt_ids = trainer.insert_latents([[9, *ids] for ids in trainer.processing_class(prompts)["input_ids"]])
        completion_ids, _ = trainer._generate_single_turn(prompt_ids, None, {}, 1)
        logprobs = [[0.0] * len(ids) for ids in completion_ids]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}

    trainer = rl_trainer(tmp_path, rollout_func=rollout, max_steps=2, latent_sensitivity_steps=1)
    assert trainer._monitor_prompts is None
    trainer.train()
    assert len(trainer._monitor_prompts) == 2  # the first generation has two prompts of four rollouts
    assert all(prompt[0] == 9 and max(prompt) < 50 for prompt in trainer._monitor_prompts)
    assert list(sensitivities(trainer)) == [0, 1, 2]


def test_callbacks_get_every_generation(tmp_path):
    class Recorder(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_rollouts(self, args, state, control, rollouts):
            self.seen.append((state.global_step, copy.deepcopy(rollouts)))

    recorder = Recorder()
    trainer = rl_trainer(
        tmp_path, callbacks=[recorder], latent_fraction=0.5, log_completions=True, max_steps=2,
    )  # fmt: skip
    trainer.train()
    assert [step for step, _ in recorder.seen] == [0, 1]
    for step, rollouts in recorder.seen:
        table = pd.read_parquet(tmp_path / "completions" / f"completions_0000{step + 1}.parquet")
        assert table["latent_code"].tolist() == rollouts.codes.tolist()
        assert table["word_reward"].tolist() == pytest.approx(rollouts.rewards.tolist())
        assert (rollouts.mode, rollouts.group_size) == ("train", GROUP)

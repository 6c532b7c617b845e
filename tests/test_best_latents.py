"""The best codes of a run, and the domain that is fitted to their latents."""

import json
import warnings
from collections import Counter

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from test_rollout_metrics import rl_trainer
from trainer_testing import (
    LATENT,
    assert_same_weights,
    common_arguments,
    rl_dataset,
    sft_dataset,
    snapshot,
    tiny_base,
    tiny_palette,
    tiny_palette_model,
    tiny_tokenizer,
)
from transformers import AutoModelForCausalLM

from reasoning_palette.modeling_palette import PaletteForCausalLM
from reasoning_palette.modeling_palette.palette_vae import shrunk_covariance
from reasoning_palette.trainers import (
    BestLatentsCallback,
    PaletteSFTConfig,
    PaletteSFTTrainer,
    ScoredRollouts,
    fit_domain_from_codes,
)
from reasoning_palette.trainers.best_latents import BEST_LATENTS_FILE, score_codes

NAN = float("nan")


def rollouts(codes, rewards, group_size=4, mode="train"):
    codes, rewards = torch.tensor(codes), torch.tensor(rewards)
    return ScoredRollouts(mode, codes, rewards, torch.ones(len(codes)), group_size)


def feed(callback, generation, step=0):
    state = type("State", (), {"global_step": step})
    callback.on_rollouts(None, state, None, rollouts=generation)


@pytest.mark.parametrize(
    ("codes", "rewards", "expected"),
    [
        # A draw per rollout: each against the three others.
        ([1, 2, 3, 4], [1.0, 0, 0, 0], {1: 1.0, 2: -1 / 3, 3: -1 / 3, 4: -1 / 3}),
        # Unguided rollouts are compared with, and have no code; what has no reward counts neither way.
        ([1, 2, -1, -1], [1.0, NAN, 0, 1], {1: 0.5}),
        # A draw per prompt: its rollouts together against those without.
        ([1, 1, -1, -1], [1.0, 0, 0, 0], {1: 0.5}),
        # Nothing in the group to compare with: the other group.
        ([1, 1, 1, 1, 2, 2, 2, 2], [1.0, 1, 1, 0, 0, 0, 0, 1], {1: 0.5, 2: -0.5}),
        ([1, 1, 1, 1], [1.0, 1, 1, 0], {}),
        ([1, 2, 3, 4], [NAN, NAN, NAN, NAN], {}),
    ],
)
def test_scores_worked_by_hand(codes, rewards, expected):
    scores = {code: score for score, code in score_codes(rollouts(codes, rewards))}
    assert scores == pytest.approx(expected)


def test_best_codes_are_kept():
    callback = BestLatentsCallback(max_codes=3, min_codes=2)
    feed(callback, rollouts([1, 2, 3, 4], [1.0, 0, 0, 0]), step=1)  # 1: +1
    feed(callback, rollouts([5, 6, 7, 8], [0.5, 0.5, 0.5, 0.5]), step=2)  # none did better than the rest
    feed(callback, rollouts([9, 10, -1, -1], [1.0, 1.0, 0, 1.0]), step=3)  # 9, 10: +1/3
    feed(callback, rollouts([11, 12, 13, 14], [9.0, 0, 0, 0], mode="eval"), step=3)
    assert callback.codes == [1, 10, 9]
    feed(callback, rollouts([15, 9, 16, 17], [1.0, 0.0, 0, 0]), step=4)  # 15: +1, newer than 1; 9 keeps its score
    assert callback.codes == [15, 1, 10]
    feed(callback, rollouts([1, 18, 19, 20], [2.0, 0.0, 0, 0]), step=5)
    assert callback.best == [[2.0, 5, 1], [1.0, 4, 15], [pytest.approx(1 / 3), 3, 10]]


@pytest.mark.parametrize("latent_tile", [False, True])
def test_domain_is_the_gaussian_of_the_codes_latents(latent_tile):
    model, codes = tiny_palette_model(), [3, 1 << 21, 77, 4242]
    before = snapshot(model.palette)
    assert fit_domain_from_codes(model, "best", codes, 5, latent_tile) == 3
    latents = model.latents_from_codes(torch.tensor(codes), 5, latent_tile).double()  # (4, 5, Z)
    samples = latents[:, 0] if latent_tile else torch.stack([latents[n, i] for n in range(4) for i in range(5)])
    assert model.palette.domains["best"] == {"source": 3, "count": len(samples)}
    torch.testing.assert_close(model.palette.domain_means[2], samples.mean(0).float())
    cholesky = model.palette.domain_cholesky[2]
    torch.testing.assert_close(cholesky @ cholesky.T, shrunk_covariance(samples).float(), atol=1e-6, rtol=0)
    assert torch.equal(model.palette.domain_means[:2], before["domain_means"])  # old codes keep their meaning
    assert (model.draw_codes(3, domain="best") // model.config.num_codes == 3).all()


def test_domain_that_is_fitted_earns_more_reward(tmp_path):
    """
    A rigged task: the reward is 1 for one half of the words that the model answers with under greedy decoding, which
    depend on its latent. The policy stays as it is (learning rate 0): only the choice of latents can raise the reward.
    """
    model, tokenizer = tiny_palette_model(), tiny_tokenizer()
    prompt = "w1 w2 w3"

    def first_words(domain):
        ids = tokenizer([prompt] * 400, return_tensors="pt")
        settings = {"num_prefix_tokens": 8, "latent_tile": True, "latent_seed": 5}
        ids = model.generate(**ids, domain=domain, do_sample=False, max_new_tokens=1, **settings)
        return [tokenizer.decode([token]) for token in ids[:, -1].tolist()]

    rewarded, left = set(), 200
    for word, count in reversed(Counter(first_words(None)).most_common()):  # the rarest words, up to half of all
        if count <= left:
            rewarded.add(word)
            left -= count

    def reward(completions, **kwargs):
        return [float(text in rewarded) for text in completions]

    def share(domain):
        return sum(word in rewarded for word in first_words(domain)) / 400

    prior = share(None)
    trainer = rl_trainer(
        tmp_path, model=model, reward_funcs=reward, callbacks=[BestLatentsCallback("best")], learning_rate=0.0,
        per_device_train_batch_size=32, num_generations=8, max_steps=12, latent_tile=True, num_prefix_tokens=8,
        max_completion_length=1, generation_kwargs={"do_sample": False}, latent_sensitivity_steps=0,
        train_dataset=Dataset.from_list([{"prompt": prompt}] * 16),
    )  # fmt: skip
    trainer.train()
    assert 0.3 < prior <= 0.5
    assert share("best") > prior + 0.2


def saving(folder, **arguments):
    return rl_trainer(folder, **{"save_strategy": "steps", "save_steps": 2, **arguments})


def saved(folder):
    return json.loads((folder / BEST_LATENTS_FILE).read_text())


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_saved_model_carries_the_domain_and_checkpoints_before_do_not(tmp_path, kind):
    trainer = saving(tmp_path / "run", kind=kind, callbacks=[BestLatentsCallback(min_codes=2)], beta=0.1)
    before = snapshot(trainer.palette_model.palette)
    trainer.train()
    checkpoint = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert set(checkpoint.palette.domains) == {"math", "code"}
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.palette.state_dict().items())

    trainer.save_model(str(tmp_path / "final"))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final").eval()
    codes = [entry["code"] for entry in saved(tmp_path / "run")["codes"]]
    assert reloaded.config.domains["high-reward"] == {"source": 3, "count": 3 * len(codes)}
    mean = reloaded.latents_from_codes(torch.tensor(codes), 3).mean(dim=(0, 1))
    torch.testing.assert_close(reloaded.palette.domain_means[2], mean)
    out = reloaded.generate(
        torch.tensor([[5, 6]]), domain="high-reward", max_new_tokens=1, return_dict_in_generate=True
    )
    assert int(out.latent_codes[0]) // reloaded.config.num_codes == 3


def test_kept_codes_are_those_of_the_best_rollouts(tmp_path):
    callback = BestLatentsCallback(min_codes=2)
    trainer = rl_trainer(tmp_path, callbacks=[callback], log_completions=True, latent_fraction=0.5)
    trainer.train()
    tables = [pd.read_parquet(tmp_path / "completions" / f"completions_0000{step}.parquet") for step in (1, 2, 3, 4)]
    expected = {}
    for table in tables:
        for start in (0, 4):
            group = table.iloc[start : start + 4]
            for index, row in group.iterrows():
                score = row["word_reward"] - group["word_reward"].drop(index).mean()
                if row["latent_code"] != -1 and score > 1e-6:
                    expected[row["latent_code"]] = score
    assert len(expected) >= 3
    assert {code: score for score, _, code in callback.best} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("restore", [False, True])
def test_resumed_run_ends_with_the_same_codes_and_domain(tmp_path, restore):
    settings = {"restore_callback_states_from_checkpoint": restore}
    runs = []
    for name, resume in (("a", None), ("b", str(tmp_path / "a" / "checkpoint-2"))):
        trainer = saving(tmp_path / name, callbacks=[BestLatentsCallback(min_codes=2)], **settings)
        trainer.train(resume_from_checkpoint=resume)
        runs.append(trainer.palette_model.palette)
    assert saved(tmp_path / "a") == saved(tmp_path / "b")
    assert {entry["step"] for entry in saved(tmp_path / "a")["codes"]} & {0, 1}  # some are from before the break
    assert torch.equal(runs[0].domain_means, runs[1].domain_means)
    assert torch.equal(runs[0].domain_cholesky, runs[1].domain_cholesky)


def test_resuming_a_run_that_had_no_callback(tmp_path):
    saving(tmp_path / "a").train()
    trainer = saving(tmp_path / "b", callbacks=[BestLatentsCallback(min_codes=2)])
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert {entry["step"] for entry in saved(tmp_path / "b")["codes"]} <= {2, 3}
    assert "high-reward" in trainer.palette_model.palette.domains


def test_two_callbacks_in_a_resumed_run(tmp_path):
    def trainer_of(folder):
        few, many = BestLatentsCallback("few", 2, 2), BestLatentsCallback("many", 50, 2)
        return saving(folder, callbacks=[few, many], save_steps=1), few, many

    unbroken, few, many = trainer_of(tmp_path / "a")
    unbroken.train()
    resumed, few_again, many_again = trainer_of(tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert (few_again.best, many_again.best) == (few.best, many.best)
    assert len(few.best) == 2 < len(many.best)
    state = json.loads((tmp_path / "b" / "checkpoint-4" / "trainer_state.json").read_text())
    assert len(state["stateful_callbacks"]["BestLatentsCallback"]) <= 4
    assert list(resumed.palette_model.palette.domains) == ["math", "code", "few", "many"]


def test_best_checkpoint_is_loaded_before_the_domain_is_fitted(tmp_path):
    trainer = saving(
        tmp_path, callbacks=[BestLatentsCallback(min_codes=2)], load_best_model_at_end=True, eval_strategy="steps",
        eval_steps=2, metric_for_best_model="eval_reward", greater_is_better=False, eval_dataset=rl_dataset(2),
        per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer.train()
    best = AutoModelForCausalLM.from_pretrained(trainer.state.best_model_checkpoint)
    assert_same_weights(trainer.palette_model, best)
    assert "high-reward" in trainer.palette_model.palette.domains


def test_a_second_run_of_the_same_trainer_fits_anew(tmp_path):
    trainer = rl_trainer(tmp_path, callbacks=[BestLatentsCallback(min_codes=2)], max_steps=2)
    trainer.train()
    trainer.train()
    assert trainer.palette_model.palette.domains["high-reward"]["source"] == 4  # the first fit was 3


def test_too_few_or_equal_latents_end_in_a_warning(tmp_path):
    trainer = rl_trainer(tmp_path, callbacks=[BestLatentsCallback(min_codes=200)], max_steps=1)
    with pytest.warns(UserWarning, match=r"No domain 'high-reward' was fitted: \d latents .* `min_codes` is 200"):
        trainer.train()
    assert "high-reward" not in trainer.palette_model.palette.domains
    assert saved(tmp_path)["codes"]
    with pytest.raises(ValueError, match="needs latents of at least 2 traces"):
        fit_domain_from_codes(trainer.palette_model, "one", [5], 3, latent_tile=True)

    trainer = rl_trainer(tmp_path, callbacks=[BestLatentsCallback(min_codes=2)], max_steps=1)
    trainer.palette_model.palette.domain_cholesky.zero_()  # all draws of a domain are its mean
    trainer.args.latent_domain = "math"
    with pytest.warns(UserWarning, match=r"No domain 'high-reward' was fitted: .* but: .* are degenerate"):
        trainer.train()


@pytest.mark.parametrize("latent_fraction", [1.0, 0.5])
def test_draws_per_prompt(tmp_path, latent_fraction):
    callback = BestLatentsCallback(min_codes=2)
    trainer = rl_trainer(
        tmp_path, callbacks=[callback], latent_per="prompt", latent_fraction=latent_fraction, max_steps=8
    )
    trainer.train()
    assert "high-reward" in trainer.palette_model.palette.domains
    assert len(callback.codes) <= 16  # one code for each of two prompts in eight generations


def full_palette():
    palette = tiny_palette()
    for number in range(28):
        palette.fit_domain(f"domain {number}", torch.randn(5, LATENT))
    return palette


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"callbacks": [BestLatentsCallback("math")]}, r"has a domain of that name already.*taken are \['code', 'm"),
        ({"num_prefix_tokens": 0}, "this trainer draws none"),
        ({"model": "full"}, "room for 30 domain fits .* and 30 are taken"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(tmp_path, settings, message):
    if "model" in settings:
        settings["model"] = PaletteForCausalLM.from_base(tiny_base(), palette=full_palette())
    with pytest.raises(ValueError, match=message):
        rl_trainer(tmp_path, **{"callbacks": [BestLatentsCallback()], **settings})


def test_sft_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Use it with PaletteGRPOTrainer or PaletteRLOOTrainer"):
        PaletteSFTTrainer(
            model=tiny_palette_model(),
            args=PaletteSFTConfig(**common_arguments(tmp_path)),
            train_dataset=sft_dataset(),
            callbacks=[BestLatentsCallback()],
        )


def test_callback_that_is_added_late_is_checked_when_training_starts(tmp_path):
    trainer = rl_trainer(tmp_path)
    trainer.add_callback(BestLatentsCallback("code"))
    with pytest.raises(ValueError, match="has a domain of that name already"):
        trainer.train()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": " "}, "`domain` must be a non-empty string"),
        ({"min_codes": 1}, "`min_codes` must be at least 2 and at most `max_codes`, got min_codes=1"),
        ({"max_codes": 8}, "got min_codes=16 and max_codes=8"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        BestLatentsCallback(**arguments)


def test_adapter_is_saved_with_a_palette_that_has_the_domain(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base")
    whole = PaletteForCausalLM.from_base(str(tmp_path / "base"), palette=tiny_palette(), tokenizer=tiny_tokenizer())
    whole.save_pretrained(tmp_path / "palette", palette_only=True)
    trainer = rl_trainer(
        tmp_path / "run",
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "palette"),
        callbacks=[BestLatentsCallback(min_codes=2)],
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    trainer.save_model(str(tmp_path / "before"))
    assert not (tmp_path / "before" / "palette").exists()  # the adapter points to a checkpoint that has it all
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter" / "palette")
    assert set(base.palette.domains) == {"math", "code", "high-reward"}
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.cat([base.latent_ids(base.draw_codes(1, domain="high-reward"), 2), torch.tensor([[5, 6]])], dim=1)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits)


def test_adapter_on_a_full_checkpoint_cannot_carry_the_domain_and_says_so(tmp_path):
    tiny_palette_model().save_pretrained(tmp_path / "full")
    trainer = rl_trainer(
        tmp_path / "run",
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "full"),
        callbacks=[BestLatentsCallback(min_codes=2)],
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.train()
    with pytest.warns(UserWarning, match="The adapter is saved without the domains that were added since"):
        trainer.save_model(str(tmp_path / "adapter"))

"""GRPO's `rollout_func`: prefixes through `trainer.insert_latents`, over several turns, and what is refused."""

import pytest
import torch
from rollout_records import stock_twin
from rollout_trainers import GROUP, generate, make_trainer, train_under_watch
from trainer_testing import assert_logps_equal_spliced, guided_counts, tiny_palette_model

pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")


def two_turns(prompts, trainer):
    """Samples, has the environment say "w7 w8", samples again; the environment's words carry no loss."""
    prompt_ids = trainer.insert_latents(trainer.processing_class(prompts)["input_ids"])
    first, _ = trainer._generate_single_turn(prompt_ids, None, {}, 1)
    said = trainer.processing_class("w7 w8")["input_ids"]
    history = [prompt + ids + said for prompt, ids in zip(prompt_ids, first, strict=True)]
    second, _ = trainer._generate_single_turn(history, None, {}, 1)
    completion_ids = [a + said + b for a, b in zip(first, second, strict=True)]
    masks = [[1] * len(a) + [0] * len(said) + [1] * len(b) for a, b in zip(first, second, strict=True)]
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "logprobs": [[0.0] * len(ids) for ids in completion_ids],
        "env_mask": masks,
        "turns": [2] * len(prompts),
    }


def test_two_turns_under_one_prefix(tmp_path):
    seen = []

    def reward(completions, turns, **kwargs):
        seen.append(turns)
        return [float(len(text)) for text in completions]

    trainer = make_trainer(tmp_path, "grpo", rollout_func=two_turns, reward_funcs=reward, temperature=0.9)
    inputs = generate(trainer)
    prompts = [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
    ]
    assert guided_counts(trainer, prompts, GROUP) == [2, 2]
    assert (inputs["tool_mask"] == 0).sum(dim=1).tolist() == [2] * 8
    assert seen == [[2] * 8]
    assert_logps_equal_spliced(trainer, trainer.model, stock_twin(trainer.model), inputs)
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert all(not torch.equal(p, weights[name]) for name, p in trainer.model.named_parameters() if p.dim() > 1)


def test_without_prefixes_the_helper_does_nothing(tmp_path):
    trainer = make_trainer(tmp_path, "grpo", rollout_func=two_turns, latent_fraction=0.0)
    assert not (generate(trainer)["prompt_ids"] >= trainer.palette_model.config.latent_id_base).any()


def changed(change):
    """A `rollout_func` that does something else with the prompts."""

    def rollout(prompts, trainer):
        return change(two_turns(prompts, trainer), prompts, trainer)

    return rollout


def without_prefixes(output, prompts, trainer):
    return {**output, "prompt_ids": trainer.processing_class(prompts)["input_ids"]}


def in_another_order(output, prompts, trainer):
    return {**output, "prompt_ids": output["prompt_ids"][::-1]}


def inserted_again(output, prompts, trainer):
    return {**output, "prompt_ids": trainer.insert_latents(output["prompt_ids"])}


@pytest.mark.parametrize(
    ("rollout_func", "message"),
    [
        (changed(without_prefixes), r"`rollout_func` returned other `prompt_ids` than `trainer.insert_latents` did"),
        (changed(in_another_order), r"Return what `insert_latents` returned, whole and in its order"),
        (changed(inserted_again), r"`insert_latents` was called twice in one generation"),
        (
            lambda prompts, trainer: {
                "prompt_ids": trainer.processing_class(prompts)["input_ids"],
                "completion_ids": [[5]] * len(prompts),
                "logprobs": [[0.0]] * len(prompts),
            },
            r"Call `prompt_ids = trainer.insert_latents\(prompt_ids\)`",
        ),
        (
            lambda prompts, trainer: {
                "prompt_ids": trainer.insert_latents(trainer.processing_class(prompts[:4])["input_ids"]),
                "completion_ids": [[5]] * 4,
                "logprobs": [[0.0]] * 4,
            },
            "on all prompts in your rollout_func",
        ),
    ],
)
def test_rollouts_whose_prefixes_would_get_lost_are_refused(tmp_path, rollout_func, message):
    with pytest.raises(ValueError, match=message):
        generate(make_trainer(tmp_path, "grpo", rollout_func=rollout_func))


def test_prompts_that_fit_only_without_a_prefix_are_warned_of_once(tmp_path):
    model = tiny_palette_model(max_position_embeddings=13)  # 5 words, 6 new tokens, and a prefix of 3
    trainer = make_trainer(tmp_path, "grpo", model)
    with pytest.warns(
        UserWarning, match=r"A prompt of 5 tokens, its prefix of 3 and `max_completion_length`=6"
    ) as log:
        train_under_watch(trainer)
    assert len([entry for entry in log if "exceed the model's 13 positions" in str(entry.message)]) == 1

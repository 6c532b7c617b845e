"""GRPO with latent-guided rollouts: what is guided, what is scored, what moves, what resumes, what is refused."""

import warnings

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
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
from transformers import AutoModelForCausalLM

from reasoning_palette.trainers.palette_grpo_trainer import PaletteGRPOConfig, PaletteGRPOTrainer
from reasoning_palette.trainers.palette_rollout_mixin import UNGUIDED

GROUP = 4
BATCH = {"per_device_train_batch_size": 8, "num_generations": GROUP, "max_completion_length": 6, "max_steps": 4}


def grpo_trainer(folder, model=None, dataset=None, palette=None, **arguments):
    keywords = {key: arguments.pop(key) for key in ("peft_config", "rollout_func", "eval_dataset") if key in arguments}
    return PaletteGRPOTrainer(
        model=tiny_palette_model() if model is None else model,
        reward_funcs=word_reward,
        args=PaletteGRPOConfig(**common_arguments(folder, **{**BATCH, "num_prefix_tokens": 3, **arguments})),
        train_dataset=rl_dataset() if dataset is None else dataset,
        processing_class=tiny_tokenizer(),
        palette=palette,
        **keywords,
    )


def generate(trainer, batch=0):
    """Generates and scores one batch of the training data."""
    trainer.model.train()
    trainer.state.max_steps = trainer.args.max_steps
    loader = list(trainer.get_train_dataloader())
    return trainer._generate_and_score_completions(loader[batch])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [4, 4, 0, 0]),
        ({"latent_schedule": "linear-decay"}, [4, 3, 2, 1]),
        ({"latent_schedule": "linear-decay", "latent_fraction": 0.5}, [2, 2, 1, 1]),  # 2, 1.5, 1, 0.5
        ({"latent_schedule": "two-phase", "latent_schedule_end": 0.25}, [4, 0, 0, 0]),
        ({"latent_schedule": "constant", "latent_fraction": 0.75}, [3, 3, 3, 3]),
    ],
)
def test_each_group_has_exactly_its_guided_rollouts(tmp_path, settings, expected):
    trainer = grpo_trainer(tmp_path, **settings)
    calls = record_generations(trainer)
    trainer.train()
    assert [step for _, step, _ in calls] == [0, 1, 2, 3]
    assert [guided_counts(trainer, ids, GROUP) for _, _, ids in calls] == [[count] * 2 for count in expected]


@pytest.mark.parametrize("latent_per", ["rollout", "prompt"])
def test_draws_per_rollout_or_per_prompt(tmp_path, latent_per):
    trainer = grpo_trainer(tmp_path, latent_per=latent_per)
    calls = record_generations(trainer)
    generate(trainer)
    first = [ids[0] for ids in calls[0][2]]
    groups = [set(first[:GROUP]), set(first[GROUP:])]
    assert [len(group) for group in groups] == ([GROUP] * 2 if latent_per == "rollout" else [1, 1])
    assert not groups[0] & groups[1]


def test_codes_come_from_the_domains_in_their_weights(tmp_path):
    trainer = grpo_trainer(tmp_path, latent_domain={"math": 3, "code": 1})
    trainer.state.max_steps = 4
    sources = trainer._draw_codes("train", 2000) // trainer.palette_model.config.num_codes
    assert set(sources.tolist()) == {1, 2}
    assert (sources == 1).float().mean().item() == pytest.approx(0.75, abs=0.05)


def test_draws_do_not_depend_on_the_number_of_processes(tmp_path):
    trainer = grpo_trainer(tmp_path, latent_schedule="constant", latent_fraction=0.75)
    whole = trainer._draw_codes("train", 24)

    class Rank:
        num_processes = 4

        def __init__(self, accelerator, process_index):
            self._accelerator, self.process_index = accelerator, process_index

        def __getattr__(self, name):
            return getattr(self._accelerator, name)

    accelerator, parts = trainer.accelerator, []
    for rank in range(4):  # six rollouts each: groups of four lie across ranks
        trainer.accelerator = Rank(accelerator, rank)
        trainer._draw_counter = type(trainer._draw_counter)()
        parts.append(trainer._draw_codes("train", 6))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"gradient_accumulation_steps": 2}, [0, 1]),  # one generation of 16 rollouts for both micro-steps
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, [0, 0, 1, 1]),
        ({"steps_per_generation": 2}, [0]),  # one generation for both optimizer steps
        ({"num_iterations": 2}, [0]),
    ],
)
def test_every_generation_draws_anew(tmp_path, settings, steps):
    trainer = grpo_trainer(tmp_path, max_steps=2, latent_schedule="constant", **settings)
    calls = record_generations(trainer)
    trainer.train()
    assert [step for _, step, _ in calls] == steps
    first = [ids[0] for _, _, rows in calls for ids in rows]
    assert len(set(first)) == len(first)


def test_log_probs_equal_a_hand_spliced_reference(tmp_path):
    trainer = grpo_trainer(tmp_path, latent_schedule="constant", latent_fraction=0.5, latent_domain="math")
    assert_logps_equal_spliced(trainer, trainer.model, tiny_base(), generate(trainer))


def test_reference_model_reads_the_same_latents(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base")
    trainer = grpo_trainer(tmp_path, str(tmp_path / "base"), palette=tiny_palette(), beta=0.1)
    inputs = generate(trainer)
    torch.testing.assert_close(
        inputs["ref_per_token_logps"],
        trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
        )[0].detach(),
        atol=1e-6,
        rtol=0,
    )
    trainer.train()
    assert_logps_equal_spliced(trainer, trainer.ref_model, tiny_base(), inputs)
    assert trainer.model.config.name_or_path == ""  # what the reference was loaded by was only lent


def test_the_reference_is_of_the_same_revision_as_the_policy(tmp_path, monkeypatch):
    """Two revisions of a base, told apart as the Hub's loader would: by the argument `revision`."""
    for seed, revision in ((0, "old"), (1, "main")):
        tiny_base(seed).save_pretrained(tmp_path / revision)
    base_class = type(tiny_base())
    load = base_class.from_pretrained.__func__

    def load_revision(cls, name, *args, revision=None, **kwargs):
        loaded = load(cls, tmp_path / (revision or "main"), *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config._name_or_path = model.name_or_path = str(name)
        return loaded

    monkeypatch.setattr(base_class, "from_pretrained", classmethod(load_revision))
    trainer = grpo_trainer(
        tmp_path / "out",
        str(tmp_path / "main"),
        palette=tiny_palette(),
        beta=0.1,
        model_init_kwargs={"revision": "old"},
    )
    assert trainer.palette_model.config.base_model_revision == "old"
    assert_same_weights(tiny_base(0), trainer.model)
    assert_same_weights(tiny_base(0), trainer.ref_model)


def test_an_engine_for_an_adapter_on_a_nameless_model_is_refused(tmp_path):
    model = get_peft_model(tiny_palette_model(), LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match="this adapter stands on a palette model that was made in memory"):
        grpo_trainer(tmp_path, model, use_vllm=True, vllm_mode="colocate")


def test_reference_of_a_checkpoint_has_its_palette(tmp_path):
    model = tiny_palette_model()
    model.save_pretrained(tmp_path / "palette")
    trainer = grpo_trainer(tmp_path, str(tmp_path / "palette"), beta=0.1)
    assert_logps_equal_spliced(trainer, trainer.ref_model, tiny_base(), generate(trainer))
    changed = AutoModelForCausalLM.from_pretrained(tmp_path / "palette")
    changed.add_domain("new", ["w1 w2", "w3 w4 w5", "w6"])
    with pytest.raises(ValueError, match=r"has another palette than `model`.*a domain added"):
        grpo_trainer(tmp_path, changed, beta=0.1)


def test_training_moves_the_base_and_not_the_palette_and_reloads(tmp_path):
    trainer = grpo_trainer(tmp_path, latent_schedule="linear-decay")
    palette, weights = snapshot(trainer.palette_model.palette), snapshot(trainer.model)
    trainer.train()
    assert all(torch.equal(value, palette[name]) for name, value in trainer.palette_model.palette.state_dict().items())
    assert_weights_moved(trainer.model, weights)
    trainer.save_model(str(tmp_path / "final"))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final", trust_remote_code=True)
    ids = torch.cat([reloaded.latent_ids(reloaded.draw_codes(1, "code"), 2), torch.tensor([[5, 6, 7]])], dim=1)
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(input_ids=ids).logits, reloaded.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_resumed_run_ends_with_the_same_weights(tmp_path, num_iterations):
    arguments = {"save_strategy": "steps", "save_steps": 2, "num_iterations": num_iterations}
    unbroken = grpo_trainer(tmp_path / "a", **arguments)
    draws = record_generations(unbroken)
    unbroken.train()
    resumed = grpo_trainer(tmp_path / "b", **arguments)
    draws_again = record_generations(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert_same_weights(unbroken.model, resumed.model)
    assert draws_again == [draw for draw in draws if draw[1] >= 2]


def test_checkpoints_between_generations_are_warned_of(tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 3}
    with pytest.warns(UserWarning, match="Checkpoints every 3 steps fall between generations"):
        grpo_trainer(tmp_path, num_iterations=2, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        grpo_trainer(tmp_path, num_iterations=3, **arguments)


def test_what_prefixes_do_is_logged_and_every_rollout_can_be_replayed(tmp_path):
    trainer = grpo_trainer(tmp_path, latent_schedule="linear-decay", log_completions=True, max_steps=2)
    calls = record_generations(trainer)
    trainer.train()
    first, second = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert (first["latent/rho"], first["latent/guided_fraction"]) == (1.0, 1.0)
    assert (second["latent/rho"], second["latent/guided_fraction"]) == (0.5, 0.5)
    assert first["latent/distinct_codes_per_group"] == GROUP
    assert first["latent/prefix_tokens"] == 3
    assert first["latent/guided/reward"] == pytest.approx(first["reward"])
    assert "latent/unguided/reward" not in first
    halves = second["latent/guided/reward"], second["latent/unguided/reward"]
    assert sum(halves) / 2 == pytest.approx(second["reward"])
    assert second["latent/guided/mean_length"] > 0

    table = pd.read_parquet(tmp_path / "completions" / "completions_00002.parquet")
    codes, config = table["latent_code"].tolist(), trainer.palette_model.config
    assert [code != UNGUIDED for code in codes] == [True, True, False, False] * 2
    for code, ids in zip(codes, calls[1][2], strict=True):
        if code != UNGUIDED:
            assert ids[:3] == trainer.palette_model.latent_ids(torch.tensor([code]), 3)[0].tolist()
        assert all(token < config.latent_id_base for token in ids[3 if code != UNGUIDED else 0 :])
    assert all(set(text.split()) <= {"<unk>", *tiny_tokenizer().get_vocab()} for text in table["completion"])


@pytest.mark.parametrize("latent_eval", [False, True])
def test_evaluation_has_no_prefix_unless_asked_for(tmp_path, latent_eval):
    trainer = grpo_trainer(
        tmp_path, latent_eval=latent_eval, eval_dataset=rl_dataset(2), per_device_eval_batch_size=8, max_steps=1
    )
    calls = record_generations(trainer)
    metrics = trainer.evaluate()
    assert guided_counts(trainer, calls[0][2], GROUP) == [GROUP if latent_eval else 0] * 2
    assert ("eval_latent/guided/reward" in metrics) == latent_eval


def test_trls_defaults_for_precision_and_memory(tmp_path):
    trainer = grpo_trainer(tmp_path, bf16=True, gradient_checkpointing=True, latent_schedule="constant")
    weights = snapshot(trainer.model)
    trainer.train()
    assert_weights_moved(trainer.model, weights)


def test_conversational_prompts(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    trainer = PaletteGRPOTrainer(
        model=tiny_palette_model(),
        reward_funcs=lambda completions, **kwargs: [float(len(turns[0]["content"])) for turns in completions],
        args=PaletteGRPOConfig(**common_arguments(tmp_path, **BATCH, num_prefix_tokens=3)),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "w1 w2"}]}] * 8),
        processing_class=tokenizer,
    )
    calls = record_generations(trainer)
    trainer.train()
    assert guided_counts(trainer, calls[0][2], GROUP) == [GROUP, GROUP]


def test_adapters(tmp_path):
    base = tiny_palette_model()
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    weights = snapshot(base.model.layers[0].self_attn.q_proj.base_layer)
    trainer = grpo_trainer(tmp_path, model, beta=0.1, latent_schedule="constant")
    inputs = generate(trainer)
    assert_logps_equal_spliced(trainer, trainer.model, tiny_base(), inputs)  # a fresh adapter is the base
    trainer.train()
    assert torch.equal(base.model.layers[0].self_attn.q_proj.base_layer.weight, weights["weight"])
    assert any("lora_B" in name and parameter.any() for name, parameter in trainer.model.named_parameters())


def test_continuous_batching(tmp_path):
    trainer = grpo_trainer(
        tmp_path,
        latent_schedule="constant",
        use_transformers_continuous_batching=True,
        transformers_continuous_batching_config={"num_blocks": 16, "max_batch_tokens": 64},
    )
    assert_logps_equal_spliced(trainer, trainer.model, tiny_base(), generate(trainer))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prefix_tokens": 65}, "`num_prefix_tokens` is 65, but this palette allows 0 to `max_prefix_tokens`=64"),
        ({"latent_domain": "art"}, "'art' is unknown; this palette has 'math', 'code'"),
        ({"use_vllm": True, "vllm_model_impl": "transformers"}, "`vllm_model_impl` is 'transformers', but latent"),
        ({"use_vllm": True, "generation_kwargs": {"seed": 3}}, "`generation_kwargs` has the seed 3, with which vLLM"),
        ({"use_vllm": True, "vllm_max_model_length": 9}, "no room for a prompt in `vllm_max_model_length`=9"),
        ({"max_completion_length": 125}, "leave no room for a prompt in the model's 128 positions"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        grpo_trainer(tmp_path, **arguments)


def test_models_and_palettes_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no palette\. Pass `palette=`"):
        grpo_trainer(tmp_path, tiny_base())
    with pytest.raises(ValueError, match="`model` has a palette already"):
        grpo_trainer(tmp_path, palette=tiny_palette())
    with pytest.raises(ValueError, match="`model` is a PeftModel and `palette` is given"):
        adapter = get_peft_model(tiny_base(), LoraConfig(r=2, target_modules="all-linear"))
        grpo_trainer(tmp_path, adapter, palette=tiny_palette())
    with pytest.raises(ValueError, match="A PEFT adapter wraps the input embedding"):
        grpo_trainer(tmp_path, peft_config=LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]))

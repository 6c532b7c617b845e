"""TRL's options of GRPO and RLOO with latents on: memory, precision, decoding, data, references."""

import pytest
import torch
from peft import LoraConfig
from rollout_records import stock_twin
from rollout_trainers import CLASSES, GROUP, generate, make_trainer, train_under_watch
from trainer_testing import (
    assert_logps_equal_spliced,
    guided_counts,
    record_generations,
    rl_dataset,
    spliced_logits,
    tiny_base,
    tiny_palette,
    tiny_palette_model,
    tiny_tokenizer,
)
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from reasoning_palette.modeling_palette import PaletteForCausalLM

METHODS = pytest.mark.parametrize("method", list(CLASSES))


@METHODS
@pytest.mark.parametrize("adapter", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, method, adapter):
    runs = []
    for checkpointing in ({}, {"use_reentrant": True}, {"use_reentrant": False}):
        arguments = {"gradient_checkpointing": bool(checkpointing)}
        if checkpointing:
            arguments["gradient_checkpointing_kwargs"] = checkpointing
        if adapter:
            arguments["peft_config"] = LoraConfig(r=2, target_modules="all-linear", init_lora_weights="gaussian")
        runs.append(train_under_watch(make_trainer(tmp_path, method, **arguments)))
    plain, *checkpointed = runs
    for run in checkpointed:
        for step, gradients in enumerate(run.gradients):
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, plain.gradients[step][name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_bf16_model_with_its_head_in_fp32(tmp_path, tied):
    model = tiny_palette_model(tie_word_embeddings=tied).to(torch.bfloat16)
    trainer = make_trainer(tmp_path, "grpo", model, cast_lm_head_to_fp32=True, bf16=True, learning_rate=3e-2, beta=0.1)
    assert trainer.ref_model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    train_under_watch(trainer)
    first, second = (entry["kl"] for entry in trainer.state.log_history if "kl" in entry)
    assert first < 1e-3 < second  # the reference starts as the policy, up to bfloat16
    embedding = trainer.palette_model.get_input_embeddings()
    codes = trainer.palette_model.draw_codes(1, "code")
    row = embedding(trainer.palette_model.latent_ids(codes, 2))
    decoded = trainer.palette_model.palette.decode(trainer.palette_model.latents_from_codes(codes, 2))
    assert row.dtype == torch.bfloat16
    assert torch.equal(row, decoded.to(torch.bfloat16))


@METHODS
@pytest.mark.parametrize("disable_dropout", [True, False])
def test_dropout(tmp_path, method, disable_dropout):
    sizes = {"vocab_size": 43, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(**sizes, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    model = PaletteForCausalLM.from_base(base, palette=tiny_palette(), tokenizer=tiny_tokenizer())
    trainer = make_trainer(tmp_path, method, model, disable_dropout=disable_dropout)
    inputs, scores = generate(trainer), []
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    for training in (True, False):
        trainer.model.train(training)
        with torch.no_grad():
            scores.append(trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 4)[0])
    assert torch.equal(*scores) == disable_dropout


@METHODS
@pytest.mark.parametrize(
    "settings",
    [
        {"cache_implementation": "static"},
        {"generation_kwargs": {"min_new_tokens": 3}, "pad_to_multiple_of": 8},
        {
            "use_transformers_continuous_batching": True,
            "transformers_continuous_batching_config": {"num_blocks": 16, "max_batch_tokens": 64},
        },
    ],
    ids=["static_cache", "generation_kwargs", "continuous_batching"],
)
def test_greedy_rollouts_equal_hand_spliced_decoding(tmp_path, method, settings):
    settings = dict(settings)
    kwargs = {"do_sample": False, **settings.pop("generation_kwargs", {})}
    trainer = make_trainer(tmp_path, method, generation_kwargs=kwargs, **settings)
    twin, config = stock_twin(trainer.model), trainer.palette_model.config
    trainer.model.train()  # what a step does before it generates
    trainer.state.max_steps = trainer.args.max_steps
    prompts = [row["prompt"] for row in next(iter(trainer.get_train_dataloader()))]
    output = trainer._generate(prompts)
    for prompt, completion in zip(output[0], output[1], strict=True):
        latent = [token for token in prompt if token >= config.latent_id_base]
        row, expected = [token for token in prompt if token < config.latent_id_base], []
        while len(expected) < 6 and tiny_tokenizer().eos_token_id not in expected:
            logits = spliced_logits(twin, trainer.palette_model, latent, row + expected)[-1]
            if len(expected) < kwargs.get("min_new_tokens", 0):
                logits[tiny_tokenizer().eos_token_id] = -torch.inf
            expected.append(int(logits.argmax()))
        assert completion == expected
    assert len({tuple(completion) for completion in output[1]}) > 2


@METHODS
def test_completions_without_a_limit(tmp_path, method):
    trainer = make_trainer(tmp_path, method, max_completion_length=None)
    train_under_watch(trainer)


@METHODS
def test_continuous_batching_with_adapters_in_bf16_leaves_the_palette_in_fp32(tmp_path, method):
    trainer = make_trainer(
        tmp_path, method, bf16=True, use_transformers_continuous_batching=True, learning_rate=1e-1,
        transformers_continuous_batching_config={"num_blocks": 16, "max_batch_tokens": 64},
        peft_config=LoraConfig(r=2, target_modules="all-linear", init_lora_weights="gaussian"),
    )  # fmt: skip
    train_under_watch(trainer)


@METHODS
def test_streaming_datasets(tmp_path, method):
    stream = rl_dataset().to_iterable_dataset()
    trainer = make_trainer(
        tmp_path, method, train_dataset=stream, eval_dataset=stream, eval_strategy="steps", eval_steps=2,
        per_device_eval_batch_size=8, latent_eval=True,
    )  # fmt: skip
    calls = record_generations(trainer)
    train_under_watch(trainer)
    evaluated = [ids for training, _, ids in calls if not training]
    assert [guided_counts(trainer, ids, GROUP) for ids in evaluated] == [[GROUP] * 2] * 8
    assert any("eval_reward" in entry for entry in trainer.state.log_history)


@METHODS
@pytest.mark.parametrize("latent_eval", [False, True])
def test_evaluation_during_training(tmp_path, method, latent_eval):
    trainer = make_trainer(
        tmp_path, method, eval_dataset={"a": rl_dataset(2), "b": rl_dataset(4)}, eval_strategy="steps", eval_steps=1,
        per_device_eval_batch_size=4, num_generations_eval=2, latent_eval=latent_eval, latent_per="prompt",
    )  # fmt: skip
    calls = record_generations(trainer)
    train_under_watch(trainer)
    evaluated = [ids for training, _, ids in calls if not training]
    assert len(evaluated) == 2 * 3  # two evaluations of 4 + 8 rollouts in batches of 4
    assert [guided_counts(trainer, ids, 2) for ids in evaluated] == [[2 if latent_eval else 0] * 2] * 6
    for ids in evaluated if latent_eval else []:
        assert (ids[0][:3], ids[2][:3]) == (ids[1][:3], ids[3][:3])  # one draw per prompt
        assert ids[0][:3] != ids[2][:3]
    logged = [entry for entry in trainer.state.log_history if "eval_a_loss" in entry]
    assert len(logged) == 2


def test_reference_that_follows_the_policy(tmp_path):
    for method in CLASSES:
        tiny_palette_model().save_pretrained(tmp_path / "palette")
        trainer = make_trainer(
            tmp_path, method, str(tmp_path / "palette"), beta=0.1, sync_ref_model=True, ref_model_sync_steps=1,
            ref_model_mixup_alpha=1.0,
        )  # fmt: skip
        train_under_watch(trainer)
        policy = dict(trainer.model.named_parameters())
        assert all(torch.equal(value, policy[name]) for name, value in trainer.ref_model.named_parameters())
        assert_logps_equal_spliced(trainer, trainer.ref_model, stock_twin(trainer.model), generate(trainer))


@METHODS
def test_mixture_of_experts_with_its_auxiliary_loss(tmp_path, method):
    torch.manual_seed(0)
    config = {**tiny_base().config.to_dict(), "architectures": None, "num_experts": 4, "num_experts_per_tok": 2}
    config.pop("model_type")
    base = Qwen3MoeForCausalLM(Qwen3MoeConfig(**config, moe_intermediate_size=16))
    model = PaletteForCausalLM.from_base(base, palette=tiny_palette(), tokenizer=tiny_tokenizer())
    trainer = make_trainer(tmp_path, method, model, router_aux_loss_coef=0.1)
    train_under_watch(trainer)
    assert all(entry["aux_loss"] > 0 for entry in trainer.state.log_history if "loss" in entry)

"""Options of SFT with latents on: memory, noise, metrics, evaluation, lengths, and what is refused."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sft_trainers import LENGTH, make_trainer, train_batch
from trainer_testing import sft_dataset, tiny_base, tiny_palette, tiny_palette_model, tiny_tokenizer
from training_records import train_and_record
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.neftune import activate_neftune

from reasoning_palette.modeling_palette import PaletteForCausalLM


def test_formatting_function_metrics_and_loss_of_the_user(tmp_path):
    seen = []

    def loss_function(outputs, labels, num_items_in_batch=None):
        seen.append((outputs.logits.shape[1], labels.shape[1]))
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / (num_items_in_batch or 1)

    text = lambda row: row["question"] + row["answer"]  # noqa: E731
    dataset = sft_dataset().rename_columns({"prompt": "question", "completion": "answer"})
    settings = {"formatting_func": text, "completion_only_loss": False, "train_dataset": dataset}
    trainer = make_trainer(
        tmp_path, **settings, compute_loss_func=loss_function,
        eval_dataset=dataset.select(range(4)), eval_strategy="steps", eval_steps=3, latent_eval=True,
        compute_metrics=lambda prediction: {"labelled": int((prediction.label_ids != -100).sum())},
    )  # fmt: skip
    ours, theirs = train_and_record(trainer), train_and_record(make_trainer(tmp_path, **settings))
    for loss, other in zip(ours.losses, theirs.losses, strict=True):
        torch.testing.assert_close(loss, other, atol=1e-5, rtol=0)
    assert all(logits == labels for logits, labels in seen)
    entry = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    tokens = [tiny_tokenizer()(text(row) + " <eos>")["input_ids"] for row in dataset.select(range(4))]
    assert entry["eval_labelled"] == sum(len(ids) - 1 for ids in tokens)


@pytest.mark.parametrize(("pairing", "adapter"), [("prior", True), ("posterior", False)])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, pairing, adapter):
    runs = []
    for kwargs in (None, {"use_reentrant": True}, {"use_reentrant": False}, {"selective": True}):
        arguments = {} if kwargs is None else {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs}
        if adapter and kwargs == {"selective": True}:
            continue  # TRL 1.16 passes the key on to torch, which refuses it: with its own class too
        if adapter:
            arguments["peft_config"] = LoraConfig(r=2, target_modules="all-linear", init_lora_weights="gaussian")
        runs.append(train_and_record(make_trainer(tmp_path, latent_pairing=pairing, **arguments)))
    for run in runs[1:]:
        for step, gradients in enumerate(run.gradients):
            assert gradients.keys() == runs[0].gradients[step].keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, runs[0].gradients[step][name], atol=1e-6, rtol=1e-4)


def test_mixture_of_experts_with_its_auxiliary_loss(tmp_path):
    torch.manual_seed(0)
    config = {**tiny_base().config.to_dict(), "architectures": None, "num_experts": 4, "num_experts_per_tok": 2}
    config.pop("model_type")
    base = Qwen3MoeForCausalLM(Qwen3MoeConfig(**config, moe_intermediate_size=16))
    model = PaletteForCausalLM.from_base(base, palette=tiny_palette(), tokenizer=tiny_tokenizer())
    for settings in ({}, {"packing": True}):
        trainer = make_trainer(tmp_path, model, router_aux_loss_coef=0.1, **settings)
        trainer.train()
        assert all(entry["aux_loss"] > 0 for entry in trainer.state.log_history if "loss" in entry)


def test_neftune_noise_falls_on_prefixes_as_on_any_row(tmp_path):
    trainer = make_trainer(tmp_path, neftune_noise_alpha=5.0)
    batch = train_batch(trainer)
    embedding = trainer.palette_model.get_input_embeddings()
    clean = embedding(batch["input_ids"])
    activate_neftune(trainer.model, 5.0, trainer.accelerator)  # as `train` does, after the palette's hooks
    noise = (embedding(batch["input_ids"]) - clean).abs()
    bound = 5.0 / (clean.shape[1] * clean.shape[2]) ** 0.5
    assert noise.max() <= bound
    assert (noise[:, :LENGTH].mean() / bound).item() == pytest.approx(0.5, abs=0.05)
    assert (noise[:, LENGTH:].mean() / bound).item() == pytest.approx(0.5, abs=0.05)
    embedding.eval()
    assert torch.equal(embedding(batch["input_ids"]), clean)
    trainer = make_trainer(tmp_path, neftune_noise_alpha=5.0, latent_pairing="posterior")
    trainer.train()
    assert len(trainer.palette_model.get_input_embeddings()._forward_hooks) == 1  # the palette's alone


def test_neftune_noise_stays_out_of_what_posteriors_pool(tmp_path):
    """Gemma 3 scales its embedding, so that pooling calls the module, hooks and all."""
    config = {"vocab_size": 43, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    base = Gemma3ForCausalLM(Gemma3TextConfig(**config, **heads, bos_token_id=None))
    model = PaletteForCausalLM.from_base(base, palette=tiny_palette(), tokenizer=tiny_tokenizer())
    trainer = make_trainer(tmp_path, model, latent_pairing="posterior")
    pooled, pool = [], trainer.palette_model.pool_traces

    def recording(traces):
        pooled.append(pool(traces))
        return pooled[-1]

    trainer.palette_model.pool_traces = recording
    train_batch(trainer)
    activate_neftune(trainer.model, 50.0, trainer.accelerator)
    train_batch(trainer)
    assert torch.equal(*pooled)
    assert trainer.palette_model.get_input_embeddings().training


def test_evaluation_of_documents_without_boundaries_is_refused_with_latents_only(tmp_path):
    settings = {"eval_packing": True, "eval_dataset": sft_dataset(4)}
    with pytest.raises(ValueError, match=r"`eval_packing=True` without `packing`.*`latent_eval=False`"):
        make_trainer(tmp_path, latent_eval=True, **settings)
    for packing in ({"packing_strategy": "bfd"}, {"packing_strategy": "wrapped"}):
        assert "eval_loss" in make_trainer(tmp_path, **settings, **packing, max_length=16).evaluate()


def test_packed_training_and_plain_evaluation(tmp_path):
    trainer = make_trainer(tmp_path, packing=True, eval_packing=False, latent_eval=True, eval_dataset=sft_dataset(4))
    trainer.model.eval()
    batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
    assert (batch["position_ids"] == 0).sum() == 4
    assert (batch["input_ids"] >= 1 << 24).sum() == 4 * LENGTH


@pytest.mark.parametrize("packing", [False, True])
def test_documents_that_fit_only_without_their_prefix_are_refused_at_construction(tmp_path, packing):
    """60 and 62 positions are within the model's 64, and 62 + 3 are not."""
    model = tiny_palette_model(max_position_embeddings=64)
    rows = [{"prompt": "w1 " * count, "completion": "w2 w3"} for count in (10, 57, 59)]  # an end token each
    settings = {"train_dataset": Dataset.from_list(rows), "packing": packing, "max_length": 64}
    message = r"A document of 62 tokens and its prefix of 3 exceed the model's 64 positions. Set `max_length=61`"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model, **settings)
    settings["train_dataset"] = Dataset.from_list(rows[:2])
    make_trainer(tmp_path, model, **settings).train()


def test_data_that_the_users_collator_prepares(tmp_path):
    """Without tokens in the dataset there is nothing to monitor; the prefixes go in all the same."""
    tokenizer = tiny_tokenizer()

    def collator(rows):
        batch = tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt")
        batch.pop("token_type_ids", None)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    trainer = make_trainer(
        tmp_path, data_collator=collator, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}
    )
    assert (train_batch(trainer)["input_ids"] >= 1 << 24).sum() == 4 * LENGTH
    trainer.train()
    assert not any("latent/sensitivity" in entry for entry in trainer.state.log_history)

"""SFT under latent prefixes: what the loss sees, what moves, what does not, and what is refused."""

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from trainer_testing import (
    LATENT,
    common_arguments,
    sft_dataset,
    snapshot,
    spliced_logits,
    tiny_base,
    tiny_palette,
    tiny_palette_model,
    tiny_tokenizer,
)
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import SFTConfig

from reasoning_palette.trainers.latent_sensitivity import (
    LatentWashoutWarning,
    latent_sensitivity,
    prompt_of,
    warn_if_blind,
    warn_if_washed_out,
)
from reasoning_palette.trainers.palette_sft_trainer import PaletteSFTConfig, PaletteSFTTrainer
from reasoning_palette.trainers.prefix_insertion import find_documents, insert_prefixes


def sft_arguments(folder, **arguments):
    arguments = {"per_device_train_batch_size": 4, "max_steps": 3, "max_length": 32, **arguments}
    return PaletteSFTConfig(**common_arguments(folder, **arguments))


def sft_trainer(folder, model=None, dataset=None, **arguments):
    return PaletteSFTTrainer(
        model=tiny_palette_model() if model is None else model,
        args=sft_arguments(folder, **arguments),
        train_dataset=sft_dataset() if dataset is None else dataset,
        processing_class=tiny_tokenizer(),
    )


def train_batch(trainer):
    trainer.model.train()
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def hand_loss(trainer, base, batch):
    """Mean cross-entropy over the labelled tokens of a padded batch, from hand-spliced rows."""
    id_base, losses = trainer.palette_model.config.latent_id_base, []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        real = ids[mask.bool()].tolist()
        prefix = [token for token in real if token >= id_base]
        assert real[: len(prefix)] == prefix
        logits = spliced_logits(base, trainer.palette_model, prefix, real[len(prefix) :])
        labels = labels[mask.bool()]
        losses += [-logits[i - 1].log_softmax(-1)[labels[i]] for i in range(len(real)) if labels[i] != -100]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("latent_tile", [False, True])
def test_loss_equals_a_hand_spliced_reference(tmp_path, latent_tile):
    trainer = sft_trainer(tmp_path, num_prefix_tokens=3, latent_domain="math", latent_tile=latent_tile)
    batch = train_batch(trainer)
    assert len({mask.sum().item() for mask in batch["attention_mask"]}) > 1  # padding is at work
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
    torch.testing.assert_close(loss, hand_loss(trainer, tiny_base(), batch), atol=1e-5, rtol=0)


def test_prefix_is_attended_to_and_the_same_tokens_are_scored(tmp_path):
    plain = train_batch(sft_trainer(tmp_path, num_prefix_tokens=0, completion_only_loss=False))
    trainer = sft_trainer(tmp_path, num_prefix_tokens=3, completion_only_loss=False)
    batch = train_batch(trainer)
    assert (batch["input_ids"][:, :3] >= trainer.palette_model.config.latent_id_base).all()
    assert torch.equal(batch["input_ids"][:, 3:], plain["input_ids"])
    assert (batch["attention_mask"][:, :3] == 1).all()
    assert (batch["labels"][:, :4] == -100).all()  # the prefix, and the first token, which stock never scores
    assert torch.equal(batch["labels"][:, 4:], plain["labels"][:, 1:])


def test_prior_draws_differ_between_examples_and_steps(tmp_path):
    trainer = sft_trainer(tmp_path)
    loader = list(trainer.get_train_dataloader())
    trainer.model.train()
    drawn = [trainer._prepare_inputs(batch)["input_ids"][:, 0].tolist() for batch in loader]
    trainer.state.global_step = 1
    drawn += [trainer._prepare_inputs(batch)["input_ids"][:, 0].tolist() for batch in loader]
    flat = [token for tokens in drawn for token in tokens]
    assert len(set(flat)) == len(flat)


def test_posterior_draws_come_from_each_examples_own_posterior(tmp_path):
    trainer = sft_trainer(tmp_path, latent_pairing="posterior", num_prefix_tokens=2)
    palette = trainer.palette_model.palette
    batch = train_batch(trainer)
    embedded = trainer.palette_model.get_input_embeddings()(batch["input_ids"])[:, :2]
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        text = [token for token in ids[mask.bool()].tolist()[2:] if token != trainer._tokenizer.eos_token_id]
        pooled = trainer.palette_model.get_input_embeddings().weight[text].mean(dim=0)
        mean, logvar = palette.encode(pooled[None])
        noise = torch.randn(2, LATENT, generator=trainer.latent_generator("train", 0, row, 0))
        latents = mean + torch.exp(0.5 * logvar) * noise
        torch.testing.assert_close(embedded[row], palette.decode(latents), atol=1e-5, rtol=0)


def test_posterior_latents_are_given_back_after_the_forward(tmp_path):
    trainer = sft_trainer(tmp_path, latent_pairing="posterior")
    batch = train_batch(trainer)
    trainer.compute_loss(trainer.model, batch)
    with pytest.raises(ValueError, match="block has ended"):
        trainer.model(input_ids=batch["input_ids"])


@pytest.mark.parametrize("pairing", ["prior", "posterior"])
def test_training_moves_the_base_and_not_the_palette_and_reloads(tmp_path, pairing):
    trainer = sft_trainer(tmp_path, latent_pairing=pairing, num_prefix_tokens=2)
    palette, weights = snapshot(trainer.palette_model.palette), snapshot(trainer.model.model)
    trainer.train()
    assert all(torch.equal(value, palette[name]) for name, value in trainer.palette_model.palette.state_dict().items())
    assert all(
        not torch.equal(value, weights[name])
        for name, value in trainer.model.model.state_dict().items()
        if value.dim() > 1
    )
    trainer.save_model(str(tmp_path / "final"))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final", trust_remote_code=True)
    ids = trainer.model.latent_ids(trainer.model.draw_codes(1, domain="code"), 2)
    ids = torch.cat([ids, torch.tensor([[5, 6, 7]])], dim=1)
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(input_ids=ids).logits, reloaded.eval()(input_ids=ids).logits)


def test_trls_defaults_for_precision_and_memory(tmp_path):
    """bf16 autocast and gradient checkpointing: latents stay in float32, and both pairings train."""
    for pairing in ("prior", "posterior"):
        trainer = sft_trainer(tmp_path, latent_pairing=pairing, bf16=True, gradient_checkpointing=True)
        weights = snapshot(trainer.model.model)
        trainer.train()
        assert {value.dtype for value in trainer.palette_model.palette.state_dict().values()} == {
            torch.float32,
            torch.bool,
        }
        assert not torch.equal(trainer.model.model.embed_tokens.weight, weights["embed_tokens.weight"])


def test_streaming_dataset(tmp_path):
    trainer = sft_trainer(tmp_path, dataset=sft_dataset().to_iterable_dataset())
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("pairing", ["prior", "posterior"])
def test_resumed_run_ends_with_the_same_weights(tmp_path, pairing):
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "latent_pairing": pairing}
    unbroken = sft_trainer(tmp_path / "a", **arguments)
    unbroken.train()
    resumed = sft_trainer(tmp_path / "b", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    expected = unbroken.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    assert unbroken.state.log_history[0]["latent/sensitivity"] == resumed.state.log_history[0]["latent/sensitivity"]


@pytest.mark.parametrize("pairing", ["prior", "posterior"])
def test_packed_rows_equal_the_documents_one_by_one(tmp_path, pairing):
    """In eager attention a packed row is its documents side by side: the loss must be that of separate rows."""
    model = tiny_palette_model(attn_implementation="eager")
    packed = sft_trainer(
        tmp_path, copy.deepcopy(model), packing=True, max_length=24, per_device_train_batch_size=2,
        num_prefix_tokens=2, latent_pairing=pairing,
    )  # fmt: skip
    batch = train_batch(packed)
    documents = find_documents(batch)
    assert len(documents) > 4
    assert (batch["input_ids"] >= model.config.latent_id_base).sum() == 2 * len(documents)
    embedding = packed.palette_model.get_input_embeddings()
    losses = []
    for _, start, length in documents:
        ids = batch["input_ids"][:, start : start + length]
        labels = batch["labels"][0, start : start + length]
        with torch.no_grad():
            logits = tiny_base(attn_implementation="eager")(inputs_embeds=embedding(ids)).logits[0]
        losses += [-logits[i - 1].log_softmax(-1)[labels[i]] for i in range(length) if labels[i] != -100]
    with torch.no_grad():
        loss = packed.compute_loss(packed.model, batch)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-5, rtol=0)


def test_padding_free_boundaries_follow_the_prefixes():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 0]]),  # documents of 3 and 2, padding of 1
        "labels": torch.tensor([[-100, 6, 7, -100, 9, -100]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]]),
        "cu_seq_lens_q": torch.tensor([0, 3, 5, 6], dtype=torch.int32),
        "cu_seq_lens_k": torch.tensor([0, 3, 5, 6], dtype=torch.int32),
        "max_length_q": 3,
        "max_length_k": 3,
        "seq_idx": torch.tensor([[0, 0, 0, 1, 1, 2]], dtype=torch.int32),
    }
    documents = find_documents(batch)
    latent_ids = torch.tensor([[100, 101], [110, 111]])
    wide = insert_prefixes(batch, documents, latent_ids, lambda tokens, prefix: prefix + tokens, 0, 4)
    assert wide["input_ids"].tolist() == [[100, 101, 5, 6, 7, 110, 111, 8, 9, 0, 0, 0]]
    assert wide["labels"].tolist() == [[-100, -100, -100, 6, 7, -100, -100, -100, 9, -100, -100, -100]]
    assert wide["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]]
    assert wide["cu_seq_lens_q"].tolist() == [0, 5, 9, 10, 11, 12]
    assert (wide["max_length_q"], wide["seq_idx"].tolist()) == (5, [[0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 4]])


def test_left_padded_rows_get_the_prefix_behind_the_padding():
    batch = {
        "input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]),
        "labels": torch.tensor([[-100, -100, 5, 6], [7, 8, 9, 10]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
    }
    latent_ids = torch.tensor([[100], [110]])
    after_first = lambda tokens, prefix: tokens[:1] + prefix + tokens[1:]  # noqa: E731
    wide = insert_prefixes(batch, find_documents(batch), latent_ids, after_first, 0)
    assert wide["input_ids"].tolist() == [[0, 0, 5, 100, 6], [7, 110, 8, 9, 10]]
    assert wide["labels"].tolist() == [[-100, -100, -100, -100, 6], [-100, -100, 8, 9, 10]]
    assert wide["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "can only be put into batches whose mask has the shape"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, "row 0 has holes"),
        ({"loss_weights": torch.ones(1, 4)}, "per-token tensor `loss_weights`"),
    ],
)
def test_unknown_batches_are_refused(changes, message):
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8]]),
        "labels": torch.tensor([[5, 6, 7, 8]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.int64),
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        insert_prefixes(batch, find_documents(batch), torch.tensor([[100]]), lambda a, b: b + a, 0)


def test_evaluation_has_no_prefix_unless_asked_for(tmp_path):
    for latent_eval in (False, True):
        trainer = sft_trainer(tmp_path, latent_eval=latent_eval)
        trainer.model.eval()
        batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader(trainer.train_dataset))))
        assert bool((batch["input_ids"] >= trainer.palette_model.config.latent_id_base).any()) == latent_eval
    assert "eval_loss" in trainer.evaluate(trainer.train_dataset)


def test_sensitivity_of_worked_cases():
    """Two codes that force different tokens: ln 2; a model that ignores the prefix: 0."""

    class Forced(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self, responds):
            super().__init__()
            self.responds = responds

        def forward(self, input_ids, **kwargs):
            logits = torch.full((len(input_ids), 1, 3), -100.0)
            for row, ids in enumerate(input_ids.tolist()):
                logits[row, 0, ids[0] - 100 if self.responds else 0] = 100.0
            return type("Outputs", (), {"logits": logits})

    prefixes = torch.tensor([[100], [101]])
    insert = lambda tokens, prefix: prefix + tokens  # noqa: E731
    assert latent_sensitivity(Forced(True), [[5, 6]], prefixes, insert) == pytest.approx(0.693147, abs=1e-5)
    assert latent_sensitivity(Forced(False), [[5, 6]], prefixes, insert) == pytest.approx(0.0, abs=1e-5)


def test_washout_is_warned_of_by_name():
    with pytest.warns(LatentWashoutWarning, match=r"Latent washout: .* 0.1 nats, .* it was 0.5\. .* Do this\."):
        assert warn_if_washed_out(0.1, 0.5, "Do this.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_if_washed_out(0.4, 0.5, "Do this.")
        assert not warn_if_washed_out(1e-7, 2e-6, "Do this.")  # rounding, not a fall
        assert not warn_if_blind(1e-4)
    with pytest.warns(LatentWashoutWarning, match=r"does not move with the latent before training \(2e-06 nats\)"):
        assert warn_if_blind(2e-6)


def test_prompt_of_rows():
    assert prompt_of({"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}) == [1, 2]
    assert prompt_of({"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}) == [1, 2]
    assert prompt_of({"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4], "seq_lengths": [2, 2]}) == [1]


def test_sensitivity_is_logged_before_and_during_training(tmp_path):
    trainer = sft_trainer(tmp_path, num_prefix_tokens=4)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "latent/sensitivity" in entry]
    assert [entry["step"] for entry in logged] == [0, 1, 2, 3]
    assert logged[0]["latent/sensitivity"] > 1e-4


def test_palette_on_a_base_and_a_checkpoint_as_model(tmp_path):
    trainer = PaletteSFTTrainer(
        model=tiny_base(),
        args=sft_arguments(tmp_path, max_steps=1),
        train_dataset=sft_dataset(),
        processing_class=tiny_tokenizer(),
        palette=tiny_palette(),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = PaletteSFTTrainer(
        model=str(tmp_path / "saved"), args=sft_arguments(tmp_path, max_steps=1), train_dataset=sft_dataset()
    )
    assert torch.equal(again.palette_model.palette.encoder[0].weight, trainer.palette_model.palette.encoder[0].weight)
    again.train()


def test_adapter_is_saved_with_its_palette(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base")
    trainer = PaletteSFTTrainer(
        model=str(tmp_path / "base"),
        args=sft_arguments(tmp_path, num_prefix_tokens=2),
        train_dataset=sft_dataset(),
        processing_class=tiny_tokenizer(),
        palette=tiny_palette(),
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    palette = snapshot(trainer.palette_model.palette)
    trainer.train()
    assert all(torch.equal(value, palette[name]) for name, value in trainer.palette_model.palette.state_dict().items())
    trainer.save_model(str(tmp_path / "adapter"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter" / "palette", trust_remote_code=True)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = torch.cat([base.latent_ids(base.draw_codes(1, domain="code"), 2), torch.tensor([[5, 6, 7]])], dim=1)
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(input_ids=ids).logits, reloaded.eval()(input_ids=ids).logits)
        with reloaded.disable_adapter():
            assert not torch.equal(trainer.model(input_ids=ids).logits, reloaded(input_ids=ids).logits)


def test_adapter_whose_palette_has_no_name_is_saved_with_a_warning(tmp_path):
    trainer = PaletteSFTTrainer(
        model=tiny_palette_model(),
        args=sft_arguments(tmp_path, max_steps=1),
        train_dataset=sft_dataset(),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    with pytest.warns(UserWarning, match="The adapter is saved without its palette"):
        trainer.save_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prefix_tokens": 65}, "`num_prefix_tokens` is 65, but this palette allows 0 to `max_prefix_tokens`=64"),
        ({"latent_domain": "art"}, "'art' is unknown; this palette has 'math', 'code'"),
        ({"packing": True, "packing_strategy": "wrapped", "max_length": 16}, "does not keep their boundaries"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        sft_trainer(tmp_path, **arguments)


def test_models_and_palettes_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no palette. Pass `palette=`"):
        sft_trainer(tmp_path, tiny_base())
    with pytest.raises(ValueError, match="`model` has a palette already"):
        PaletteSFTTrainer(tiny_palette_model(), sft_arguments(tmp_path), palette=tiny_palette())
    with pytest.raises(TypeError, match="`args` is a SFTConfig, which has no palette arguments"):
        PaletteSFTTrainer(tiny_palette_model(), SFTConfig(**common_arguments(tmp_path)))


@pytest.mark.parametrize(
    "peft_arguments",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3]}},
    ],
)
def test_adapters_on_the_embedding_are_refused(tmp_path, peft_arguments):
    with pytest.raises(ValueError, match="A PEFT adapter wraps the input embedding"):
        PaletteSFTTrainer(
            model=tiny_palette_model(tie_word_embeddings=False),
            args=sft_arguments(tmp_path),
            train_dataset=sft_dataset(),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=2, **peft_arguments),
        )


def test_streamed_document_that_fits_only_without_its_prefix_is_refused_when_it_comes(tmp_path):
    dataset = Dataset.from_list([{"prompt": "w1 " * 100, "completion": "w2 " * 27}] * 4).to_iterable_dataset()
    trainer = sft_trainer(tmp_path, dataset=dataset, max_length=None, num_prefix_tokens=4)
    with pytest.raises(
        ValueError, match="A document of 128 tokens and its prefix of 4 exceed the model's 128 positions"
    ):
        trainer.train()


def test_transformers_own_arguments_are_taken_as_trl_takes_them(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", num_train_epochs=1, bf16=True)
    trainer = PaletteSFTTrainer(
        tiny_palette_model(), args, train_dataset=sft_dataset(), processing_class=tiny_tokenizer()
    )
    assert isinstance(trainer.args, PaletteSFTConfig)
    assert (trainer.args.num_train_epochs, trainer.args.max_steps, trainer.args.num_prefix_tokens) == (1, -1, 1)


def test_model_card_names_the_paper(tmp_path):
    trainer = sft_trainer(tmp_path)
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "2512.17206" in card
    assert "reasoning-palette" in card

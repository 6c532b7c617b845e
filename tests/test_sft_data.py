"""Every kind of data that TRL's SFT takes, with latents on: what differs from TRL's batches is the prefix only."""

import pytest
from chat_testing import chat_base, chat_palette_model, chat_tokenizer
from datasets import Dataset
from sft_trainers import assert_differs_by_prefixes_only, documents_of, make_trainer, train_batch

CONVERSATION = [
    {"role": "user", "content": "What is 3*4?"},
    {"role": "assistant", "content": "It is 12."},
    {"role": "user", "content": "And 5*6?"},
    {"role": "assistant", "content": "30."},
]


def rows(kind):
    if kind == "text_field":
        return [{"story": text} for text in ("Once upon a time.", "A cat sat on a mat and slept.")] * 4
    if kind == "prompt_completion":
        texts = [("1 + 1 =", " 2"), ("What is it?", " I do not know.")]
        return [{"prompt": prompt, "completion": completion} for prompt, completion in texts] * 4
    if kind == "conversational_prompt_completion":
        return [{"prompt": CONVERSATION[:1], "completion": CONVERSATION[1:2]}] * 8
    if kind == "pre_tokenised":
        first = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9]}
        return [first, {"input_ids": [9, 8, 7], "labels": [-100, -100, 7]}] * 4
    if kind == "pre_tokenised_with_mask":
        return [{"input_ids": [5, 6, 7, 8, 9], "completion_mask": [0, 0, 1, 1, 1]}] * 8
    if kind == "from_value":
        return [{"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello."}]}] * 8
    return [{"messages": CONVERSATION}, {"messages": CONVERSATION[:2]}] * 4


@pytest.mark.parametrize(
    ("kind", "settings", "streaming"),
    [
        ("text_field", {"dataset_text_field": "story"}, True),
        ("prompt_completion", {"completion_only_loss": True}, False),
        ("prompt_completion", {"completion_only_loss": False}, False),
        ("conversational_prompt_completion", {"assistant_only_loss": True}, False),
        ("pre_tokenised", {}, True),
        ("pre_tokenised_with_mask", {"completion_only_loss": True}, False),
        ("messages", {}, True),
        ("messages", {"assistant_only_loss": True}, False),
        ("messages", {"assistant_only_loss": True, "packing": True, "max_length": 128}, True),
        ("from_value", {}, False),
    ],
)
def test_every_kind_of_data(tmp_path, kind, settings, streaming):
    dataset = Dataset.from_list(rows(kind))
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    settings = {"max_length": 256, "max_steps": 1, **settings, "train_dataset": dataset, "tokenizer": chat_tokenizer()}
    stock = train_batch(make_trainer(tmp_path, chat_base(), stock=True, **settings))
    trainer = make_trainer(tmp_path, chat_palette_model(), **settings)
    batch = train_batch(trainer)
    assert_differs_by_prefixes_only(batch, stock)
    if settings.get("assistant_only_loss"):
        scored = [token for _, labels in documents_of(batch) for token in labels if token != -100]
        text = chat_tokenizer().decode(scored)
        assert "It is 12." in text
        assert "What is" not in text
    trainer.train()
    assert trainer.state.global_step == 1

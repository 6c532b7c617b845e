"""The decoding matrix: drafts by an assistant, by the model itself and by prompt lookup."""

import copy

import pytest
import torch
from decoding_reference import speculative_sampling
from decoding_settings import (
    CODE,
    EVERYWHERE,
    IDS,
    MASK,
    ROW,
    ROW_MASK,
    WIDTH,
    Setting,
    as_stock,
    both,
    check,
    equal,
    refused,
)
from trainer_testing import tiny_base, tiny_tokenizer
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process as process


def assistant(schedule="constant", **config):
    """A different model of the same vocabulary."""
    model = tiny_base(seed=3, **{"tie_word_embeddings": False, "initializer_range": 0.3, **config})
    model.generation_config.update(
        num_assistant_tokens=3,
        num_assistant_tokens_schedule=schedule,
        assistant_confidence_threshold=0.0,
        eos_token_id=None,
    )
    return model


def assisted_rows(setting, arguments, processors=(), new_tokens=12):
    """One row each with and without prefix: `arguments` change nothing but the speed."""
    rows = 0
    for prefixed, reference in both(setting, ROW, ROW_MASK, CODE):
        expected = reference.decode(ROW, LogitsProcessorList(processors), max_new_tokens=new_tokens)[0]
        made = arguments() if callable(arguments) else arguments
        found = setting.generate(prefixed, ROW, codes=CODE, do_sample=False, max_new_tokens=new_tokens, **made)
        rows += equal(found, expected)
    return rows


@check(
    "Assisted decoding",
    "an assistant, schedule `{}`",
    settings=EVERYWHERE,
    each=[(name, {"schedule": name}) for name in ("constant", "heuristic", "heuristic_transient")],
    note="it drafts on the sequence without the prefix",
)
def with_assistant(setting, schedule):
    return assisted_rows(setting, lambda: {"assistant_model": assistant(schedule)})


@check("Assisted decoding", "an assistant that is a copy of the base: drafts are accepted")
def with_good_assistant(setting):
    model = copy.deepcopy(setting.base)
    model.generation_config.update(
        num_assistant_tokens=4, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    passes = []
    handle = setting.base.lm_head.register_forward_hook(lambda *arguments: passes.append(1))
    found = setting.model.generate(ROW, assistant_model=model, do_sample=False, max_new_tokens=12)
    handle.remove()
    assert len(passes) < 5  # 12 tokens, up to 5 in one pass
    rows = equal(found, setting.reference(False, ROW, ROW_MASK).decode(ROW, max_new_tokens=12)[0])
    return rows + assisted_rows(setting, lambda: {"assistant_model": model})


@check("Assisted decoding", "an assistant, with `repetition_penalty` and `no_repeat_ngram_size`", settings=EVERYWHERE)
def with_assistant_and_processors(setting):
    processors = [process.RepetitionPenaltyLogitsProcessor(1.5), process.NoRepeatNGramLogitsProcessor(2)]
    arguments = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    return assisted_rows(setting, lambda: {"assistant_model": assistant(), **arguments}, processors)


@check("Assisted decoding", "an assistant, sampling (algorithm 1, by hand)", settings=EVERYWHERE)
def with_assistant_sampling(setting):
    rows = 0
    model = assistant()
    for prefixed, reference in both(setting, ROW, ROW_MASK, CODE):
        drafts = Setting(model, setting.model).reference(False, ROW, ROW_MASK)
        expected = speculative_sampling(reference, drafts, ROW, 3, 12, seed=6)
        torch.manual_seed(6)
        found = setting.generate(
            prefixed, ROW, codes=CODE, do_sample=True, top_k=0, max_new_tokens=12, assistant_model=model
        )
        rows += equal(found, expected)
    return rows


def larger_tokenizer():
    """The tiny tokenizer and 17 words more."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"x{number}" for number in range(17)])
    return tokenizer


@check(
    "Assisted decoding",
    "an assistant with another tokenizer",
    note="greedy; with sampling, transformers 5.24 itself fails now and then (NaN in its probabilities)",
)
def universal_assistant(setting):
    words = tiny_tokenizer()
    return assisted_rows(
        setting,
        lambda: {
            "assistant_model": assistant(vocab_size=60),
            "tokenizer": words,
            "assistant_tokenizer": larger_tokenizer(),
        },
    )


@check("Assisted decoding", "`assistant_early_exit`", settings=EVERYWHERE, note="the model's own first layers draft")
def early_exit(setting):
    return assisted_rows(setting, {"assistant_early_exit": 1})


@check(
    "Assisted decoding",
    "prompt lookup{}",
    settings=EVERYWHERE,
    each=[
        ("", {}),
        (", `max_matching_ngram_size=1`", {"max_matching_ngram_size": 1}),
        (" with `no_repeat_ngram_size`", {"no_repeat_ngram_size": 2}),
    ],
    note="it looks up the sequence without the prefix",
)
def prompt_lookup(setting, **arguments):
    processors = [process.NoRepeatNGramLogitsProcessor(2)] if "no_repeat_ngram_size" in arguments else []
    return assisted_rows(setting, {"prompt_lookup_num_tokens": 3, **arguments}, processors)


@check("Assisted decoding", "prompt lookup, sampling", settings=EVERYWHERE)
def prompt_lookup_sampling(setting):
    """A round draws a token for each drafted position and one more, and keeps them up to the first that differs."""
    rows = 0
    for prefixed, reference in both(setting, ROW, ROW_MASK, CODE):
        torch.manual_seed(7)
        ids, end = ROW, WIDTH + 12
        while ids.shape[1] < end:
            drafts = _look_up(ids[0].tolist(), 3, end)
            longer = torch.cat([ids, torch.tensor([drafts], dtype=torch.long)], 1)
            logits = [reference.next_logits(longer[:, : ids.shape[1] + i])[0] for i in range(len(drafts) + 1)]
            drawn = torch.multinomial(torch.stack(logits).softmax(-1), 1)[:, 0].tolist()
            kept = next((i for i, token in enumerate(drafts) if drawn[i] != token), len(drafts)) + 1
            ids = torch.cat([ids, torch.tensor([drawn[:kept]])], 1)
        torch.manual_seed(7)
        found = setting.generate(
            prefixed, ROW, codes=CODE, do_sample=True, top_k=0, max_new_tokens=12, prompt_lookup_num_tokens=3
        )
        rows += equal(found, ids)
    return rows


def _look_up(tokens, count, end):
    """What follows the first earlier occurrence of the last two tokens, or of the last one."""
    if end == len(tokens) + 1:
        return []
    for size in (2, 1):
        for start in range(len(tokens) - size + 1):
            following = tokens[start + size : min(start + size + count, end)]
            if tokens[start : start + size] == tokens[-size:] and following:
                return following
    return []


@check("Assisted decoding", "an assistant for two prompts at once")
def assisted_batch(setting):
    return as_stock(
        setting,
        IDS,
        attention_mask=MASK,
        assistant_model=assistant(),
        max_new_tokens=4,
        contains="assisted generate is only supported for batch_size = 1",
    )


@check("Assisted decoding", "`use_mtp=True` on a model without such layers")
def multi_token_prediction(setting):
    if not hasattr(GenerationConfig(), "use_mtp"):
        pytest.skip("this transformers has no `use_mtp`")
    return as_stock(
        setting,
        ROW,
        use_mtp=True,
        max_new_tokens=4,
        prefix={"latent": CODE},
        contains="Could not find `num_mtp_layers`",
    )


@check("Assisted decoding", "an assistant with `num_return_sequences` above 1")
def assisted_sequences(setting):
    arguments = {"assistant_model": assistant(), "num_return_sequences": 2, "do_sample": True, "max_new_tokens": 4}
    refused("num_return_sequences has to be 1", lambda: setting.base.generate(ROW, **arguments))
    return refused(
        "assisted generate is only supported for batch_size = 1",
        lambda: setting.model.generate(ROW, num_prefix_tokens=2, **arguments),
    )

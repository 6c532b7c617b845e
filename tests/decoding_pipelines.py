"""The decoding matrix: `pipeline("text-generation")`, with text and with chats."""

import functools

import torch
from chat_testing import chat_base, chat_tokenizer
from decoding_settings import CODES, LENGTH, LIVELY, Setting, check, equal
from trainer_testing import tiny_palette
from transformers import TextStreamer, pipeline

from reasoning_palette.modeling_palette import PaletteForCausalLM

TEXTS = ["one and one", "so"]
CHATS = [[{"role": "user", "content": "1+1?"}], [{"role": "user", "content": "a longer question?"}]]
ARGUMENTS = {"max_new_tokens": 6, "do_sample": False, "num_prefix_tokens": LENGTH}


@functools.cache
def chat():
    """A base with a chat template, and the pipeline of its palette model."""
    base = chat_base(**LIVELY)
    base.generation_config.eos_token_id = None
    tokenizer = chat_tokenizer()
    tokenizer.padding_side = "left"
    model = PaletteForCausalLM.from_base(base, palette=tiny_palette(), tokenizer=tokenizer)
    return Setting(base, model), pipeline("text-generation", model=model, tokenizer=tokenizer)


def completion(prompt_ids, code, seed=None, max_new_tokens=6):
    """The reference's text behind a prompt."""
    where, pipe = chat()
    ids = torch.tensor([prompt_ids])
    reference = where.reference(code is not None, ids, torch.ones_like(ids), [code])
    ids = reference.decode(ids, max_new_tokens=max_new_tokens)[0]
    return pipe.tokenizer.decode(ids[0, len(prompt_ids) :], skip_special_tokens=True)


def ids_of_text(text):
    return chat()[1].tokenizer(text)["input_ids"]


def ids_of_chat(messages):
    return chat()[1].tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


@check("Pipelines", "text, `return_full_text` both ways")
def text(where):
    _, pipe = chat()
    for code in (None, CODES[0]):
        expected = completion(ids_of_text(TEXTS[0]), code)
        palette = {} if code is None else {"latent": code}
        arguments = ARGUMENTS if code is not None else {"max_new_tokens": 6, "do_sample": False}
        found = pipe(TEXTS[0], return_full_text=False, **arguments, **palette)
        assert [one["generated_text"] for one in found] == [expected]
        found = pipe(TEXTS[0], **arguments, **palette)
        assert [one["generated_text"] for one in found] == [TEXTS[0] + expected]
    return 4


@check("Pipelines", "several texts, a code or a domain for each", note="with `batch_size` at least their number")
def texts(where):
    _, pipe = chat()
    found = pipe(TEXTS, batch_size=2, return_full_text=False, latent=CODES, **ARGUMENTS)
    expected = [completion(ids_of_text(text), code) for text, code in zip(TEXTS, CODES, strict=True)]
    assert [one[0]["generated_text"] for one in found] == expected
    # the same draws, by the seed
    codes = pipe.model.draw_codes(2, ["math", "code"], torch.Generator().manual_seed(3)).tolist()
    found = pipe(TEXTS, batch_size=2, return_full_text=False, domain=["math", "code"], latent_seed=3, **ARGUMENTS)
    expected = [completion(ids_of_text(text), code) for text, code in zip(TEXTS, codes, strict=True)]
    assert [one[0]["generated_text"] for one in found] == expected
    return 4


@check("Pipelines", "several texts one at a time, with a domain for each")
def texts_one_at_a_time(where):
    _, pipe = chat()
    try:
        pipe(TEXTS, domain=["math", "code"], **ARGUMENTS)
    except ValueError as error:
        assert "`domain` lists 2 names for 1 prompts. Give one per prompt" in str(error)
        return "refused: `domain` lists 2 names for 1 prompts"
    raise AssertionError


@check("Pipelines", "chats, one and a batch")
def chats(where):
    _, pipe = chat()
    expected = [completion(ids_of_chat(messages), code) for messages, code in zip(CHATS, CODES, strict=True)]
    found = pipe(CHATS[0], latent=CODES[0], **ARGUMENTS)[0]["generated_text"]
    assert found == [*CHATS[0], {"role": "assistant", "content": expected[0]}]
    found = pipe(CHATS, batch_size=2, latent=CODES, **ARGUMENTS)
    assert [one[0]["generated_text"][-1]["content"] for one in found] == expected
    return 3


@check("Pipelines", "`num_return_sequences`, greedy, a draw for each")
def several_sequences(where):
    _, pipe = chat()
    codes = pipe.model.draw_codes(3, "math", torch.Generator().manual_seed(3)).tolist()
    found = pipe(TEXTS[0], return_full_text=False, num_return_sequences=3, domain="math", latent_seed=3, **ARGUMENTS)
    expected = [completion(ids_of_text(TEXTS[0]), code) for code in codes]
    assert len(set(expected)) > 1
    assert [one["generated_text"] for one in found] == expected
    return 3


@check("Pipelines", "a streamer")
def streamed(where):
    _, pipe = chat()

    class Pieces(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append(text)

    pieces: list[str] = []
    streamer = Pieces(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    pipe(TEXTS[0], streamer=streamer, latent=CODES[0], **ARGUMENTS)
    equal([map(ord, "".join(pieces))], [map(ord, completion(ids_of_text(TEXTS[0]), CODES[0]))])
    return 1


@check("Pipelines", "`max_length` with a `prefix=` of the pipeline", note="its textual prefix, not the palette's")
def textual_prefix(where):
    _, pipe = chat()
    ids = ids_of_text("so: " + TEXTS[0])
    expected = completion(ids, CODES[0])
    found = pipe(
        TEXTS[0],
        prefix="so: ",
        return_full_text=False,
        latent=CODES[0],
        num_prefix_tokens=LENGTH,
        max_new_tokens=6,
        do_sample=False,
    )
    assert found[0]["generated_text"].endswith(expected)
    return 1

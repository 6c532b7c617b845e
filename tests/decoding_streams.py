"""The decoding matrix: streamers."""

import asyncio
import threading

from decoding_assisted import assistant
from decoding_settings import CODE, EVERYWHERE, IDS, LENGTH, NEW_TOKENS, ROW, ROW_MASK, WIDTH, as_stock, check, equal
from trainer_testing import tiny_tokenizer
from transformers import AsyncTextIteratorStreamer, TextIteratorStreamer, TextStreamer


def expected_text(setting, skip_prompt):
    row = setting.reference(True, ROW, ROW_MASK, CODE).decode(ROW)[0][0]
    return tiny_tokenizer().decode(row[WIDTH if skip_prompt else 0 :])


STREAM = {"latent": CODE, "num_prefix_tokens": LENGTH, "max_new_tokens": NEW_TOKENS, "do_sample": False}
PROMPT_OR_NOT = [(f"`skip_prompt={skip}`", {"skip_prompt": skip}) for skip in (False, True)]


@check("Streaming", "`TextStreamer`, {}", each=PROMPT_OR_NOT, settings=EVERYWHERE)
def text_streamer(setting, skip_prompt):
    class Pieces(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append(text)

    pieces: list[str] = []
    setting.model.generate(ROW, streamer=Pieces(tiny_tokenizer(), skip_prompt=skip_prompt), **STREAM)
    assert len(pieces) > 3
    assert "".join(pieces) == expected_text(setting, skip_prompt)
    return 1


@check("Streaming", "`TextIteratorStreamer`, {}", each=PROMPT_OR_NOT)
def text_iterator_streamer(setting, skip_prompt):
    streamer = TextIteratorStreamer(tiny_tokenizer(), skip_prompt=skip_prompt, timeout=60)
    thread = threading.Thread(target=setting.model.generate, args=(ROW,), kwargs={"streamer": streamer, **STREAM})
    thread.start()
    found = "".join(streamer)
    thread.join()
    assert found == expected_text(setting, skip_prompt)
    return 1


@check("Streaming", "`AsyncTextIteratorStreamer`, {}", each=PROMPT_OR_NOT)
def async_streamer(setting, skip_prompt):
    async def collect():
        streamer = AsyncTextIteratorStreamer(tiny_tokenizer(), skip_prompt=skip_prompt, timeout=60)
        thread = threading.Thread(target=setting.model.generate, args=(ROW,), kwargs={"streamer": streamer, **STREAM})
        thread.start()
        pieces = [piece async for piece in streamer]
        thread.join()
        return "".join(pieces)

    assert asyncio.run(collect()) == expected_text(setting, skip_prompt)
    return 1


@check("Streaming", "a streamer under assisted decoding and prompt lookup")
def streamed_drafts(setting):
    for arguments in ({"assistant_model": assistant()}, {"prompt_lookup_num_tokens": 3}):
        pieces: list[str] = []

        class Pieces(TextStreamer):
            def put(self, value, pieces=pieces):
                pieces.extend(value.flatten().tolist())

            def end(self): ...

        setting.model.generate(ROW, streamer=Pieces(tiny_tokenizer()), **STREAM, **arguments)
        equal([pieces], setting.reference(True, ROW, ROW_MASK, CODE).decode(ROW)[0])
    return 2


@check("Streaming", "a streamer under beam search")
def streamed_beams(setting):
    return as_stock(
        setting,
        IDS,
        num_beams=2,
        streamer=TextStreamer(tiny_tokenizer()),
        contains="`streamer` cannot be used with beam search",
    )

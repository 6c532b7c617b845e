"""Pooled trace embeddings (METHOD eq. 5): the mean of the input embedding's output over a trace's tokens."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from reasoning_palette.modeling_palette import trace_pooling
from reasoning_palette.modeling_palette.trace_pooling import (
    iter_pooled_traces,
    pool_token_ids,
    pool_traces,
    trace_text,
)

# More columns than one block, and not a multiple of it.
VOCAB_SIZE, HIDDEN_SIZE = 50, 200
WORDS = ["[UNK]", "how", "many", "clips", "four", "twelve", "add", "them", "so", "it", "is"]


@pytest.fixture
def embedding():
    torch.manual_seed(0)
    return nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


def ragged_ids(num_sequences, seed=0):
    generator = np.random.default_rng(seed)
    # Few distinct ids: repeats within a trace are the rule.
    return [generator.integers(0, VOCAB_SIZE, generator.integers(1, 90)).tolist() for _ in range(num_sequences)]


def reference(sequences, embedding):
    """Eq. 5 by hand, in float64."""
    return torch.stack([embedding(torch.tensor(ids)).double().mean(dim=0) for ids in sequences]).detach()


class TestPoolTokenIds:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_mean_of_the_rows_accumulated_in_float32(self, embedding, dtype):
        sequences = ragged_ids(30)
        pooled = pool_token_ids(sequences, embedding.to(dtype))
        assert pooled.dtype == torch.float32 and pooled.shape == (30, HIDDEN_SIZE)
        torch.testing.assert_close(pooled.double(), reference(sequences, embedding), atol=5e-7, rtol=0)

    def test_long_sequences_in_low_precision_keep_their_low_bits(self, embedding):
        sequences = [list(range(VOCAB_SIZE)) * 400]
        pooled = pool_token_ids(sequences, embedding.bfloat16())
        torch.testing.assert_close(pooled.double(), reference(sequences, embedding), atol=1e-6, rtol=0)

    def test_scaled_embeddings_are_pooled_after_the_scale(self):
        torch.manual_seed(0)
        gemma = Gemma3TextScaledWordEmbedding(VOCAB_SIZE, HIDDEN_SIZE, padding_idx=0, embed_scale=HIDDEN_SIZE**0.5)
        for module in (gemma, gemma.bfloat16()):
            sequences = ragged_ids(10)
            expected = reference(sequences, module)
            torch.testing.assert_close(pool_token_ids(sequences, module).double(), expected, atol=1e-5, rtol=0)

    def test_any_callable(self, embedding):
        sequences = ragged_ids(10)
        pooled = pool_token_ids(sequences, lambda ids: 3.0 * embedding(ids) + 1.0)
        torch.testing.assert_close(pooled.double(), 3.0 * reference(sequences, embedding) + 1.0, atol=2e-6, rtol=0)

    def test_a_replaced_forward_counts(self, embedding):
        # As accelerate's offloading does.
        sequences, plain = ragged_ids(10), embedding.forward
        expected = 2.0 * reference(sequences, embedding)
        embedding.forward = lambda ids: 2.0 * plain(ids)
        torch.testing.assert_close(pool_token_ids(sequences, embedding).double(), expected, atol=1e-6, rtol=0)

    def test_max_norm_counts(self):
        torch.manual_seed(0)
        embedding = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE, max_norm=1.0)
        sequences = ragged_ids(10)
        torch.testing.assert_close(
            pool_token_ids(sequences, embedding).double(), reference(sequences, embedding), atol=1e-6, rtol=0
        )

    def test_hooks_for_latent_ids_do_not_interfere(self, embedding):
        sequences = ragged_ids(10)
        expected = pool_token_ids(sequences, embedding)
        embedding.register_forward_pre_hook(lambda module, args: (args[0].masked_fill(args[0] >= VOCAB_SIZE, 0),))
        assert torch.equal(pool_token_ids(sequences, embedding), expected)

    def test_no_gradient(self, embedding):
        assert not pool_token_ids(ragged_ids(3), embedding).requires_grad

    def test_empty_sequences(self, embedding):
        with pytest.raises(ValueError, match=r"`sequences` must hold token ids, got none: rows 1, 2"):
            pool_token_ids([[1], [], []], embedding)
        with pytest.raises(ValueError, match=r"`sequences` must hold token ids, got none: no sequences"):
            pool_token_ids([], embedding)

    @pytest.mark.parametrize("token", [-1, VOCAB_SIZE, 1 << 24])
    def test_unknown_ids(self, embedding, token):
        with pytest.raises(ValueError, match=rf"Token id {token} is not in .* 50 rows. Does the tokenizer belong"):
            pool_token_ids([[1, 2], [3, token]], embedding)


class TestPoolTraces:
    def test_rows_texts_and_ids_agree(self, embedding, tokenizer):
        row = {"question": "how many clips", "reasoning": "four add twelve", "answer": "four"}
        text = "how many clips\nfour add twelve\nfour"
        pooled = pool_traces(
            [row, text, [1, 2, 3, 4, 6, 5, 4], torch.tensor([1, 2, 3, 4, 6, 5, 4])], embedding, tokenizer
        )
        expected = reference([[1, 2, 3, 4, 6, 5, 4]], embedding).float()
        torch.testing.assert_close(pooled, expected.expand(4, -1))

    @pytest.mark.parametrize("batch_size", [1, 7, 1000])
    def test_chunks_keep_the_order(self, embedding, batch_size):
        sequences = ragged_ids(20)
        pooled = pool_traces(iter(sequences), embedding, batch_size=batch_size)
        torch.testing.assert_close(pooled.double(), reference(sequences, embedding), atol=5e-7, rtol=0)

    def test_memory_is_bounded(self, embedding, monkeypatch):
        monkeypatch.setattr(trace_pooling, "MAX_CHUNK_LENGTH", 100)
        read = []

        def endless():
            while True:
                read.append(len(read))
                yield [1] * 30

        chunks = iter_pooled_traces(endless(), embedding)
        assert [len(next(chunks)) for _ in range(3)] == [4, 4, 4]
        assert len(read) == 12

    def test_duplicates_are_computed_once(self, embedding, tokenizer, monkeypatch):
        texts = ["how many clips", "four", "how many clips", "four", "four"]
        seen = []
        pool = trace_pooling.pool_token_ids
        monkeypatch.setattr(
            trace_pooling, "pool_token_ids", lambda ids, *args: seen.append(len(ids)) or pool(ids, *args)
        )
        pooled = pool_traces(texts, embedding, tokenizer)
        assert seen == [2]
        torch.testing.assert_close(pooled.double(), reference([tokenizer(t)["input_ids"] for t in texts], embedding))

    def test_special_tokens_are_not_pooled(self, embedding, tokenizer):
        class WithBos:
            def __call__(self, texts, add_special_tokens=True, **kwargs):
                encoded = tokenizer(texts, **kwargs)
                return {"input_ids": [[9] * add_special_tokens + ids for ids in encoded["input_ids"]]}

        plain = pool_traces(["four"], embedding, tokenizer)
        assert torch.equal(pool_traces(["four"], embedding, WithBos()), plain)

    def test_a_processor_lends_its_tokenizer(self, embedding, tokenizer):
        processor = type("Processor", (), {"tokenizer": tokenizer})()
        assert torch.equal(pool_traces(["four"], embedding, processor), pool_traces(["four"], embedding, tokenizer))

    def test_empty_traces_are_named(self, embedding, tokenizer):
        rows = [{"question": "four", "answer": ""}, {"question": "", "answer": ""}] * 2 + ["", " "]
        with pytest.raises(ValueError, match=r"4 traces have no tokens to pool: rows 1, 3, 4, 5\. Drop them"):
            pool_traces(rows, embedding, tokenizer)

    def test_row_numbers_count_across_chunks(self, embedding, tokenizer):
        with pytest.raises(ValueError, match=r"1 traces have no tokens to pool: row 5\."):
            pool_traces(["four"] * 5 + [""], embedding, tokenizer, batch_size=2)

    def test_many_empty_traces_are_counted(self, embedding, tokenizer):
        with pytest.raises(ValueError, match="rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"):
            pool_traces([""] * 12, embedding, tokenizer)

    def test_no_traces(self, embedding):
        with pytest.raises(ValueError, match="`traces` is empty"):
            pool_traces([], embedding)

    @pytest.mark.parametrize("traces", ["four", {"question": "four", "answer": "it"}])
    def test_one_trace_is_not_a_list(self, embedding, tokenizer, traces):
        with pytest.raises(TypeError, match=r"`traces` must be an iterable of traces, got one .* Put it in a list"):
            pool_traces(traces, embedding, tokenizer)

    @pytest.mark.parametrize("trace", [3, [1.5], None, [[1]]])
    def test_other_things(self, embedding, tokenizer, trace):
        with pytest.raises(TypeError, match="row 1 is not a trace"):
            pool_traces(["four", trace], embedding, tokenizer)

    def test_text_without_tokenizer(self, embedding):
        with pytest.raises(ValueError, match="`tokenizer` is None, but some traces are text"):
            pool_traces(["four"], embedding)

    def test_batch_size(self, embedding):
        with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
            pool_traces([[1]], embedding, batch_size=0)


class TestTraceText:
    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            ({"question": "q", "answer": "a"}, "q\na"),
            ({"question": "q", "reasoning": "r", "answer": "a", "domain": "math"}, "q\nr\na"),
            ({"question": "q", "reasoning": None, "answer": "a"}, "q\na"),
            ({"question": "q", "reasoning": "r", "answer": None}, "q\nr"),
            ({"prompt": "q ", "completion": "a"}, "q a"),
            ({"question": None, "reasoning": None, "answer": None, "prompt": "q ", "completion": "a"}, "q a"),
            ({"prompt": None, "completion": None, "messages": [{"role": "user", "content": "q"}]}, "q"),
            (
                {
                    "prompt": [{"role": "user", "content": "q"}],
                    "completion": [{"role": "assistant", "content": "a"}],
                },
                "q\na",
            ),
            ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "q\na"),
            (
                {
                    "messages": [
                        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]},
                        {"role": "assistant", "content": "a", "reasoning_content": "r"},
                    ]
                },
                "q\nr\na",
            ),
            ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}, "q"),
        ],
    )
    def test_formats(self, row, expected):
        assert trace_text(row) == expected

    def test_wrong_columns(self):
        with pytest.raises(
            ValueError, match=r"row 7 is not a trace: it has the columns \['query', 'response'\], but a"
        ):
            trace_text({"query": "q", "response": "a"}, "row 7")

    def test_wrong_values(self):
        with pytest.raises(TypeError, match="`answer` of row must be a string, got int: 3"):
            trace_text({"question": "q", "answer": 3})
        with pytest.raises(TypeError, match="`prompt` of row must be a string or a list of messages, got int: 3"):
            trace_text({"prompt": 3, "completion": "a"})
        with pytest.raises(
            TypeError, match="A message's content in `messages` of row must be a string or a list of parts"
        ):
            trace_text({"messages": [{"role": "user", "content": 3}]})

"""The decoding matrix, the part that is a table: arguments of `generate`, and the processors of the reference."""

import string

import torch
from decoding_settings import EVERY_MODEL, EVERYWHERE, IDS, WIDTH, Case, repetition_penalty_behind
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    DynamicCache,
    EosTokenCriteria,
    LogitsProcessor,
    MaxLengthCriteria,
    PreTrainedTokenizerFast,
    StaticCache,
    StoppingCriteria,
)
from transformers.generation import logits_process as process


class NeverTwice(LogitsProcessor):
    """A user's processor: no token of the sequence again."""

    def __call__(self, input_ids, scores):
        return scores.scatter(1, input_ids, float("-inf"))


class StopAt(StoppingCriteria):
    """A user's criterion: stops every row at a total length, and reads all the ids."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        assert int(input_ids.max()) < 43
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def letters(extended=None):
    """A tokenizer of 43 tokens, one letter each; with `extended`, many tokens begin with that id's letter."""
    alphabet = ["<pad>", "<eos>", "<unk>", *string.ascii_letters[:40]]
    if extended is not None:
        alphabet[29:] = [alphabet[extended] + letter for letter in alphabet[29:]]
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(alphabet)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.decoder = Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "bos_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **special)


def text(ids):
    return "".join(letters().convert_ids_to_tokens(ids.tolist()))


def two_tokens(run):
    """The second and third token of row 0."""
    return run.greedy[0, WIDTH + 1 : WIDTH + 3]


def warper(**arguments):
    """Sampling with one argument, and its processor from transformers."""
    classes = {
        "temperature": process.TemperatureLogitsWarper,
        "top_k": process.TopKLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
        "top_h": getattr(process, "TopHLogitsWarper", None),
        "typical_p": process.TypicalLogitsWarper,
        "epsilon_cutoff": process.EpsilonLogitsWarper,
        "eta_cutoff": lambda value: process.EtaLogitsWarper(value, device="cpu"),
    }
    return Case(
        "Sampling",
        ", ".join(f"`{name}={value}`" for name, value in arguments.items()),
        {"top_k": 0, **arguments},
        processors=lambda run: [classes[name](value) for name, value in arguments.items()],
        seed=3,
    )


def at_end_of_prompt(run):
    """Bans the first greedy token of row 0 behind its last prompt token, and the second of row 1 anywhere."""
    return [[int(IDS[0, -1]), run.token(0, 0)], [run.token(1, 1)]]


SEARCH = [
    Case("Search", "greedy", {}, bites=False, settings=EVERY_MODEL),
    Case("Search", "multinomial sampling", {"top_k": 0}, seed=1, bites=False, settings=EVERY_MODEL),
    warper(temperature=0.7),
    warper(top_k=5),
    warper(top_p=0.8),
    warper(min_p=0.1),
    *([warper(top_h=0.4)] if hasattr(process, "TopHLogitsWarper") else []),
    warper(typical_p=0.8),
    warper(epsilon_cutoff=0.02),
    warper(eta_cutoff=0.05),
    warper(temperature=3.0, top_k=12, top_p=0.9),
    Case(
        "Sampling",
        "`renormalize_logits=True`",
        {"top_k": 5, "renormalize_logits": True},
        processors=lambda run: [process.TopKLogitsWarper(5), process.LogitNormalization()],
        seed=3,
    ),
]

PROCESSORS = [
    Case(
        "Logits processors",
        "`repetition_penalty`",
        {"repetition_penalty": 3.0},
        processors=lambda run: [repetition_penalty_behind(3.0, [2, 0])],
        settings=EVERYWHERE,
    ),
    Case(
        "Logits processors",
        "`no_repeat_ngram_size`",
        {"no_repeat_ngram_size": 1},
        processors=lambda run: [process.NoRepeatNGramLogitsProcessor(1)],
        settings=EVERYWHERE,
    ),
    Case(
        "Logits processors",
        "`encoder_repetition_penalty`",
        {"encoder_repetition_penalty": 8.0},
        processors=lambda run: [process.EncoderRepetitionPenaltyLogitsProcessor(8.0, IDS)],
        settings=EVERYWHERE,
        note="the prompt stands for the encoder's input, as on the base",
    ),
    Case(
        "Logits processors",
        "`encoder_no_repeat_ngram_size`",
        {"encoder_no_repeat_ngram_size": 1, "temperature": 3.0, "top_k": 0},
        processors=lambda run: [
            process.EncoderNoRepeatNGramLogitsProcessor(1, IDS),
            process.TemperatureLogitsWarper(3.0),
        ],
        seed=0,
        settings=EVERYWHERE,
        note="the prompt stands for the encoder's input, as on the base",
    ),
    Case(
        "Logits processors",
        "`bad_words_ids`, one of which begins in the prompt",
        lambda run: {"bad_words_ids": at_end_of_prompt(run)},
        processors=lambda run: [process.NoBadWordsLogitsProcessor(at_end_of_prompt(run))],
        settings=EVERYWHERE,
    ),
    Case(
        "Logits processors",
        "`sequence_bias`, one of which begins in the prompt",
        lambda run: {"sequence_bias": [[ids, -20.0] for ids in at_end_of_prompt(run)]},
        processors=lambda run: [process.SequenceBiasLogitsProcessor([[i, -20.0] for i in at_end_of_prompt(run)])],
        settings=EVERYWHERE,
    ),
    Case(
        "Logits processors",
        "`suppress_tokens`",
        lambda run: {"suppress_tokens": [run.token(0, 0), run.token(1, 1)]},
        processors=lambda run: [
            process.SuppressTokensLogitsProcessor([run.token(0, 0), run.token(1, 1)], device="cpu")
        ],
    ),
    Case(
        "Logits processors",
        "`begin_suppress_tokens`",
        lambda run: {"begin_suppress_tokens": [run.token(0, 0)]},
        processors=lambda run: [process.SuppressTokensAtBeginLogitsProcessor([run.token(0, 0)], WIDTH, device="cpu")],
        settings=EVERYWHERE,
    ),
    Case(
        "Logits processors",
        "`forced_eos_token_id`",
        {"forced_eos_token_id": 1, "max_length": WIDTH + 6},
        processors=lambda run: [process.ForcedEOSTokenLogitsProcessor(WIDTH + 6, 1, device="cpu")],
        reference={"max_new_tokens": 6},
        note="forced at the total length without the prefix",
    ),
    Case(
        "Logits processors",
        "`exponential_decay_length_penalty`",
        {"exponential_decay_length_penalty": (2, 3.0), "eos_token_id": 1},
        processors=lambda run: [
            process.ExponentialDecayLengthPenalty((2, 3.0), torch.tensor([1]), input_ids_seq_length=WIDTH)
        ],
        reference={"eos": [1]},
        settings=EVERYWHERE,
        note="counts from the end of the prompt",
    ),
    Case(
        "Logits processors",
        "`remove_invalid_values`",
        {"remove_invalid_values": True},
        processors=lambda run: [process.InfNanRemoveLogitsProcessor()],
        bites=False,
    ),
    Case(
        "Logits processors",
        "a user's `logits_processor`",
        {"logits_processor": [NeverTwice()]},
        processors=lambda run: [NeverTwice()],
        settings=EVERYWHERE,
        note="sees the prompt and the completion, never the prefix",
    ),
    Case(
        "Logits processors",
        "a user's processor of a kind that an argument makes as well",
        {"logits_processor": [process.NoRepeatNGramLogitsProcessor(1)], "no_repeat_ngram_size": 3},
        processors=lambda run: [process.NoRepeatNGramLogitsProcessor(1)],
        note="the user's takes the place of the other, as on the base",
    ),
    Case(
        "Logits processors",
        "`prefix_allowed_tokens_fn`",
        {"prefix_allowed_tokens_fn": lambda row, ids: [20 + (int(ids[-1]) + row) % 20, 3 + len(ids) % 10]},
        processors=lambda run: [
            process.PrefixConstrainedLogitsProcessor(
                lambda row, ids: [20 + (int(ids[-1]) + row) % 20, 3 + len(ids) % 10], 1
            )
        ],
        settings=EVERYWHERE,
    ),
    Case(
        "Logits processors",
        "several at once",
        {"repetition_penalty": 2.0, "no_repeat_ngram_size": 2, "temperature": 1.2, "top_k": 20},
        processors=lambda run: [
            repetition_penalty_behind(2.0, [2, 0]),
            process.NoRepeatNGramLogitsProcessor(2),
            process.TemperatureLogitsWarper(1.2),
            process.TopKLogitsWarper(20),
        ],
        seed=2,
        settings=EVERYWHERE,
    ),
]

LENGTHS = [
    Case("Lengths and stopping", "`max_new_tokens`", {"max_new_tokens": 3}, reference={"max_new_tokens": 3}),
    Case(
        "Lengths and stopping",
        "`max_length`",
        {"max_length": WIDTH + 4},
        reference={"max_new_tokens": 4},
        note="prompt and completion, not the prefix",
    ),
    Case(
        "Lengths and stopping",
        "`eos_token_id`",
        lambda run: {"eos_token_id": [run.token(0, 2), run.token(1, 4)]},
        reference=lambda run: {"eos": [run.token(0, 2), run.token(1, 4)]},
        settings=EVERYWHERE,
    ),
    *(
        Case(
            "Lengths and stopping",
            f"`{name}`",
            lambda run, name=name, value=value: {name: value, "eos_token_id": run.token(0, 0)},
            processors=lambda run: [
                process.MinLengthLogitsProcessor(WIDTH + 5, torch.tensor([run.token(0, 0)]), device="cpu")
            ],
            reference=lambda run: {"eos": [run.token(0, 0)]},
            settings=EVERYWHERE,
            note=note,
        )
        for name, value, note in (
            ("min_length", WIDTH + 5, "prompt and completion, not the prefix"),
            ("min_new_tokens", 5, ""),
        )
    ),
    Case(
        "Lengths and stopping",
        "`stop_strings`",
        lambda run: {"stop_strings": [text(two_tokens(run))], "tokenizer": letters(), "eos_token_id": 1},
        reference=lambda run: {"eos": [1], "stop": lambda ids: (ids[:, -2:] == two_tokens(run)).all(1)},
        settings=EVERYWHERE,
    ),
    Case("Lengths and stopping", "`max_time`", {"max_time": -1.0}, reference={"max_new_tokens": 1}),
    Case(
        "Lengths and stopping",
        "a user's `stopping_criteria`",
        {"stopping_criteria": [StopAt(WIDTH + 4)]},
        reference={"max_new_tokens": 4},
        settings=EVERYWHERE,
        note="see the prompt and the completion, never the prefix",
    ),
    Case(
        "Lengths and stopping",
        "a user's `MaxLengthCriteria`",
        {"stopping_criteria": [MaxLengthCriteria(WIDTH + 3)]},
        reference={"max_new_tokens": 3},
        note="prompt and completion, not the prefix",
    ),
    Case(
        "Lengths and stopping",
        "a user's `EosTokenCriteria`",
        lambda run: {"stopping_criteria": [EosTokenCriteria(run.token(0, 2))]},
        reference=lambda run: {"eos": [run.token(0, 2)]},
        note="rows that end are padded, as on the base",
    ),
]


CACHES = [
    Case("Caches", "`use_cache=False`", {"use_cache": False}, bites=False, settings=EVERY_MODEL),
    Case(
        "Caches",
        "`cache_implementation='static'`",
        {"cache_implementation": "static", "disable_compile": True},
        bites=False,
        settings=("Qwen3", "Gemma 3, window 4"),
    ),
    Case(
        "Caches",
        "`prefill_chunk_size`, shorter than the prefix",
        {"prefill_chunk_size": 2},
        bites=False,
        settings=("Qwen3", "Gemma 3, window 4"),
    ),
    Case(
        "Caches",
        "`past_key_values=DynamicCache()`",
        lambda run: {"past_key_values": DynamicCache(config=run.setting.base.config)},
        bites=False,
        settings=("Qwen3", "Gemma 3, window 4", "Falcon-H1"),
    ),
    Case(
        "Caches",
        "`past_key_values=StaticCache(...)`",
        lambda run: {
            "past_key_values": StaticCache(config=run.setting.base.config, max_cache_len=32),
            "disable_compile": True,
        },
        bites=False,
        settings=("Qwen3", "Gemma 3, window 4"),
    ),
]

TABLE = [*SEARCH, *PROCESSORS, *LENGTHS, *CACHES]

"""The decoding matrix: beams and several sequences per prompt."""

import torch
from decoding_settings import (
    CODES,
    EVERYWHERE,
    IDS,
    LENGTH,
    MASK,
    NEW_TOKENS,
    WIDTH,
    both,
    check,
    equal,
    repetition_penalty_behind,
)
from transformers import LogitsProcessorList
from transformers.generation import logits_process as process


@check(
    "Search",
    "beam search{}",
    settings=EVERYWHERE,
    each=[
        ("", {}),
        (", `length_penalty=3.0`, EOS", {"length_penalty": 3.0, "eos": True}),
        (", `early_stopping=True`, EOS", {"early_stopping": True, "eos": True}),
        (", `no_repeat_ngram_size`", {"no_repeat_ngram_size": 1}),
        (", `repetition_penalty`", {"repetition_penalty": 2.0}),
    ],
    note="the beams of a prompt share its latent",
)
def beam_search(setting, eos=False, no_repeat_ngram_size=None, repetition_penalty=None, **arguments):
    rows = 0
    for prefixed, reference in both(setting):
        plain = reference.beam_search(IDS, 3, max_new_tokens=6, num_return_sequences=2)
        ends = [plain[0][0][1][1], plain[1][0][1][2]] if eos else []

        def processors(ids, scores):
            if no_repeat_ngram_size:
                scores = process.NoRepeatNGramLogitsProcessor(no_repeat_ngram_size)(ids, scores)
            if repetition_penalty:
                pads = (ids != 0).int().argmax(1)  # the penalty passes by the pads
                penalty = repetition_penalty_behind(repetition_penalty, pads)
                scores = penalty(ids, scores)
            return scores

        expected = reference.beam_search(
            IDS, 3, processors, max_new_tokens=6, num_return_sequences=2, eos=ends, **arguments
        )
        assert not (eos or no_repeat_ngram_size or repetition_penalty) or expected != plain
        output = setting.generate(
            prefixed,
            IDS,
            attention_mask=MASK,
            num_beams=3,
            num_return_sequences=2,
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=ends or None,
            no_repeat_ngram_size=no_repeat_ngram_size,
            repetition_penalty=repetition_penalty,
            return_dict_in_generate=True,
            output_scores=True,
            **arguments,
        )
        hypotheses = [one for prompt in expected for one in prompt]
        for row, (score, tokens) in enumerate(hypotheses):
            completion = output.sequences[row, WIDTH:].tolist()
            assert completion[: len(tokens)] == tokens
            assert {0, *ends[:1]} >= set(completion[len(tokens) :])  # transformers takes pad 0 for "no pad"
            torch.testing.assert_close(float(output.sequences_scores[row]), score, atol=1e-4, rtol=1e-4)
        # the scores of a returned sequence, from what `generate` says about its beams
        transitions = setting.model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
        for row, (score, tokens) in enumerate(hypotheses):
            total = float(transitions[row].sum()) / len(tokens) ** arguments.get("length_penalty", 1.0)
            torch.testing.assert_close(total, score, atol=1e-4, rtol=1e-4)
        rows += len(hypotheses)
    return rows


@check("Search", "beam sampling", settings=EVERYWHERE)
def beam_sampling(setting):
    rows = 0
    for row in range(2):
        start = int(MASK[row].argmax())
        ids, mask = IDS[row : row + 1, start:], MASK[row : row + 1, start:]
        for prefixed, reference in both(setting, ids, mask, CODES[row : row + 1]):
            expected = reference.beam_search(ids, 3, max_new_tokens=6, seed=4)
            torch.manual_seed(4)
            found = setting.generate(
                prefixed,
                ids,
                codes=CODES[row : row + 1],
                attention_mask=mask,
                num_beams=3,
                do_sample=True,
                top_k=0,
                max_new_tokens=6,
            )
            rows += equal(found[:, ids.shape[1] :], [expected[0][0][1]])
    return rows


@check("Search", "`num_return_sequences`, a latent for each sequence", settings=EVERYWHERE)
def num_return_sequences(setting):
    ids, mask, codes = IDS.repeat_interleave(2, 0), MASK.repeat_interleave(2, 0), [*CODES, 7, 8]
    rows = 0
    reference = setting.reference(True, ids, mask, codes)
    for seed in (None, 5):
        expected = reference.decode(ids, seed=seed)[0]
        torch.manual_seed(5)
        found = setting.model.generate(
            IDS,
            attention_mask=MASK,
            latent=codes,
            num_prefix_tokens=LENGTH,
            num_return_sequences=2,
            do_sample=seed is not None,
            top_k=0,
            max_new_tokens=NEW_TOKENS,
        )
        rows += equal(found, expected)
    return rows


@check(
    "Search",
    "`prefix_allowed_tokens_fn` with `num_return_sequences`",
    note="its first argument is the number of the prompt, as on the base",
)
def allowed_tokens_of_returned_sequences(setting):
    ids, mask, codes = IDS.repeat_interleave(2, 0), MASK.repeat_interleave(2, 0), [*CODES, 7, 8]

    def allowed(prompt, tokens):
        return [[5, 6, 7], [20, 21, 22]][prompt]

    processors = LogitsProcessorList([process.PrefixConstrainedLogitsProcessor(allowed, 2)])
    expected = setting.reference(True, ids, mask, codes).decode(ids, processors, seed=5)[0]
    torch.manual_seed(5)
    found = setting.model.generate(
        IDS,
        attention_mask=MASK,
        latent=codes,
        num_prefix_tokens=LENGTH,
        num_return_sequences=2,
        do_sample=True,
        top_k=0,
        max_new_tokens=NEW_TOKENS,
        prefix_allowed_tokens_fn=allowed,
    )
    return equal(found, expected)

"""The decoding matrix: prompts, masks and configurations."""

import torch
from decoding_cases import letters
from decoding_reference import Reference
from decoding_settings import (
    CODE,
    CODES,
    EVERYWHERE,
    IDS,
    LENGTH,
    MASK,
    NEW_TOKENS,
    ROW,
    SETTINGS,
    WIDTH,
    Setting,
    as_stock,
    both,
    check,
    equal,
    refused,
    repetition_penalty_behind,
)
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process as process

GREEDY = {"do_sample": False, "max_new_tokens": NEW_TOKENS}


@check(
    "Inputs",
    "{}",
    each=[
        ("`input_ids=`", {"keyword": "input_ids"}),
        ("`inputs=`", {"keyword": "inputs"}),
        ("int32 ids", {"keyword": "input_ids", "dtype": torch.int32}),
    ],
)
def prompt_keyword(where, keyword, dtype=torch.int64):
    rows = 0
    for prefixed, reference in both(where):
        found = where.generate(prefixed, **{keyword: IDS.to(dtype)}, attention_mask=MASK, **GREEDY)
        rows += equal(found, reference.decode(IDS)[0])
    return rows


@check("Inputs", "`attention_mask=None`, pads in the prompts", note="inferred from the pads, as on the base")
def inferred_mask(where):
    return sum(
        equal(where.generate(prefixed, IDS, eos_token_id=1, **GREEDY), reference.decode(IDS, eos=[1])[0])
        for prefixed, reference in both(where)
    )


@check("Inputs", "one token per prompt, one of them BOS", settings=EVERYWHERE)
def one_token(where):
    ids, mask = torch.tensor([[3], [7]]), torch.ones(2, 1, dtype=torch.long)
    return sum(
        equal(where.generate(prefixed, ids, attention_mask=mask, **GREEDY), reference.decode(ids)[0])
        for prefixed, reference in both(where, ids, mask)
    )


@check("Inputs", "no prompt: BOS alone", settings=("Qwen3, after_bos",))
def no_prompt(where):
    ids = torch.tensor([[3]])
    return sum(
        equal(where.generate(prefixed, codes=CODE, **GREEDY), reference.decode(ids)[0])
        for prefixed, reference in both(where, ids, torch.ones_like(ids), CODE)
    )


@check(
    "Logits processors",
    "`forced_bos_token_id` and `begin_suppress_tokens` behind a prompt of one token",
    settings=EVERYWHERE,
)
def forced_bos(where):
    ids, rows = torch.tensor([[3], [7]]), 0
    for prefixed, reference in both(where, ids, torch.ones_like(ids)):
        first = reference.decode(ids, LogitsProcessorList([process.ForcedBOSTokenLogitsProcessor(20)]))[0]
        suppressed = [int(first[0, 2])]
        processors = [
            process.ForcedBOSTokenLogitsProcessor(20),
            process.SuppressTokensAtBeginLogitsProcessor(suppressed, 2, device="cpu"),
        ]
        expected = reference.decode(ids, LogitsProcessorList(processors))[0]
        assert not torch.equal(expected, first)
        found = where.generate(
            prefixed,
            ids,
            attention_mask=torch.ones_like(ids),
            forced_bos_token_id=20,
            begin_suppress_tokens=suppressed,
            **GREEDY,
        )
        rows += equal(found, expected)
    return rows


@check(
    "Logits processors",
    "`bad_words_ids` that begins with the BOS in front of the prefix",
    settings=("Qwen3, after_bos",),
)
def bad_words_over_the_prefix(where):
    ids, rows = torch.tensor([[3], [3]]), 0
    for prefixed, reference in both(where, ids, torch.ones_like(ids)):
        plain = reference.decode(ids)[0]
        words = [[3, int(plain[0, 1])]]
        expected = reference.decode(ids, LogitsProcessorList([process.NoBadWordsLogitsProcessor(words)]))[0]
        assert not torch.equal(expected, plain)
        found = where.generate(prefixed, ids, attention_mask=torch.ones_like(ids), bad_words_ids=words, **GREEDY)
        rows += equal(found, expected)
    return rows


@check(
    "Inputs",
    "right-padded prompts",
    settings=EVERYWHERE,
    note="transformers warns and decodes behind the pads; compared with the base's `generate` on spliced "
    "`inputs_embeds`",
)
def right_padded(where):
    ids, mask = torch.tensor([[5, 6, 7, 0, 0], [3, 4, 8, 9, 10]]), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    embed, rows = where.base.get_input_embeddings(), 0
    for prefixed, reference in both(where, ids, mask):
        embeds, whole_mask = embed(ids), mask
        if prefixed:
            spliced = [
                torch.cat([embeds[row][:at], reference.prefixes[row], embeds[row][at:]])
                for row, at in enumerate(reference.after)
            ]
            embeds, whole_mask = torch.stack(spliced), torch.cat([torch.ones(2, LENGTH, dtype=torch.long), mask], 1)
        expected = where.base.generate(inputs_embeds=embeds, attention_mask=whole_mask, **GREEDY)
        rows += equal(where.generate(prefixed, ids, attention_mask=mask, **GREEDY)[:, WIDTH:], expected)
    return rows


@check("Inputs", "a mask of four dimensions")
def four_dimensions(where):
    mask = torch.ones(2, 1, WIDTH, WIDTH)
    try:
        where.base.generate(IDS, attention_mask=mask, **GREEDY)
    except ValueError as error:
        assert "must be 2D" in str(error)
    return refused(
        "`attention_mask` must have shape (B, S), got (2, 1, 5, 5)",
        lambda: where.model.generate(IDS, attention_mask=mask, latent=CODES, **GREEDY),
    )


@check("Inputs", "a latent for each row, given as vectors `(N, L, Z)`", settings=EVERYWHERE)
def explicit_latents(where):
    latents = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    reference = where.reference(True)
    reference.prefixes = where.model.palette.decode(latents)
    found = where.model.generate(IDS, attention_mask=MASK, latent=latents, **GREEDY)
    return equal(found, reference.decode(IDS)[0])


@check("Inputs", "a domain for each prompt", settings=EVERYWHERE)
def domains(where):
    output = where.model.generate(
        IDS,
        attention_mask=MASK,
        domain=["code", "math"],
        num_prefix_tokens=LENGTH,
        return_dict_in_generate=True,
        **GREEDY,
    )
    assert (output.latent_codes >> 20).tolist() == [2, 1]
    return equal(output.sequences, where.reference(True, codes=output.latent_codes.tolist()).decode(IDS)[0])


@check(
    "Inputs",
    "`token_healing=True`",
    note="heals the prompt as on the base, without the prefix, before the prefix is set in front",
)
def token_healing(where):
    tokenizer = letters(extended=int(ROW[0, -1]))
    healed = where.base.heal_tokens(ROW, tokenizer)
    assert not torch.equal(healed, ROW)
    rows = 0
    for prefixed, reference in both(where, healed, torch.ones_like(healed), CODE):
        found = where.generate(prefixed, ROW, codes=CODE, token_healing=True, tokenizer=tokenizer, **GREEDY)
        rows += equal(found, reference.decode(healed)[0])
    return rows


@check(
    "Configuration",
    "{}",
    each=[
        ("a `generation_config` object, by keyword", {"positional": False}),
        ("a `generation_config` object, by position", {"positional": True}),
    ],
    note="is left as it was",
)
def generation_config(where, positional):
    config = GenerationConfig(max_length=WIDTH + 6, repetition_penalty=3.0, do_sample=False)
    before = config.to_dict()
    processors = LogitsProcessorList([repetition_penalty_behind(3.0, [2, 0])])
    rows = 0
    for prefixed, reference in both(where):
        arguments = (IDS, config) if positional else (IDS,)
        keywords = {} if positional else {"generation_config": config}
        found = where.generate(prefixed, *arguments, attention_mask=MASK, **keywords)
        rows += equal(found, reference.decode(IDS, processors, max_new_tokens=6)[0])
        # keywords win over the object
        found = where.generate(prefixed, *arguments, attention_mask=MASK, max_length=WIDTH + 4, **keywords)
        rows += equal(found, reference.decode(IDS, processors, max_new_tokens=4)[0])
    assert config.to_dict() == before
    return rows


@check("Configuration", "`generation_config` with `num_return_sequences`, sampling")
def config_with_several_sequences(where):
    ids, mask, codes = IDS.repeat_interleave(2, 0), MASK.repeat_interleave(2, 0), [*CODES, 7, 8]
    config = GenerationConfig(num_return_sequences=2, do_sample=True, top_k=0, max_new_tokens=6)
    expected = where.reference(True, ids, mask, codes).decode(ids, seed=5, max_new_tokens=6)[0]
    torch.manual_seed(5)
    found = where.model.generate(
        IDS, generation_config=config, attention_mask=MASK, latent=codes, num_prefix_tokens=LENGTH
    )
    assert config.num_return_sequences == 2
    return equal(found, expected)


@check("Configuration", "the model's own `generation_config`, and explicit Nones against it")
def own_generation_config(where):
    fresh: Setting = SETTINGS["Qwen3"]()
    rows = 0
    for prefixed, reference in both(fresh):
        plain = reference.decode(IDS, max_new_tokens=6)[0]
        ends = [int(plain[0, WIDTH + 1]), int(plain[1, WIDTH + 1])]
        own = {"max_length": WIDTH + 6, "no_repeat_ngram_size": 1, "do_sample": False, "eos_token_id": ends}
        for model in (fresh.base, fresh.model):
            model.generation_config = GenerationConfig(pad_token_id=0, **own)
        processors = LogitsProcessorList([process.NoRepeatNGramLogitsProcessor(1)])
        expected = reference.decode(IDS, processors, max_new_tokens=6, eos=ends)[0]
        assert expected.shape != plain.shape
        rows += equal(fresh.generate(prefixed, IDS, attention_mask=MASK), expected)
        nones = {"no_repeat_ngram_size": None, "eos_token_id": None}
        rows += equal(fresh.generate(prefixed, IDS, attention_mask=MASK, **nones), plain)
    return rows


@check("Configuration", "a misspelt argument")
def misspelt(where):
    return as_stock(where, IDS, attention_mask=MASK, max_new_token=3, contains="max_new_token")


@check("Configuration", "`inputs_embeds`")
def inputs_embeds(where):
    embeds = where.base.get_input_embeddings()(ROW)
    return refused(
        "`inputs_embeds` cannot be combined with a latent prefix",
        lambda: where.model.generate(inputs_embeds=embeds, latent=CODE, **GREEDY),
    )


@check("Configuration", "`position_ids`")
def position_ids(where):
    return refused(
        "`position_ids` cannot be combined with a latent prefix",
        lambda: where.model.generate(ROW, position_ids=ROW, latent=CODE, **GREEDY),
    )


@check(
    "Inputs",
    "latent ids put into the prompts by hand, prefixed and plain rows in one batch",
    settings=EVERYWHERE,
    note="as the trainers do: processors see the ordinary ids, left-padded anew; sequences keep the latent ids",
)
def ids_by_hand(where):
    plain, guided = ROW[0].tolist(), [5, 6, 7]
    prefix = where.model.latent_ids(torch.tensor(CODE), LENGTH)[0].tolist()
    row = where.model.insert_latent_ids(guided, prefix)
    ids = torch.tensor([[0] * (6 - len(plain)) + plain, row])
    mask = (ids != 0).long()
    ordinary = torch.tensor([[0, *plain], [0, 0, 0, *guided]])
    embeds = where.prefixes(CODE)[0]
    at = int(row[0] == guided[0])

    class Mixed(Reference):
        def logits(self, index, tokens):
            self.prefixes, self.after = (embeds[None], [at]) if index else (None, ())
            return super().logits(0, tokens)

    reference = Mixed(where.base)
    reference.starts = [1, 3]
    processors = [
        repetition_penalty_behind(2.0, [1, 3]),
        process.NoRepeatNGramLogitsProcessor(1),
    ]
    expected = reference.decode(ordinary, LogitsProcessorList(processors))[0]
    found = where.model.generate(ids, attention_mask=mask, repetition_penalty=2.0, no_repeat_ngram_size=1, **GREEDY)
    assert torch.equal(found[:, :6], ids)
    return equal(found[:, 6:], expected[:, 6:])

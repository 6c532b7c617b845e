"""`generate` with the palette's arguments: the table of the public interface, row by row."""

import sys
import threading
import warnings

import pytest
import torch
from text_families import tiny_base as base_of_family
from trainer_testing import LATENT, tiny_base, tiny_palette, tiny_palette_model, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    MambaConfig,
    StaticCache,
    StoppingCriteria,
)
from transformers.generation.utils import ALL_CACHE_NAMES

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

NUM_CODES = 1 << 20
IDS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 8, 9, 10]])
MASK = (IDS != 0).long()
LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.5}  # greedy texts that vary instead of repeating a word
GREEDY = {"attention_mask": MASK, "max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    model = tiny_palette_model(**LIVELY)
    model.generation_config.eos_token_id = None
    return model


def sources(output):
    return (output.latent_codes // NUM_CODES).tolist()


def test_without_palette_arguments_it_is_the_base(model):
    base = tiny_base(**LIVELY)
    base.generation_config.eos_token_id = None
    for arguments in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 3, "num_return_sequences": 2}):
        outputs = []
        for candidate in (base, model):
            torch.manual_seed(5)
            outputs.append(candidate.generate(IDS, attention_mask=MASK, max_new_tokens=12, **arguments))
        assert torch.equal(*outputs)
    assert torch.equal(base.generate(IDS, **GREEDY), model.generate(IDS, num_prefix_tokens=0, **GREEDY))
    # positional arguments keep the base's order
    config = base.generation_config
    assert torch.equal(
        base.generate(IDS, config, attention_mask=MASK), model.generate(IDS, config, attention_mask=MASK)
    )


def test_draws_differ_and_replay(model):
    output = model.generate(IDS, num_prefix_tokens=4, num_return_sequences=8, return_dict_in_generate=True, **GREEDY)
    assert output.sequences.shape == (16, IDS.shape[1] + 12)
    assert int(output.sequences.max()) < model.config.vocab_size
    assert torch.equal(output.sequences[:, : IDS.shape[1]], IDS.repeat_interleave(8, 0))
    assert output.latent_codes.shape == (16,)
    assert output.latent_codes.dtype == torch.int64
    assert sources(output) == [0] * 16
    for prompt in range(2):
        assert len({tuple(row) for row in output.sequences[8 * prompt : 8 * prompt + 8].tolist()}) > 1
    again = model.generate(IDS, latent=output.latent_codes, num_prefix_tokens=4, num_return_sequences=8, **GREEDY)
    assert torch.equal(again, output.sequences)
    one_by_one = [
        model.generate(IDS[:1], latent=int(code), num_prefix_tokens=4, **{**GREEDY, "attention_mask": MASK[:1]})[0]
        for code in output.latent_codes[:8]
    ]
    assert torch.equal(torch.stack(one_by_one), output.sequences[:8])


def test_draws_follow_the_global_seed_or_latent_seed(model):
    def codes(**arguments):
        return model.generate(
            IDS, num_prefix_tokens=2, return_dict_in_generate=True, **GREEDY, **arguments
        ).latent_codes

    torch.manual_seed(1)
    first = codes()
    torch.manual_seed(1)
    assert torch.equal(codes(), first)
    assert not torch.equal(codes(), first)
    assert torch.equal(codes(latent_seed=4), codes(latent_seed=4))
    assert not torch.equal(codes(latent_seed=4), codes(latent_seed=5))


def test_domains(model):
    kwargs = {"return_dict_in_generate": True, **GREEDY}
    assert sources(model.generate(IDS, domain="code", **kwargs)) == [2, 2]
    assert sources(model.generate(IDS, domain=["code", "math"], num_return_sequences=2, **kwargs)) == [2, 2, 1, 1]
    mixed = model.generate(IDS, domain={"math": 3, "code": 1}, num_return_sequences=200, latent_seed=0, **kwargs)
    assert 0.68 < sources(mixed).count(1) / 400 < 0.82  # 0.75, standard error 0.022
    math, code = (model.generate(IDS, domain=name, latent_seed=1, **GREEDY) for name in ("math", "code"))
    assert not torch.equal(math, code)


def test_domain_latents_have_the_fitted_moments(model):
    codes = model.draw_codes(20_000, "math", torch.Generator().manual_seed(0))
    latents = model.latents_from_codes(codes, 1)[:, 0]
    cholesky = model.palette.domain_cholesky[0]
    torch.testing.assert_close(latents.mean(0), model.palette.domain_means[0], atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(latents.T), cholesky @ cholesky.T, atol=0.06, rtol=0)


def test_num_prefix_tokens_defaults_to_the_config(model):
    eight = model.generate(IDS, domain="math", latent_seed=1, num_prefix_tokens=8, **GREEDY)
    assert torch.equal(model.generate(IDS, domain="math", latent_seed=1, **GREEDY), eight)
    longer = model.generate(IDS, domain="math", latent_seed=1, num_prefix_tokens=9, **GREEDY)
    assert not torch.equal(longer, eight)


def test_tiling_and_explicit_latents_agree(model):
    codes = torch.tensor([11, 12])
    tiled = model.generate(IDS, latent=codes, num_prefix_tokens=3, latent_tile=True, **GREEDY)
    latents = model.latents_from_codes(codes, 1)
    assert torch.equal(model.generate(IDS, latent=latents[:, 0], num_prefix_tokens=3, **GREEDY), tiled)
    assert torch.equal(model.generate(IDS, latent=latents.expand(-1, 3, -1), **GREEDY), tiled)

    independent = model.generate(IDS, latent=codes, num_prefix_tokens=3, **GREEDY)
    explicit = model.generate(
        IDS, latent=model.latents_from_codes(codes, 3).double(), return_dict_in_generate=True, **GREEDY
    )
    assert torch.equal(explicit.sequences, independent)
    assert explicit.latent_codes.tolist() == [-1, -1]
    assert not torch.equal(independent, tiled)
    one = model.generate(IDS, latent=latents[0, 0], num_prefix_tokens=3, **GREEDY)
    assert torch.equal(one[:1], tiled[:1])
    assert not model._latent_embedding.explicit.in_use


def test_beams_of_a_prompt_share_one_latent(model):
    output = model.generate(
        IDS,
        attention_mask=MASK,
        max_new_tokens=6,
        num_beams=4,
        num_return_sequences=3,
        num_prefix_tokens=2,
        return_dict_in_generate=True,
    )
    assert output.sequences.shape == (6, IDS.shape[1] + 6)
    assert output.latent_codes.shape == (2,)
    assert torch.equal(output.sequences[:, : IDS.shape[1]], IDS.repeat_interleave(3, 0))
    again = model.generate(
        IDS, attention_mask=MASK, max_new_tokens=6, num_beams=4, latent=output.latent_codes, num_prefix_tokens=2
    )
    assert torch.equal(again, output.sequences[::3])


def test_lengths_count_prompt_and_completion_only(model):
    kwargs = {"attention_mask": MASK, "do_sample": False, "latent": 3, "num_prefix_tokens": 4}
    reference = model.generate(IDS, max_new_tokens=7, **kwargs)
    assert torch.equal(model.generate(IDS, max_length=IDS.shape[1] + 7, **kwargs), reference)
    assert model.generate(IDS, **kwargs).shape[1] == IDS.shape[1] + 20  # transformers' default
    stopping = int(reference[0, IDS.shape[1] + 2])
    short = model.generate(IDS[:1], **{**kwargs, "attention_mask": MASK[:1]}, max_new_tokens=7, eos_token_id=stopping)
    assert short.shape[1] <= IDS.shape[1] + 3
    forced = model.generate(
        IDS[:1],
        **{**kwargs, "attention_mask": MASK[:1]},
        max_new_tokens=7,
        min_length=IDS.shape[1] + 5,
        eos_token_id=stopping,
    )
    assert forced.shape[1] >= IDS.shape[1] + 5


CACHE_INPUTS = ["past_key_values"] + ["cache"] * ("cache" in ALL_CACHE_NAMES)  # `cache` since transformers 5.24


@pytest.mark.parametrize("name", CACHE_INPUTS)
def test_a_returned_cache_goes_on(model, name):
    row, mask = IDS[:1], MASK[:1]
    full = model.generate(row, attention_mask=mask, latent=9, num_prefix_tokens=3, max_new_tokens=12, do_sample=False)
    start = model.generate(
        row,
        attention_mask=mask,
        latent=9,
        num_prefix_tokens=3,
        max_new_tokens=5,
        do_sample=False,
        return_dict_in_generate=True,
    )
    longer_mask = torch.cat([mask, mask.new_ones(1, 5)], 1)
    go_on = {"attention_mask": longer_mask, name: start.past_key_values, "max_new_tokens": 7, "do_sample": False}
    with pytest.raises(ValueError, match="`past_key_values` holds the prefix of an earlier call"):
        model.generate(start.sequences, domain="math", **go_on)
    assert torch.equal(model.generate(start.sequences, **go_on), full)


@pytest.mark.parametrize("name", CACHE_INPUTS)
def test_a_foreign_cache_is_refused_and_an_empty_one_is_not(model, name):
    cache = DynamicCache(config=model.config)
    model(IDS[1:], **{name: cache})
    with pytest.raises(ValueError, match="`past_key_values` holds tokens that were not computed behind this prefix"):
        model.generate(IDS[1:], **{name: cache}, domain="math", max_new_tokens=3)
    fresh = model.generate(IDS[1:], **{name: DynamicCache()}, latent=1, max_new_tokens=3, do_sample=False)
    assert torch.equal(fresh, model.generate(IDS[1:], latent=1, max_new_tokens=3, do_sample=False))


def test_caches_of_recurrent_models():
    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=2)
    base = AutoModelForCausalLM.from_config(config)
    model = PaletteForCausalLM.from_base(base, PaletteVAE(16, latent_dim=4, hidden_sizes=(8,)))
    arguments = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    name = CACHE_INPUTS[-1]
    start = model.generate(IDS[1:], latent=1, max_new_tokens=3, return_dict_in_generate=True, **arguments)
    cache = start.past_key_values if hasattr(start, "past_key_values") else start.cache_params
    with pytest.raises(ValueError, match="`past_key_values` holds the prefix of an earlier call"):
        model.generate(start.sequences, latent=1, max_new_tokens=3, **{name: cache}, **arguments)
    foreign = base(IDS[1:], use_cache=True)
    foreign = foreign.past_key_values if hasattr(foreign, "past_key_values") else foreign.cache_params
    with pytest.raises(ValueError, match="`past_key_values` holds tokens that were not computed behind this prefix"):
        model.generate(IDS[1:], latent=1, max_new_tokens=3, **{name: foreign}, **arguments)


def test_a_cache_that_was_emptied_and_filled_again_holds_no_prefix(model):
    cache = StaticCache(config=model.config, max_cache_len=64)
    on_cache = {"max_new_tokens": 4, "do_sample": False, "past_key_values": cache}
    model.generate(IDS[1:], latent=3, num_prefix_tokens=4, **on_cache)
    cache.reset()
    first = model.generate(IDS[1:], **on_cache)
    second = model.generate(first, **on_cache)
    assert torch.equal(second, model.generate(IDS[1:], max_new_tokens=8, do_sample=False))


def test_a_call_that_breaks_off_leaves_a_cache_that_holds_the_prefix(model):
    class Interrupt(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            if input_ids.shape[1] == IDS.shape[1] + 4:
                self.seen = input_ids.clone()
                raise KeyboardInterrupt
            return torch.zeros(len(input_ids), dtype=torch.bool)

    cache, interrupt = DynamicCache(config=model.config), Interrupt()
    latent = {"latent": 5, "num_prefix_tokens": 4}
    with pytest.raises(KeyboardInterrupt):
        model.generate(IDS[1:], past_key_values=cache, stopping_criteria=[interrupt], max_new_tokens=8, **latent)
    longer = torch.cat([interrupt.seen, torch.tensor([[11, 12, 13]])], 1)
    going_on = model.generate(longer, past_key_values=cache, max_new_tokens=6, do_sample=False)
    assert torch.equal(going_on, model.generate(longer, max_new_tokens=6, do_sample=False, **latent))


def test_a_held_cache_in_another_order_or_without_its_prefix_is_refused(model):
    start = model.generate(IDS, latent=[5, 6], num_prefix_tokens=4, return_dict_in_generate=True, **GREEDY)
    cache = start.past_key_values
    with pytest.raises(ValueError, match="`past_key_values` holds the prefix of an earlier call"):
        model.generate(start.sequences, past_key_values=cache, num_prefix_tokens=0)
    cache.reorder_cache(torch.tensor([1, 0]))
    mask = torch.cat([MASK, MASK.new_ones(2, 12)], 1)
    with pytest.raises(
        ValueError, match=r"stand in front of columns \[2, 0\], but these prompts begin in columns \[0, 2"
    ):
        model.generate(start.sequences.flip(0), attention_mask=mask.flip(0), past_key_values=cache, max_new_tokens=3)


@pytest.mark.parametrize("shape", [(2, 4), (2, 6), (1, 5)])
def test_a_mask_of_another_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"`attention_mask` has shape .* but the prompts have shape \(2, 5\)"):
        model.generate(IDS, attention_mask=torch.ones(shape, dtype=torch.long), latent=5, max_new_tokens=3)


@pytest.mark.parametrize("family", ["rwkv", "xlnet"])
def test_models_that_return_their_states_as_lists(family):
    base = base_of_family(family)
    palette = PaletteVAE(base.get_input_embeddings().weight.shape[1], latent_dim=LATENT, hidden_sizes=(8,))
    output = PaletteForCausalLM.from_base(base, palette).generate(
        IDS[1:], latent=5, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    assert output.latent_codes.tolist() == [5]


def test_domains_added_by_several_threads_keep_their_own_gaussians():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            model = tiny_palette_model()
            barrier = threading.Barrier(4)

            def add(index, model=model, barrier=barrier):
                latents = torch.randn(50, LATENT, generator=torch.Generator().manual_seed(index)) + 10 * index
                barrier.wait()
                model.palette.fit_domain(f"new-{index}", latents)
                model.draw_codes(1, f"new-{index}")

            threads = [threading.Thread(target=add, args=(index,)) for index in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            sources = {name: entry["source"] for name, entry in model.palette.domains.items()}
            assert sorted(sources.values()) == [1, 2, 3, 4, 5, 6]
            for index in range(4):
                mean = model.palette.domain_means[sources[f"new-{index}"] - 1].mean()
                assert abs(float(mean) - 10 * index) < 1
            assert model.config.domains.keys() == model.palette.domains.keys()
    finally:
        sys.setswitchinterval(interval)


def test_prefix_position_after_bos():
    model = PaletteForCausalLM.from_base(
        tiny_base(bos_token_id=3), palette=tiny_palette(), prefix_position="after_bos"
    )
    seen = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]), prepend=True)
    model.generate(IDS, latent=1, num_prefix_tokens=2, **{**GREEDY, "max_new_tokens": 1})
    is_latent = seen[0] >= model.config.latent_id_base
    assert is_latent.int().tolist() == [[0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0]]  # row 1 begins with BOS
    assert model.insert_latent_ids([3, 4], [99]) == [3, 99, 4]
    assert model.insert_latent_ids([5, 4], [99]) == [99, 5, 4]


def test_labels_of_latent_ids_are_masked(model):
    ids = torch.cat([model.latent_ids(torch.tensor([1]), 3), IDS[1:]], 1)
    loss = model(ids, labels=ids).loss
    by_hand = torch.nn.functional.cross_entropy(model(ids).logits[0, 2:-1].float(), ids[0, 3:])
    torch.testing.assert_close(loss, by_hand)


def test_threads_with_different_latents_do_not_mix(model):
    codes = list(range(8))
    expected = [model.generate(IDS[1:], latent=c, max_new_tokens=6, do_sample=False).tolist() for c in codes]
    latents = [torch.randn(LATENT, generator=torch.Generator().manual_seed(c)) for c in codes]
    expected_explicit = [
        model.generate(IDS[1:], latent=z, max_new_tokens=6, do_sample=False).tolist() for z in latents
    ]
    wrong = []

    def work(code):
        for _ in range(4):
            coded = model.generate(IDS[1:], latent=code, max_new_tokens=6, do_sample=False).tolist()
            explicit = model.generate(IDS[1:], latent=latents[code], max_new_tokens=6, do_sample=False).tolist()
            if coded != expected[code] or explicit != expected_explicit[code]:
                wrong.append(code)

    threads = [threading.Thread(target=work, args=(code,)) for code in codes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


N = 2
BAD_ARGUMENTS = [
    (
        {"num_prefix_tokens": 0, "domain": "math"},
        "`num_prefix_tokens`=0 asks for no prefix, but `domain` asks for one",
    ),
    ({"num_prefix_tokens": 0, "latent": 3}, "`num_prefix_tokens`=0 asks for no prefix, but `latent` asks for one"),
    ({"latent": 3, "domain": "math"}, "`latent` and `domain` exclude each other"),
    ({"domain": "poetry"}, "`domain`='poetry' is unknown; this palette has 'math', 'code'.*add_domain"),
    ({"domain": ["math"]}, "`domain` lists 1 names for 2 prompts.*In a pipeline, set `batch_size` to 1"),
    ({"domain": {"math": -1, "code": 2}}, "`domain` weights must be finite, at least 0 and not all 0"),
    ({"domain": {"math": "x"}}, "`domain` weights must be numbers"),
    ({"domain": {"math": "0.7"}}, "`domain` weights must be numbers"),
    ({"domain": {"math": True}}, "`domain` weights must be numbers"),
    ({"domain": {"math": 10**400}}, "`domain` weights must be numbers"),
    ({"domain": 3}, "`domain` must be a name, a list of names or a mapping"),
    ({"latent": torch.zeros(3, LATENT)}, r"got shape \(3, 4\)"),
    ({"latent": torch.zeros(LATENT + 1)}, r"float tensor of shape \(4,\), \(2, 4\) or \(2, L, 4\), got shape \(5,\)"),
    ({"latent": torch.zeros(N, 65, LATENT)}, "sets L=65; this palette allows 1 to `max_prefix_tokens`=64"),
    ({"latent": torch.zeros(N, 3, LATENT), "num_prefix_tokens": 4}, "`num_prefix_tokens`=4 contradicts `latent`.*L=3"),
    ({"latent": torch.zeros(N, 3, LATENT), "latent_tile": True}, "`latent_tile` contradicts `latent`"),
    ({"latent": torch.full((LATENT,), float("nan"))}, "`latent` must be finite, but 4 of its 4 values are NaN"),
    ({"latent": torch.tensor([True, False])}, "got dtype torch.bool"),
    ({"latent": torch.zeros(LATENT, dtype=torch.complex64)}, "got dtype torch.complex64"),
    ({"latent": "math"}, "`latent` must be a code, N=2 codes, or a float tensor.*got str"),
    ({"latent": [1, 2, 3]}, r"got integers of shape \(3,\)"),
    ({"latent": -1}, "holds the code -1; this palette has codes 0 to 3145727. -1 stands for an explicit latent"),
    ({"latent": 3 * NUM_CODES}, "holds the code 3145728; this palette has codes 0 to 3145727"),
    ({"num_prefix_tokens": 65}, "`num_prefix_tokens`=65 is out of range: this palette allows 0 to"),
    ({"num_prefix_tokens": -1}, "`num_prefix_tokens`=-1 is out of range"),
    ({"num_prefix_tokens": 2.5}, "`num_prefix_tokens` must be an integer, got 2.5"),
    ({"num_prefix_tokens": True}, "`num_prefix_tokens` must be an integer, got True"),
    ({"num_prefix_tokens": 2, "latent_seed": 1.5}, r"`latent_seed` must be an integer in \[0, 2\*\*63\), got 1.5"),
    ({"num_prefix_tokens": 2, "latent_seed": 2**65}, r"`latent_seed` must be an integer"),
    ({"latent": False}, "got dtype torch.bool"),
    ({"latent": torch.full((LATENT,), 1e300, dtype=torch.float64)}, "`latent` must be finite, but 4 of its 4"),
    ({"latent_seed": 3}, "`latent_seed` has no effect without a prefix"),
    ({"latent_tile": True}, "`latent_tile` has no effect without a prefix"),
    ({"latent": 3, "latent_seed": 3}, "`latent_seed` seeds draws, but `latent` names the latents"),
    ({"domain": "math", "position_ids": IDS}, "`position_ids` cannot be combined with a latent prefix"),
    ({"domain": "math", "inputs_embeds": torch.zeros(2, 5, 32)}, "`inputs_embeds` cannot be combined with a latent"),
    ({"domain": "math", "max_new_tokens": 116}, r"5 positions .*`num_prefix_tokens`=8 \+ 116 new.*model has 128"),
    ({"domain": "math", "input_ids": IDS}, "`inputs` and `input_ids` were both given"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=[str(bad[0])[:40] for bad in BAD_ARGUMENTS])
def test_bad_arguments_name_the_way_out(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(IDS, **{**GREEDY, **arguments})


def test_a_typo_is_refused_with_and_without_a_prefix(model):
    for arguments in ({}, {"domain": "math"}):
        with pytest.raises(ValueError, match="num_prefix_token'"):
            model.generate(IDS, num_prefix_token=4, **GREEDY, **arguments)


def test_a_model_without_a_palette_refuses_prefixes():
    model = PaletteForCausalLM.from_base(tiny_base())
    assert model.palette is None
    assert torch.equal(model.generate(IDS, **GREEDY), tiny_base().generate(IDS, **GREEDY))
    with pytest.raises(ValueError, match="This model has no palette"):
        model.generate(IDS, num_prefix_tokens=2, **GREEDY)
    with pytest.raises(ValueError, match="This model has no palette"):
        model.draw_codes(3)


def test_an_untrained_palette_warns_once():
    model = PaletteForCausalLM.from_base(tiny_base(), PaletteVAE(32, LATENT))
    with pytest.warns(UserWarning, match="palette that is untrained"):
        model.generate(IDS, num_prefix_tokens=2, **GREEDY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(IDS, num_prefix_tokens=2, **GREEDY)


def test_stale_and_foreign_ids_are_refused_in_forward(model):
    with model.explicit_latents(torch.zeros(1, 2, LATENT)) as ids:
        model(torch.cat([ids, IDS[1:]], 1))
    with pytest.raises(ValueError, match="belongs to an explicit latent whose block has ended"):
        model(torch.cat([ids, IDS[1:]], 1))
    unknown = model.latent_ids(torch.tensor([7 * NUM_CODES]), 2)
    with pytest.raises(ValueError, match="belongs to source 7, but this palette has the prior and 2 fitted domains"):
        model(torch.cat([unknown, IDS[1:]], 1))


def test_add_domain_gives_a_new_source_and_keeps_old_codes():
    model = tiny_palette_model()
    before = model.generate(IDS, latent=[NUM_CODES + 1, 5], **GREEDY)
    rows = [{"question": f"w{i} w{i + 1}", "answer": f"w{(3 * i) % 40}"} for i in range(20)]
    assert model.add_domain("riddles", rows) == 3
    assert model.add_domain("math", rows) == 4
    output = model.generate(IDS, domain="math", return_dict_in_generate=True, **GREEDY)
    assert sources(output) == [4, 4]
    assert torch.equal(model.generate(IDS, latent=[NUM_CODES + 1, 5], **GREEDY), before)


def test_compiled_forward_equals_eager(model):
    ids = torch.cat([model.latent_ids(torch.tensor([1, NUM_CODES + 3]), 3), IDS[:, 2:]], 1)
    compiled = torch.compile(model.get_input_embeddings(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids), model.get_input_embeddings()(ids))
        torch.testing.assert_close(compiled(IDS), model.get_input_embeddings()(IDS))


def test_int32_ids_name_the_same_latents(model):
    ids = model.latent_ids(torch.tensor([123456, NUM_CODES + 7]), 4)
    embed = model.get_input_embeddings()
    assert torch.equal(embed(ids), embed(ids.int()))


def test_a_reset_cache_holds_no_prefix(model):
    cache = StaticCache(config=model.config, max_cache_len=64)
    arguments = {"max_new_tokens": 4, "do_sample": False, "past_key_values": cache}
    first = model.generate(IDS[1:], domain="math", latent_seed=0, **arguments)
    cache.reset()
    plain = model.generate(IDS[1:], **arguments)
    assert torch.equal(plain, model.generate(IDS[1:], max_new_tokens=4, do_sample=False))
    cache.reset()
    assert torch.equal(model.generate(IDS[1:], domain="math", latent_seed=0, **arguments), first)


def test_a_prefix_position_changed_to_an_unknown_one_is_refused():
    model = tiny_palette_model()
    model.config.prefix_position = "foo"
    for call in (lambda: model.generate(IDS, latent=5, **GREEDY), lambda: model.insert_latent_ids([5], [99])):
        with pytest.raises(ValueError, match="`prefix_position` must be one of .*'after_bos'.*got 'foo'"):
            call()


def test_a_layout_changed_on_a_live_model_is_refused():
    model = tiny_palette_model()
    model.config.num_prefix_tokens = 70
    with pytest.raises(ValueError, match="`num_prefix_tokens`=70 is out of range"):
        model.generate(IDS, latent=5, **GREEDY)
    model.config.num_prefix_tokens, model.config.num_codes = 8, 1 << 10
    for call in (lambda: model.generate(IDS, domain="code", **GREEDY), lambda: model.draw_codes(2, "code")):
        with pytest.raises(ValueError, match="was changed after the model was built"):
            call()


def test_positional_labels_are_masked_too(model):
    ids = torch.cat([model.latent_ids(torch.tensor([1]), 3), IDS[1:]], 1)
    assert torch.equal(model(ids, None, None, None, None, ids).loss, model(ids, labels=ids).loss)


def test_shifted_labels_are_masked_too(model):
    ids = torch.cat([model.latent_ids(torch.tensor([1]), 3), IDS[1:]], 1)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        # `labels` says that a loss is wanted, `shift_labels` what of
        loss = model(ids, labels=ids, shift_labels=shifted).loss
        by_hand = torch.nn.functional.cross_entropy(model(ids).logits[0, 2:-1].float(), ids[0, 3:])
    torch.testing.assert_close(loss, by_hand)


def test_arguments_given_twice_or_too_many_are_refused(model):
    with pytest.raises(TypeError, match="multiple values for argument 'input_ids'"):
        model(IDS, input_ids=IDS)
    with pytest.raises(TypeError, match="positional argument"):
        model(IDS, *[None] * 20)
    for palette in ({}, {"latent": 5}):
        with pytest.raises(TypeError, match="multiple values for argument 'inputs'"):
            model.generate(IDS, inputs=IDS, **palette)
        with pytest.raises(TypeError, match="positional argument"):
            model.generate(IDS, *[None] * 20, **palette)


@pytest.mark.parametrize("count", [0, -1, True])
def test_sequences_that_cannot_be_counted_are_refused(model, count):
    config = GenerationConfig()
    config.num_return_sequences = count
    for given in ({"num_return_sequences": count}, {"generation_config": config}):
        with pytest.raises(ValueError, match=f"`num_return_sequences` must be an integer .*at least 1, got {count}"):
            model.generate(IDS, attention_mask=MASK, latent=5, **given)


def test_more_domains_than_the_layout_has_room_for_are_refused():
    model = PaletteForCausalLM.from_base(tiny_base(), tiny_palette(), tokenizer=tiny_tokenizer(), num_codes=1 << 23)
    rows = [{"question": f"w{i} w{i + 1}", "answer": f"w{(3 * i) % 40}"} for i in range(9)]
    with pytest.raises(ValueError, match="has room for 2 domain fits"):
        model.add_domain("riddles", rows)

"""The decoding matrix: caches."""

import copy

import pytest
import torch
from decoding_settings import (
    CODE,
    CODES,
    IDS,
    LENGTH,
    MASK,
    ROW,
    ROW_MASK,
    as_stock,
    check,
    equal,
    refused,
    same_error,
)
from transformers import CompileConfig, DynamicCache, StaticCache
from transformers.generation.utils import ALL_CACHE_NAMES
from transformers.utils import is_optimum_quanto_available


@check("Caches", "`cache_implementation='static'`, compiled decode", note="`CompileConfig`; no recompilation")
def compiled_decode(setting):
    compiled, ran = [], []

    def backend(graph, inputs):
        compiled.append(len(inputs))

        def run(*arguments):
            ran.append(1)
            return graph(*arguments)

        return run

    arguments = {
        "attention_mask": MASK,
        "max_new_tokens": 6,
        "do_sample": False,
        "cache_implementation": "static",
        "compile_config": CompileConfig(backend=backend, mode=None, fullgraph=True, dynamic=False),
    }
    arguments["compile_config"]._compile_all_devices = True
    rows = 0
    reference = setting.reference(True)
    expected = reference.decode(IDS, max_new_tokens=6)[0]
    for _ in range(2):
        found = setting.model.generate(IDS, latent=CODES, num_prefix_tokens=LENGTH, **arguments)
        rows += equal(found, expected)
    explicit = setting.model.latents_from_codes(torch.tensor(CODES), LENGTH)
    rows += equal(setting.model.generate(IDS, latent=explicit, **arguments), expected)
    assert len(compiled) == 1, f"{len(compiled)} graphs"
    assert len(ran) == 3 * 5
    return rows


@check(
    "Caches",
    "the returned cache, passed on to a next turn{}",
    settings=("Qwen3", "Qwen3, after_bos", "Gemma 3, window 4", "Falcon-H1"),
    each=[("", {}), (" with the new tokens alone", {"only_new": True}), (" twice, from copies", {"copies": True})],
    note="the prefix goes on; palette arguments are refused",
)
def next_turn(setting, only_new=False, copies=False):
    turn = torch.tensor([[11, 12], [13, 14]])
    rows = 0
    reference = setting.reference(True)
    first = reference.decode(IDS, max_new_tokens=4)[0]
    ids = torch.cat([first, turn], 1)
    expected = reference.decode(ids, max_new_tokens=5)[0]
    mask = torch.cat([MASK, torch.ones(2, 4 + 2, dtype=torch.long)], 1)
    name = "cache" if "cache" in ALL_CACHE_NAMES else "past_key_values"
    output = setting.model.generate(
        IDS,
        attention_mask=MASK,
        latent=CODES,
        num_prefix_tokens=LENGTH,
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
    )
    equal(output.sequences, first)
    for _ in range(2 if copies else 1):
        cache = copy.deepcopy(output[name]) if copies else output[name]
        passed = ids[:, -3:] if only_new else ids  # the last generated token is not in the cache yet
        found = setting.model.generate(passed, attention_mask=mask, max_new_tokens=5, do_sample=False, **{name: cache})
        rows += equal(found, expected[:, ids.shape[1] - passed.shape[1] :])
    return rows


@check("Caches", "a `StaticCache` over two turns", note="`reset()` frees it of its prefix")
def static_cache_over_turns(setting):
    cache = StaticCache(config=setting.base.config, max_cache_len=48)
    keep = {"max_new_tokens": 4, "do_sample": False, "past_key_values": cache, "disable_compile": True}
    reference = setting.reference(True, ROW, ROW_MASK, CODE)
    expected = reference.decode(ROW, max_new_tokens=8)[0]
    rows = 0
    for _ in range(2):
        first = setting.model.generate(ROW, latent=CODE, num_prefix_tokens=LENGTH, **keep)
        rows += equal(first, expected[:, :-4])
        rows += equal(setting.model.generate(first, attention_mask=torch.ones_like(first), **keep), expected)
        cache.reset()
    return rows


@check("Caches", "new tokens alone without the mask of the whole sequence", note="")
def new_tokens_without_mask(setting):
    cache = DynamicCache(config=setting.base.config)
    setting.model.generate(ROW, latent=CODE, max_new_tokens=4, do_sample=False, past_key_values=cache)
    return refused(
        "`input_ids` has 1 tokens, but `past_key_values` holds 8 beside the prefix",
        lambda: setting.model.generate(torch.tensor([[4]]), past_key_values=cache, max_new_tokens=2),
    )


@check("Caches", "`cache_implementation='paged'`")
def paged(setting):
    return refused(
        "`cache_implementation`='paged' cannot be combined with a latent prefix",
        lambda: setting.model.generate(IDS, latent=CODES, cache_implementation="paged"),
    )


@check("Caches", "`cache_implementation='quantized'` without optimum-quanto")
def quantized(setting):
    if is_optimum_quanto_available():
        pytest.skip("optimum-quanto is installed")
    return as_stock(
        setting, IDS, attention_mask=MASK, cache_implementation="quantized", max_new_tokens=4, contains="quanto"
    )


@check(
    "Caches",
    "`cache_implementation={}`, on a machine without accelerator",
    each=[("'offloaded'", {"name": "offloaded"}), ("'offloaded_static'", {"name": "offloaded_static"})],
)
def offloaded(setting, name):
    if torch.cuda.is_available():
        pytest.skip("an accelerator is there")
    # which error it is depends on torch's build
    same_error(setting, IDS, attention_mask=MASK, cache_implementation=name, max_new_tokens=4)
    return "as on the base: torch's error"

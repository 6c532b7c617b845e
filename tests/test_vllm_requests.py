"""Palette arguments of requests to vLLM, without vLLM: out of the body, into prefixes, and the response to them."""

import json

import pytest
import torch
from trainer_testing import LATENT, tiny_palette_model

from reasoning_palette.modeling_palette.vllm_serving.requests import (
    RequestedPrefix,
    check_samples,
    count_prompts,
    parse_body,
    pop_palette_arguments,
    resolve_request,
)
from reasoning_palette.modeling_palette.vllm_serving.responses import PrefixedResponse


@pytest.fixture(scope="module")
def config():
    return tiny_palette_model().config


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_body_is_read_in_every_encoding_of_json(encoding):
    body = {"prompt": "w1", "domain": "math"}
    assert parse_body(json.dumps(body).encode(encoding)) == body


@pytest.mark.parametrize("content", [b"", b"domain=math", b'["domain"]', b"\0domain", b'{"prompt": "w1"}'])
def test_bodies_that_hold_no_arguments_are_left_to_vllm(content):
    assert parse_body(content) == {}


@pytest.mark.parametrize("name", ["n", "seed"])
@pytest.mark.parametrize("value", ["2", 2.0, True, [2]])
def test_integers_that_vllm_would_convert_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer beside a prefix, got"):
        check_samples("/v1/completions", {name: value})


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_samples_of_an_api_that_has_one(path):
    with pytest.raises(ValueError, match=f"{path} has no `n`, got 2"):
        check_samples(path, {"n": 2})
    for body in ({}, {"n": None, "seed": None}, {"n": 1, "seed": 5}):
        check_samples(path, body)
    check_samples("/v1/chat/completions", {"n": 2, "seed": -1})


def test_arguments_are_taken_out_of_every_place():
    body = {"prompt": "w1", "domain": "math", "latent": None, "vllm_xargs": {"num_prefix_tokens": 3, "other": 1}}
    assert pop_palette_arguments(body) == {"domain": "math", "num_prefix_tokens": 3}
    assert body == {"prompt": "w1", "vllm_xargs": {"other": 1}}


@pytest.mark.parametrize("body", [{}, {"domain": None}, {"latent_tile": False}, {"num_prefix_tokens": 0}])
def test_what_asks_for_no_prefix(body):
    assert pop_palette_arguments(body) == {}


@pytest.mark.parametrize("body", [{"num_prefix_tokens": False}, {"num_prefix_tokens": 0, "domain": "math"}])
def test_what_generate_refuses_is_passed_on(config, body):
    with pytest.raises(ValueError, match="num_prefix_tokens"):
        resolve_request(config, pop_palette_arguments(body), 1, 1)


def test_an_argument_given_twice():
    with pytest.raises(ValueError, match="`latent` is given twice: 1 and 2"):
        pop_palette_arguments({"latent": 1, "chat_template_kwargs": {"latent": 2}})
    with pytest.raises(ValueError, match="`latent_tile` must be true or false, got 1"):
        pop_palette_arguments({"latent_tile": 1, "domain": "math"})


@pytest.mark.parametrize(
    ("prompt", "count"), [("w1", 1), (["w1", "w2"], 2), ([4, 5], 1), ([[4, 5], [6]], 2), (None, 1), ([], 1)]
)
def test_prompts_are_counted_as_vllm_does(prompt, count):
    assert count_prompts({"prompt": prompt}) == count


def test_draws_of_samples_are_those_of_generate(config):
    model = tiny_palette_model()
    expected = model.generate(
        torch.tensor([[4, 5], [6, 7]]),
        domain=["math", "code"],
        latent_seed=9,
        num_return_sequences=3,
        do_sample=False,
        max_new_tokens=1,
        return_dict_in_generate=True,
    ).latent_codes
    samples = resolve_request(config, {"domain": ["math", "code"], "latent_seed": 9}, 2, 3)
    assert torch.equal(torch.stack([sample.prefix.codes for sample in samples], dim=1).flatten(), expected)
    assert PrefixedResponse(samples, 1).codes == expected.tolist()


def test_the_seed_of_a_request_seeds_its_draws(config):
    def drawn(seed):
        return resolve_request(config, {"num_prefix_tokens": 2}, 1, 1, seed)[0].prefix.codes.item()

    assert (
        drawn(4)
        == drawn(4)
        == resolve_request(config, {"num_prefix_tokens": 2, "latent_seed": 4}, 1, 1, 8)[0].prefix.codes.item()
    )
    assert drawn(-7) == drawn(-7)
    assert len({drawn(None), drawn(None), drawn(-1), drawn(-1)}) == 4


def test_samples_share_a_latent_that_is_the_same_for_all(config):
    (shared,) = resolve_request(config, {"latent": 5}, 2, 4)
    assert shared.prefix.codes.tolist() == [5, 5]
    (shared,) = resolve_request(config, {"latent": [0.5] * LATENT}, 1, 4)
    assert shared.prefix.latents.shape == (1, 1, LATENT)
    own = resolve_request(config, {"latent": [[[float(row)] * LATENT] * 2 for row in range(3)]}, 1, 3)
    assert [sample.prefix.latents[0, 1, 0].item() for sample in own] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("latent", [[0.5] * 300, [[]] * 300, [[[0.5] * 100] * 100]])
def test_the_size_of_latents_is_bounded_before_they_become_a_tensor(config, latent, monkeypatch):
    monkeypatch.setattr(torch, "as_tensor", None)
    with pytest.raises(
        ValueError, match="`latent` holds more numbers than N x `max_prefix_tokens` x Z, which are 256"
    ):
        resolve_request(config, {"latent": latent}, 1, 1)


def prefixed(config, codes, offset=1):
    (requested,) = resolve_request(config, {"latent": codes, "num_prefix_tokens": 2}, len(codes), 1)
    requested.offsets.update(dict.fromkeys(range(len(codes)), offset))
    return requested


def test_bodies_of_samples_become_one(config):
    samples = [prefixed(config, [1, 2]), prefixed(config, [3, 4])]
    assert all(sample.is_placed for sample in samples)
    assert not RequestedPrefix(samples[0].prefix).is_placed
    bodies = [
        {
            "id": f"cmpl-{name}",
            "choices": [
                {"index": prompt, "text": f"{name}{prompt}", "prompt_token_ids": [7, 0, 0, 8]} for prompt in (0, 1)
            ],
            "usage": {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13},
        }
        for name in "ab"
    ]
    merged = PrefixedResponse(samples, 1).body(bodies)
    assert [(choice["index"], choice["text"]) for choice in merged["choices"]] == [
        (0, "a0"),
        (1, "b0"),
        (2, "a1"),
        (3, "b1"),
    ]
    assert merged["latent_codes"] == [1, 3, 2, 4]
    assert merged["choices"][3]["prompt_token_ids"] == [7, 8]
    assert merged["usage"] == {"prompt_tokens": 8, "completion_tokens": 10, "total_tokens": 18}


def test_events_of_samples_become_one_stream(config):
    response = PrefixedResponse([prefixed(config, [1]), prefixed(config, [3])], 1)
    usage = {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
    first = response.event(1, {"id": "b", "choices": [{"index": 0}], "prompt_token_ids": [7, 0, 0, 8]})
    assert first == {"id": "b", "choices": [{"index": 1}], "prompt_token_ids": [7, 8], "latent_codes": [1, 3]}
    assert response.event(0, {"id": "a", "choices": [{"index": 0}]}) == {"id": "b", "choices": [{"index": 0}]}
    assert response.event(0, {"id": "a", "choices": [], "usage": dict(usage)}) is None
    last = response.event(1, {"id": "b", "choices": [], "usage": dict(usage)})
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 10, "total_tokens": 14}

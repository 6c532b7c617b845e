"""Serving and rollouts on the real vLLM engine, in an environment of its own: `make test-vllm`.

Every check is a process (vllm_checks.py): an engine is made once per process, and TRL's colocated one is never freed.
"""

import json
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

pytest.importorskip("vllm", reason="vLLM needs an environment of its own: `make test-vllm`")
from transformers import AutoModelForCausalLM
from vllm_checks import SHORT_LIST, make_checkpoint
from vllm_client import ASKED, FLOATS, NEW_TOKENS, Client, generated, replay, spliced, without_end, words
from vllm_processes import free_port, run_check, serving

CHECKS = Path(__file__).with_name("vllm_checks.py")
GREATEST_DIFFERENCE = 1e-4  # of log-probabilities in float32
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder)
    return folder


def run(check, folder, *arguments):
    """The JSON that a check prints."""
    # what `torchrun` would set, with a port of its own for every process
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return run_check(CHECKS, check, str(folder), *map(json.dumps, arguments), **ranks)


def assert_same(found, rows):
    assert (found["rows"], found["differing"]) == (rows, 0)
    assert found["logprob_difference"] < GREATEST_DIFFERENCE


def test_the_engine_decodes_as_transformers_does(checkpoint):
    found = run("engine", checkpoint)
    print(found)
    assert_same(found["plain"], 100)
    assert_same(found["cached"], 100)
    assert found["cached"]["cached_tokens"] > found["plain"]["cached_tokens"] == 0
    assert_same(found["other_latents"], 40)
    assert found["other_latents"]["cached_tokens"] == 0  # no block is shared between latents
    assert_same(found["penalised"], 40)
    assert_same(found["by_arguments"], 40)
    assert found["seeded_codes"] == found["codes_of_generate"]
    assert found["chat_differing"] == 0
    assert "one of them" in found["two_prefixes"]
    assert "['domain'] are read by vLLM's HTTP server alone, at /v1/completions" in found["past_the_server"]
    assert found["plain_past_the_server"] == 3
    alone, unknown, beyond, explicit = found["refused"]
    assert "holds latent ids alone" in alone
    assert "Code 20971520 belongs to source 20, but this palette has the prior and 2 fitted domains" in unknown
    assert "to 99, but tokens are 0 to 42" in beyond
    assert "Explicit latents (tensors) have no ids on a server" in explicit


def test_a_palette_only_checkpoint_brings_its_base(tmp_path):
    make_checkpoint(tmp_path, palette_only=True)
    assert_same(run("palette_only", tmp_path), 10)


def test_a_compiled_engine(checkpoint):
    assert_same(run("compiled", checkpoint), 10)


def test_families(tmp_path):
    found = run("families", tmp_path, SHORT_LIST)
    print(found)
    assert set(found) == set(SHORT_LIST)
    for figures in found.values():
        assert_same(figures, 8)


@pytest.mark.parametrize(("algorithm", "adapter"), [("grpo", False), ("grpo", True), ("rloo", False)])
def test_colocated_rollouts(tmp_path, algorithm, adapter):
    found = run("colocate", tmp_path, algorithm, adapter)
    print(found)
    assert [step["guided"] for step in found["steps"]] == [[4, 4], [3, 3], [1, 1]]
    assert found["moved"]
    assert set(found["names"]) == {""}  # what the engine was loaded by was only lent
    if algorithm == "grpo":
        assert all(step["logprob_difference"] < GREATEST_DIFFERENCE for step in found["steps"])


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    """A LoRA adapter of the palette model, in every part that vLLM adapts beside the embeddings."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(3)
    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(checkpoint, adapter, tmp_path_factory):
    flags = ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--block-size", "32"]
    flags += ["--enable-prompt-tokens-details", "--enable-lora", "--max-lora-rank", "8"]
    flags += ["--lora-modules", f"adapter={adapter}"]
    settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    with serving(checkpoint, tmp_path_factory.mktemp("server") / "server.log", *flags, **settings) as url:
        yield url


def test_server_rollouts(checkpoint, server):
    found = run("server", checkpoint, server)
    print(found)
    assert [step["guided"] for step in found["steps"]] == [[4, 4], [3, 3], [1, 1]]
    # with one prompt per group, as TRL sends them, every other member would be sampled under the first one's latent
    assert all(step["logprob_difference"] < GREATEST_DIFFERENCE for step in found["steps"])
    assert "has another palette than `model`" in found["refused"]


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def client(server, checkpoint):
    return Client(server, checkpoint)


def test_requests_with_mixed_latents_give_what_generate_gives(client, model):
    answers = client.ask_all(100)
    sources = {"prior": 0, **{name: entry["source"] for name, entry in model.config.domains.items()}}
    for row, (prompt, tokens, code) in enumerate(answers):
        asked = ASKED[row % len(ASKED)]
        palette = replay(code, asked)
        assert without_end(tokens) == generated(model, prompt, palette) == spliced(model, prompt, palette), (
            row,
            asked,
        )
        if "latent" in asked:
            assert code == (77 if asked["latent"] == [77] else 1234567 if asked["latent"] == 1234567 else -1)
        elif asked:
            domain = asked.get("domain", "prior")
            drawn_from = [domain] if isinstance(domain, str) else list(domain)
            assert code // model.config.num_codes in {sources[name] for name in drawn_from}
    drawn = [code for row, (_, _, code) in enumerate(answers) if row % len(ASKED) == 0]
    assert len(set(drawn)) == len(drawn)


def test_every_sample_has_a_draw_of_its_own(client, model):
    prompts = [words(3), words(8)]
    answer = client.complete(prompt=prompts, n=3, domain=["math", "code"], num_prefix_tokens=4)
    codes = answer["latent_codes"]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert len(set(codes)) == 6
    assert [code // model.config.num_codes for code in codes] == [
        model.config.domains[name]["source"] for name in ("math", "code") for _ in range(3)
    ]
    for choice, code in zip(answer["choices"], codes, strict=True):
        ids = client.tokenizer(prompts[choice["index"] // 3]).input_ids
        assert choice["prompt_token_ids"] == ids
        palette = {"latent": code, "num_prefix_tokens": 4}
        assert without_end(choice["token_ids"]) == generated(model, ids, palette)
    # as without a prefix: the prompts once (here with their positions of the prefix), the completions of all samples
    plain = client.complete(prompt=prompts, n=3, temperature=1, seed=0)["usage"]["prompt_tokens"]
    assert answer["usage"]["prompt_tokens"] == plain + 2 * 4
    assert answer["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in answer["choices"])


def test_streamed_samples_come_as_one_response(client, model):
    messages = [{"role": "user", "content": words(4)}]
    prompt = client.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    chunks = list(
        client.openai.chat.completions.create(
            model=client.name,
            messages=messages,
            n=4,
            temperature=0,
            max_tokens=10,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"domain": "math", "return_token_ids": True},
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    (codes,) = [chunk.latent_codes for chunk in chunks if hasattr(chunk, "latent_codes")]
    (usage,) = [chunk.usage for chunk in chunks if chunk.usage]
    assert chunks[-1].usage is usage
    tokens = [[], [], [], []]
    for chunk in chunks:
        for choice in chunk.choices:
            tokens[choice.index] += getattr(choice, "token_ids", None) or []
    assert usage.completion_tokens == sum(map(len, tokens))
    for code, found in zip(codes, tokens, strict=True):
        assert without_end(found) == generated(model, prompt, {"latent": code})


def test_draws_are_repeated_by_a_seed_and_shared_where_one_latent_is_given(client, model):
    prompt = client.tokenizer(words(5), return_tensors="pt")
    seeded = client.complete(n=2, domain="math", latent_seed=5)["latent_codes"]
    settings = {"num_return_sequences": 2, "do_sample": False, "max_new_tokens": 2, "return_dict_in_generate": True}
    assert seeded == model.generate(**prompt, domain="math", latent_seed=5, **settings).latent_codes.tolist()
    once, again = (client.complete(domain="math", seed=3, temperature=1, n=2) for _ in range(2))
    assert once["latent_codes"] == again["latent_codes"]
    assert [choice["text"] for choice in once["choices"]] == [choice["text"] for choice in again["choices"]]
    shared = client.complete(latent=5, n=2, temperature=1, seed=0)
    assert shared["latent_codes"] == [5, 5]
    assert client.complete(vllm_xargs={"latent": 5})["choices"] == client.complete(latent=5)["choices"]


def test_what_vllm_does_for_plain_prompts_it_does_behind_a_prefix(client, model):
    ids = client.tokenizer(words(45)).input_ids * 2  # two blocks of the prefix cache
    palette = {"latent": 9, "num_prefix_tokens": 5}
    first, again = (client.complete(prompt=ids, **palette) for _ in range(2))
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, again)]
    assert cached == [0, 32]
    other = client.complete(prompt=ids, latent=10, num_prefix_tokens=5)
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["choices"] == first["choices"]
    assert other["choices"][0]["token_ids"] == generated(model, ids, {"latent": 10, "num_prefix_tokens": 5})

    assert client.complete(echo=True, return_token_ids=False, **palette)["choices"][0]["text"].startswith(words(5))
    penalised = client.complete(repetition_penalty=1.5, **palette)["choices"][0]
    short = client.tokenizer(words(5)).input_ids
    assert without_end(penalised["token_ids"]) == generated(model, short, {**palette, "repetition_penalty": 1.5})
    assert penalised["token_ids"] != client.complete(**palette)["choices"][0]["token_ids"]
    guided = client.complete(structured_outputs={"regex": "w1[23]"}, **palette)["choices"][0]["text"]
    assert guided.strip() in ("w12", "w13")
    logprobs = client.complete(logprobs=0, return_token_ids=True, **palette)["choices"][0]
    assert len(logprobs["logprobs"]["token_logprobs"]) == len(logprobs["token_ids"])
    kept = client.complete(prompt=ids, truncate_prompt_tokens=7, **palette)["choices"][0]
    assert kept["prompt_token_ids"] == ids[-7:]
    assert without_end(kept["token_ids"]) == generated(model, ids[-7:], palette)


def test_adapters_behind_a_prefix(client, model, checkpoint, adapter):
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), adapter).eval()
    moved = 0
    for row in range(20):
        ids, asked = client.tokenizer(words(row)).input_ids, ASKED[row % len(ASKED)]
        answer = client.complete(prompt=ids, model="adapter", **asked)
        palette = replay(answer.get("latent_codes", [None])[0], asked)
        expected = adapted.generate(
            input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=NEW_TOKENS, **palette
        )
        found = without_end(answer["choices"][0]["token_ids"])
        assert found == without_end(expected[0, len(ids) :].tolist())
        moved += found != generated(model, ids, palette)
    assert moved > 10


def test_responses_and_messages_take_the_same_arguments(client, model):
    palette = {"latent": 21, "num_prefix_tokens": 3}
    ids = client.tokenizer(f"w1 {words(6)} w2").input_ids
    expected = client.tokenizer.decode(generated(model, ids, palette), skip_special_tokens=True)
    response = client.openai.responses.create(
        model=client.name, input=words(6), temperature=0, max_output_tokens=10, extra_body=palette
    )
    assert (response.output_text.strip(), response.latent_codes) == (expected, [21])
    *_, last = client.openai.responses.create(
        model=client.name, input=words(6), temperature=0, max_output_tokens=10, stream=True, extra_body=palette
    )
    assert (last.response.output_text.strip(), last.response.latent_codes) == (expected, [21])
    body = {"model": client.name, "messages": [{"role": "user", "content": words(6)}], "max_tokens": 10}
    status, message = client.post("/v1/messages", temperature=0, **body, **palette)
    assert (status, message["content"][0]["text"].strip(), message["latent_codes"]) == (200, expected, [21])
    again = client.post("/v1/messages", encoding="utf-16", temperature=0, **body, **palette)[1]
    assert (again["content"], again["latent_codes"]) == (message["content"], [21])


REFUSED = [
    ({"domain": "maths"}, "`domain`='maths' is unknown; this palette has 'code', 'math'"),
    ({"latent": 3 << 20}, "`latent` holds the code 3145728; this palette has codes 0 to 3145727"),
    ({"latent": 5, "domain": "math"}, "`latent` and `domain` exclude each other"),
    ({"latent": [float("nan"), 0.0, 0.0, 0.0]}, "`latent` must be finite, but 1 of its 4 values"),
    ({"latent": FLOATS[:3]}, "`latent` must be a code, N=1 codes, or a float tensor of shape (4,)"),
    ({"latent": [0.5] * 300}, "`latent` holds more numbers than N x `max_prefix_tokens` x Z, which are 256"),
    ({"latent": "five"}, "`latent` must be a code"),
    ({"domain": "math", "num_prefix_tokens": 65}, "`num_prefix_tokens`=65 is out of range"),
    ({"domain": "math", "num_prefix_tokens": 0}, "`num_prefix_tokens`=0 asks for no prefix, but `domain`"),
    ({"latent_tile": True}, "`latent_tile` has no effect without a prefix"),
    ({"domain": "math", "latent_tile": "yes"}, "`latent_tile` must be true or false, got 'yes'"),
    ({"domain": "math", "vllm_xargs": {"domain": "code"}}, "`domain` is given twice"),
    (
        {"domain": "math", "max_tokens": 118},
        "3 prompt tokens + `num_prefix_tokens`=8 + 118 new tokens are 129 positions",
    ),
    ({"domain": "math", "use_beam_search": True, "n": 2}, "`use_beam_search` cannot be combined with `domain`"),
    ({"domain": "math", "prompt_logprobs": 0}, "`prompt_logprobs` cannot be combined with `domain`"),
    ({"domain": "math", "echo": True, "logprobs": 0}, "`echo` with `logprobs` cannot be combined"),
    (
        {"domain": "math", "prompt": [(1 << 24) + 5, 4]},
        "`prompt_token_ids` holds latent ids, and the palette's arguments",
    ),
    ({"domain": "math", "n": 1 << 40}, "n must be at most"),
    ({"domain": "math", "n": "2"}, "`n` must be an integer beside a prefix, got '2'"),
    ({"domain": "math", "n": 2.0}, "`n` must be an integer beside a prefix, got 2.0"),
    ({"domain": "math", "seed": "5"}, "`seed` must be an integer beside a prefix, got '5'"),
    ({"domain": "math", "n": 129}, "`n` asks for 129 at once, but with `domain` a request may ask for 128"),
    ({"domain": "math", "prompt": ["w1"] * 1025}, "`prompt` asks for 1025 at once"),
]


def test_refusals_leave_the_server_alive(client):
    for asked, message in REFUSED:
        body = {"prompt": "w1 w2 w3", "max_tokens": 4, "temperature": 0, **asked}
        status, answer = client.post("/v1/completions", **body)
        assert (status, message in answer["error"]["message"]) == (400, True), (asked, answer)
        if "num_prefix_tokens`=8" not in message:
            continue
        assert client.post("/v1/completions", **body, stream=True)[0] == 400
    for path in ("/v1/embeddings", "/tokenize", "/invocations", "/v1/chat/completions/batch"):
        status, answer = client.post(path, prompt="w1", input="w1", domain="math")
        assert (status, f"{path} does not take `domain`" in answer["error"]["message"]) == (400, True)
    chat = {"messages": [{"role": "user", "content": "w1"}], "max_tokens": 4}
    for path, body in (("/v1/responses", {"input": "w1"}), ("/v1/messages", {"model": client.name, **chat})):
        for is_stream in (False, True):
            status, answer = client.post(path, **body, domain="math", n=2, stream=is_stream)
            assert (status, f"{path} has no `n`, got 2" in answer["error"]["message"]) == (400, True)
    status, answer = client.post(
        "/v1/chat/completions", **chat, domain="math", kv_transfer_params={"prompt_token_ids": [4, 5]}
    )
    assert (status, "past the renderer" in answer["error"]["message"]) == (400, True)
    plain = client.complete(domain=None, latent_tile=False, num_prefix_tokens=0)
    assert "latent_codes" not in plain
    assert plain["choices"] == client.complete()["choices"]


def test_samples_of_a_client_that_left_are_aborted(client):
    def counted(name):
        metrics = urllib.request.urlopen(f"{client.url}/metrics").read().decode()
        return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(name))

    before = counted("vllm:generation_tokens_total")
    body = {"model": client.name, "prompt": "w1", "max_tokens": 110, "n": 32}
    with client.openai.completions.create(
        **body, stream=True, extra_body={"domain": "math", "ignore_eos": True}
    ) as stream:
        next(iter(stream))
    deadline = time.time() + 30
    while counted("vllm:num_requests_running") and time.time() < deadline:
        time.sleep(0.1)
    assert counted("vllm:num_requests_running") == 0
    assert counted("vllm:generation_tokens_total") - before < 32 * 110

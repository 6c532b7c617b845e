"""Strategy tokens on stock vLLM, with this package's plugin off, in vLLM's own environment: `make test-vllm`."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM needs an environment of its own: `make test-vllm`")
from chat_testing import chat_palette_model
from export_testing import (
    NEW_TOKENS,
    chosen_strategies,
    export_base,
    export_model,
    spliced_greedy,
    strategy_latents,
    word_prompts,
)
from trainer_testing import WORDS
from vllm_export_checks import SETTINGS
from vllm_processes import run_check, serving

CHECKS = Path(__file__).with_name("vllm_export_checks.py")
LENGTH = 4
FAMILIES = ["qwen3-tied", "qwen3-full", "llama", "gemma3", "gpt2", "granite", "falcon_h1"]
pytestmark = pytest.mark.timeout(900)


def run(check, *arguments):
    """The JSON that a check prints."""
    return run_check(CHECKS, check, *map(json.dumps, arguments), **SETTINGS)


def export(family, folder):
    """An export, the texts of 100 prompts behind its strategies and without one, and what they are answered."""
    base = export_base(family)
    model = export_model(base)
    record = model.export_strategy_tokens(folder, chosen_strategies(), num_prefix_tokens=LENGTH)
    prompts, names = word_prompts(), [None, *chosen_strategies()]
    latents = strategy_latents(model, LENGTH)
    asked = [names[index // 10 % len(names)] for index in range(len(prompts))]
    rows = [None if name is None else model.palette.decode(latents[name]) for name in asked]
    taken = [one for entry in record["strategies"].values() for one in entry["token_ids"]]
    texts = [
        (record["strategies"][name]["text"] if name else "") + " ".join(WORDS[token - 3] for token in prompt)
        for name, prompt in zip(asked, prompts, strict=True)
    ]
    return record, texts, spliced_greedy(base, rows, prompts, taken)


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_vllm_decodes_what_the_palette_does(family, tmp_path):
    _, texts, expected = export(family, tmp_path / "export")
    found = run("greedy", [[str(tmp_path / "export"), texts, NEW_TOKENS]])
    assert not found["package"]
    differing = sum(one != other for one, other in zip(found["tokens"][0], expected, strict=True))
    assert (len(texts), differing) == (100, 0)


@pytest.mark.parametrize("family", ["qwen3-tied", "gpt2"])
def test_strategies_are_never_sampled(family, tmp_path):
    record, texts, _ = export(family, tmp_path / "export")
    tokens = sorted({one for entry in record["strategies"].values() for one in entry["token_ids"]})
    found = run("sampling", str(tmp_path / "export"), texts, tokens, 100)
    print(found)
    assert found["count"] == 10000
    assert found["distinct"] > 70  # of 81 ordinary rows: at this temperature nearly everything comes
    assert found["strategies"] == 0
    assert found["largest_logprob"] < -1000


@pytest.fixture
def server(tmp_path):
    torch.manual_seed(0)
    model = chat_palette_model(head_dim=32, tie_word_embeddings=True)
    model.generation_config.eos_token_id = None
    record = model.export_strategy_tokens(tmp_path / "export", {"math-1": 5, "code": 6}, num_prefix_tokens=LENGTH)
    flags = ["--served-model-name", "export", "--max-model-len", "200"]
    with serving(tmp_path / "export", tmp_path / "server.log", *flags, **SETTINGS) as url:
        yield model, record, url


def ask(url, **body):
    body = {"model": "export", "temperature": 0, "max_tokens": NEW_TOKENS, "return_token_ids": True, **body}
    body["ignore_eos"] = True
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read())["choices"][0]


def test_by_text_and_by_chat_template_through_the_server(server):
    model, record, url = server
    codes = {"math-1": 5, "code": 6, None: None}
    for index in range(12):
        name = [*codes][index % 3]
        latent = {} if name is None else {"latent": codes[name], "num_prefix_tokens": LENGTH}
        text = f"What is {index} and {index * 7}?"
        ids = model.tokenizer(text, return_tensors="pt").input_ids
        expected = model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS, **latent)[0, ids.shape[1] :]
        prefix = record["strategies"][name]["text"] if name else ""
        assert ask(f"{url}/v1/completions", prompt=prefix + text)["token_ids"] == expected.tolist()

        messages = [{"role": "user", "content": text}]
        chat = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        ids = chat["input_ids"]
        expected = model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS, **latent)[0, ids.shape[1] :]
        keywords = {"chat_template_kwargs": {"strategy": name}} if name else {}
        assert ask(f"{url}/v1/chat/completions", messages=messages, **keywords)["token_ids"] == expected.tolist()
    with pytest.raises(urllib.error.HTTPError) as raised:
        ask(f"{url}/v1/chat/completions", messages=messages, chat_template_kwargs={"strategy": "maths"})
    assert raised.value.code == 400
    assert "strategy must be one of code, math-1; got maths" in raised.value.read().decode()

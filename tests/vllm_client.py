"""Requests to a palette's server through the OpenAI client, and what stock transformers makes of them."""

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

NEW_TOKENS = 10
EOS = 1
FLOATS = [0.3, -1.2, 0.8, 0.1]
# What a request asks for, in the words of `generate`.
ASKED = [
    {"domain": "math"},
    {"domain": {"math": 0.7, "code": 0.3}, "num_prefix_tokens": 4},
    {"latent": 1234567, "num_prefix_tokens": 5},
    {"num_prefix_tokens": 3},
    {"latent": FLOATS, "num_prefix_tokens": 6},
    {},
    {"latent": [[FLOATS, FLOATS[::-1], FLOATS]]},
    {"domain": "code", "latent_tile": True, "num_prefix_tokens": 2},
    {"domain": ["code"], "latent_seed": 11},
    {"latent": [77], "latent_tile": True},
]


def words(row):
    return " ".join(f"w{(row * 7 + column * 5) % 40}" for column in range(1 + row % 23))


class Client:
    """One server, and the checkpoint that it serves."""

    def __init__(self, url, folder):
        self.url, self.name = url, str(folder)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def post(self, path, encoding="utf-8", **body):
        """Status and JSON of a raw request."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(encoding), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def complete(self, **body):
        defaults = {"prompt": words(5), "max_tokens": NEW_TOKENS, "temperature": 0, "return_token_ids": True}
        status, answer = self.post("/v1/completions", **{**defaults, **body})
        assert status == 200, answer
        return answer

    def ask(self, row, is_chat, is_stream, **palette):
        """Prompt ids, token ids and code of one greedy answer; the code is None where the answer holds none."""
        settings = {"model": self.name, "temperature": 0, "max_tokens": NEW_TOKENS, "stream": is_stream}
        settings["extra_body"] = {"return_token_ids": True, **palette}
        if is_chat:
            messages = [{"role": "user", "content": words(row)}]
            answer = self.openai.chat.completions.create(messages=messages, **settings)
            prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        else:
            answer = self.openai.completions.create(prompt=words(row), **settings)
            prompt = self.tokenizer(words(row)).input_ids
        parts = list(answer) if is_stream else [answer]
        choices = [choice for part in parts for choice in part.choices]
        tokens = [token for choice in choices for token in getattr(choice, "token_ids", None) or ()]
        holders = [parts[0], *parts[0].choices]
        sent = next(ids for ids in (getattr(holder, "prompt_token_ids", None) for holder in holders) if ids)
        assert sent == prompt  # the client sees its own prompt, without the prefix
        codes = [part.latent_codes for part in parts if hasattr(part, "latent_codes")]
        assert len(codes) == bool(palette)
        return prompt, tokens, codes[0][0] if codes else None

    def ask_all(self, count, workers=16):
        """`count` greedy answers of mixed requests through both endpoints, streamed and not, side by side."""

        def ask(row):
            return self.ask(row, row % 2 == 0, row // 2 % 2 == 0, **ASKED[row % len(ASKED)])

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(ask, range(count)))


def replay(code, asked):
    """The arguments with which `generate` repeats an answer."""
    shape = {name: asked[name] for name in ("num_prefix_tokens", "latent_tile") if name in asked}
    if code == -1:
        return {**shape, "latent": torch.tensor(asked["latent"])}
    return {} if code is None else {**shape, "latent": code}


def generated(model, prompt, palette):
    ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS, **palette)
    return without_end(ids[0, len(prompt) :].tolist())


def spliced(model, prompt, palette):
    """Greedy decoding of the stock base behind latents that are put in front by hand."""
    stock = Qwen3ForCausalLM(model.config.base_config).eval()
    stock.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "palette." not in name})
    rows = stock.get_input_embeddings()(torch.tensor([prompt]))
    if palette:
        length, latent = palette.get("num_prefix_tokens", model.config.num_prefix_tokens), palette["latent"]
        if isinstance(latent, int):
            latents = model.latents_from_codes(torch.tensor([latent]), length, palette.get("latent_tile", False))
        else:
            latents = latent if latent.dim() == 3 else latent.expand(1, length, -1)
        rows = torch.cat([model.palette.decode(latents), rows], dim=1)
    ids = stock.generate(inputs_embeds=rows, do_sample=False, max_new_tokens=NEW_TOKENS)
    return without_end(ids[0].tolist())


def without_end(tokens):
    return tokens[: tokens.index(EOS)] if EOS in tokens else tokens

"""The middleware that serves requests with palette arguments.

It takes the arguments out of the body, draws, and hands the prefix to the renderer in a context variable. Samples that
do not share a latent become requests of their own. What vLLM cannot serve with a prefix is refused.
"""

import asyncio
import json
from typing import Any

from vllm import envs

from ..configuration_palette import PaletteConfig
from .requests import (
    SINGLE_SAMPLE_PATHS,
    RequestedPrefix,
    check_samples,
    count_prompts,
    parse_body,
    pop_palette_arguments,
    resolve_request,
)
from .responses import PrefixedResponse
from .samples import Message, Receive, Sample, Send, replay, respond, send_error

# OpenAI's own limit of `n`. Each sample with a latent of its own is a request of its own to vLLM, prompt and all.
MAX_SAMPLES = 128
SERVED_PATHS = ("/v1/completions", "/v1/chat/completions", *SINGLE_SAMPLE_PATHS)
# Fields that vLLM cannot honour for a prompt with embeddings in it, and what they may be beside one.
REFUSED_FIELDS = {
    "use_beam_search": "vLLM's beam search takes token ids alone",
    "prompt_logprobs": "vLLM would report the prefix's positions as tokens of the prompt",
    "prompt_embeds": "a prefix is put into token ids",
}


class PaletteMiddleware:
    """An ASGI middleware that serves requests with palette arguments; others pass untouched."""

    def __init__(self, app: Any, state: Any) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        config = getattr(self.state, "palette_config", None)
        if scope["type"] != "http" or scope["method"] != "POST" or config is None:
            return await self.app(scope, receive, send)
        content = await _read(receive)
        try:
            body = parse_body(content)
            arguments = pop_palette_arguments(body)
            requested = self._resolve(config, scope, body, arguments) if arguments else []
        except ValueError as error:
            return await send_error(send, error)
        if not requested:
            return await self.app(scope, replay(content, receive), send)
        await self._serve(scope, receive, send, body, requested)

    def _resolve(
        self, config: PaletteConfig, scope: Message, body: dict[str, Any], arguments: dict[str, Any]
    ) -> list[RequestedPrefix]:
        names = ", ".join(f"`{name}`" for name in arguments)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in SERVED_PATHS:
            raise ValueError(f"{path} does not take {names}. A prefix is served at {', '.join(SERVED_PATHS)}.")
        for field, reason in REFUSED_FIELDS.items():
            if _is_set(body.get(field)):
                raise ValueError(f"`{field}` cannot be combined with {names}: {reason}. Drop one of them.")
        for other in ("logprobs", "return_token_ids"):
            if _is_set(body.get("echo")) and _is_set(body.get(other)):
                raise ValueError(
                    f"`echo` with `{other}` cannot be combined with {names}: {REFUSED_FIELDS['prompt_logprobs']}. "
                    "Drop one of them."
                )
        check_samples(path, body)
        num_prompts, num_samples = count_prompts(body), _num_samples(body)
        for field, number, limit in (
            ("prompt", num_prompts, envs.VLLM_MAX_COMPLETION_PROMPTS),
            ("n", num_samples, MAX_SAMPLES),
        ):
            if number > limit:
                raise ValueError(
                    f"`{field}` asks for {number} at once, but with {names} a request may ask for {limit}. Send "
                    "several requests."
                )
        return resolve_request(config, arguments, num_prompts, num_samples, body.get("seed"))

    async def _serve(
        self, scope: Message, receive: Receive, send: Send, body: dict[str, Any], requested: list[RequestedPrefix]
    ) -> None:
        bodies, response = [body], PrefixedResponse(requested, _num_samples(body) if len(requested) == 1 else 1)
        if len(requested) > 1:
            bodies = [_body_of_sample(body, sample) for sample in range(len(requested))]
        gone = asyncio.Event()
        samples = [
            Sample(self.app, scope, json.dumps(body).encode(), prefix, gone)
            for body, prefix in zip(bodies, requested, strict=True)
        ]
        responding = asyncio.create_task(respond(samples, response, send))
        watching = asyncio.create_task(_disconnection(receive))
        try:
            await asyncio.wait([responding, watching], return_when=asyncio.FIRST_COMPLETED)
            if responding.done():
                await responding
        finally:
            watching.cancel()
            responding.cancel()
            gone.set()
            for sample in samples:
                sample.stop()


def _num_samples(body: dict[str, Any]) -> int:
    """`n`; 1 where it is none that vLLM takes: it refuses it itself."""
    n = body.get("n")
    if n is None:
        return 1
    return n if 1 <= n <= envs.VLLM_MAX_N_SEQUENCES else 1


def _is_set(value: Any) -> bool:
    return value is not None and value is not False  # 0 log-probabilities are asked for too


def _body_of_sample(body: dict[str, Any], sample: int) -> dict[str, Any]:
    """The request of one of `n` samples, with the seed that vLLM gives it."""
    own: dict[str, Any] = {"n": 1}
    seed = body.get("seed")
    if seed is not None and seed != -1:
        own["seed"] = seed + sample
    if isinstance(body.get("request_id"), str):
        own["request_id"] = f"{body['request_id']}-{sample}"
    return {**body, **own}


async def _read(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

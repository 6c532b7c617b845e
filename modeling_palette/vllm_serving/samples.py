"""Requests of single samples, run through vLLM's application side by side and answered as one."""

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from vllm.entrypoints.serve import create_error_response

from .requests import REQUESTED, RequestedPrefix
from .responses import PrefixedResponse

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Sample:
    """One run of vLLM's application: the request of one sample, and the messages of its response."""

    def __init__(self, app: Any, scope: Message, content: bytes, prefix: RequestedPrefix, gone: asyncio.Event) -> None:
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._has_started = False
        self._task = asyncio.create_task(self._run(app, scope, content, prefix, gone))

    async def _run(
        self, app: Any, scope: Message, content: bytes, prefix: RequestedPrefix, gone: asyncio.Event
    ) -> None:
        REQUESTED.set(prefix)  # of this task's own context
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        headers.append((b"content-length", str(len(content)).encode()))
        own_scope = {**scope, "headers": headers, "state": dict(scope.get("state", {}))}

        async def disconnection() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            self._has_started = True
            await self._messages.put(message)

        try:
            await app(own_scope, replay(content, disconnection), send)
        finally:
            await self._messages.put(None)

    def stop(self) -> None:
        """Stop what streams. vLLM ends a request without a response itself, once it hears of the disconnection."""
        if self._has_started:
            self._task.cancel()

    async def start(self) -> Message:
        message = await self._messages.get()
        if message is None:
            await self._task  # raises what the application raised
            raise RuntimeError("vLLM ended a request without a response.")
        return message

    async def rest(self) -> AsyncIterator[Message]:
        while (message := await self._messages.get()) is not None:
            yield message
        await self._task

    async def content(self) -> bytes:
        return b"".join([message.get("body", b"") async for message in self.rest()])


async def respond(samples: list[Sample], response: PrefixedResponse, send: Send) -> None:
    """Answer a request with the responses of its samples, or with the first refusal among them."""
    starts = await asyncio.gather(*(sample.start() for sample in samples))
    failed = next((number for number, start in enumerate(starts) if start["status"] >= 400), None)
    if failed is not None:
        await send(starts[failed])
        async for message in samples[failed].rest():
            await send(message)
    elif not all(requested.is_placed for requested in response.requested):
        error = "vLLM took this request's prompt past the renderer, which gives it its prefix."
        await send_error(send, ValueError(f"{error} Drop `kv_transfer_params`, or the palette arguments."))
    elif _is_stream(starts[0]):
        await send(starts[0])
        await _stream(samples, response, send)
    else:
        contents = await asyncio.gather(*(sample.content() for sample in samples))
        await _send_json(send, starts[0], response.body([json.loads(content) for content in contents]))


async def _stream(samples: list[Sample], response: PrefixedResponse, send: Send) -> None:
    """Events of all samples as they come, one end."""
    events: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()

    async def forward(number: int) -> None:
        held = b""
        try:
            async for message in samples[number].rest():
                *whole, held = (held + message.get("body", b"")).split(b"\n\n")
                for event in whole:
                    await events.put((number, event))
        finally:
            await events.put(None)

    tasks = [asyncio.create_task(forward(number)) for number in range(len(samples))]
    running, has_end = len(tasks), False
    try:
        while running:
            item = await events.get()
            if item is None:
                running -= 1
                continue
            number, event = item
            if event == b"data: [DONE]":
                has_end = True
                continue
            rewritten = _rewrite_event(event, functools.partial(response.event, number))
            if rewritten is not None:
                await send({"type": "http.response.body", "body": rewritten + b"\n\n", "more_body": True})
        await asyncio.gather(*tasks)
        end = b"data: [DONE]\n\n" if has_end else b""
        await send({"type": "http.response.body", "body": end, "more_body": False})
    finally:
        for task in tasks:
            task.cancel()


def _rewrite_event(event: bytes, rewrite: Callable[[Message], Message | None]) -> bytes | None:
    lines = event.split(b"\n")
    for index, line in enumerate(lines):
        if line.startswith(b"data: {"):
            data = rewrite(json.loads(line.removeprefix(b"data: ")))
            if data is None:
                return None
            lines[index] = b"data: " + json.dumps(data).encode()
    return b"\n".join(lines)


def _is_stream(start: Message) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"])


def replay(content: bytes, receive: Receive) -> Receive:
    """The body once more, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _send_json(send: Send, start: Message, body: dict[str, Any]) -> None:
    content = json.dumps(body, ensure_ascii=False).encode()
    kept = [(name, value) for name, value in start["headers"] if name not in (b"content-length", b"content-type")]
    headers = [*kept, (b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


async def send_error(send: Send, error: Exception) -> None:
    response = create_error_response(error)
    start = {"type": "http.response.start", "status": response.error.code, "headers": []}
    await _send_json(send, start, response.model_dump())

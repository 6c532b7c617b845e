"""vLLM's responses to a request with a prefix: the codes are added, the prefix's positions are cut, samples merged.

Works on the JSON of vLLM's HTTP API, so it is the same for completions, chats, responses and messages.
"""

from typing import Any

from .requests import RequestedPrefix

CODES = "latent_codes"


class PrefixedResponse:
    """
    The response to one request.

    Args:
        requested (`list[RequestedPrefix]`): One per sample, each answered by a response of its own; or a single one.
        num_choices (`int`): Choices per prompt in each of those responses.
    """

    def __init__(self, requested: list[RequestedPrefix], num_choices: int) -> None:
        self.requested = requested
        self.num_choices = num_choices
        self._id: str | None = None
        self._announced = False
        self._usage: dict[int, dict[str, Any]] = {}

    @property
    def codes(self) -> list[int]:
        """One code per choice, in the order of `index`; -1 where an explicit latent was given."""
        codes = [requested.prefix.codes.tolist() for requested in self.requested]
        by_prompt = [list(of_prompt) for of_prompt in zip(*codes, strict=True)]
        return [code for of_prompt in by_prompt for code in of_prompt for _ in range(self.num_choices)]

    def body(self, bodies: list[dict[str, Any]]) -> dict[str, Any]:
        """One JSON body out of those of the samples."""
        for sample, body in enumerate(bodies):
            self._rewrite(sample, body)
        merged = bodies[0]
        if len(bodies) > 1:
            choices = [choice for body in bodies for choice in body["choices"]]
            merged["choices"] = sorted(choices, key=lambda choice: choice["index"])
            if merged.get("usage"):
                merged["usage"] = _total([body["usage"] for body in bodies])
        merged[CODES] = self.codes
        return merged

    def event(self, sample: int, event: dict[str, Any]) -> dict[str, Any] | None:
        """A streamed event of one sample as the client gets it, or None for one that waits for the other samples."""
        is_total = event.get("choices") == [] and event.get("usage")
        self._rewrite(sample, event)
        if is_total and len(self.requested) > 1:
            self._usage[sample] = event["usage"]
            if len(self._usage) < len(self.requested):
                return None
            event["usage"] = _total([self._usage[number] for number in sorted(self._usage)])
        if isinstance(event.get("response"), dict):  # each event of the Responses API that holds the whole response
            event["response"][CODES] = self.codes
        elif not self._announced:
            is_message = event.get("type") == "message_start"
            (event["message"] if is_message else event)[CODES] = self.codes
            self._announced = True
        return event

    def _rewrite(self, sample: int, part: dict[str, Any]) -> None:
        """Indices and id of the merged response, prompts without the positions of the prefix."""
        if len(self.requested) > 1 and "id" in part:
            self._id = self._id or part["id"]
            part["id"] = self._id
        self._cut(part, sample, 0)
        for choice in part.get("choices") or ():
            prompt = choice["index"] // self.num_choices
            self._cut(choice, sample, prompt)
            if len(self.requested) > 1:
                choice["index"] = prompt * len(self.requested) + sample

    def _cut(self, part: dict[str, Any], sample: int, prompt: int) -> None:
        ids = part.get("prompt_token_ids")
        if isinstance(ids, list):
            start = self.requested[sample].offsets[prompt]
            part["prompt_token_ids"] = ids[:start] + ids[start + self.requested[sample].prefix.num_prefix_tokens :]


def _total(usages: list[dict[str, Any]]) -> dict[str, Any]:
    """As vLLM counts `n` samples: the prompt once, every completion."""
    completion = sum(usage["completion_tokens"] for usage in usages)
    return {
        **usages[0],
        "completion_tokens": completion,
        "total_tokens": usages[0]["prompt_tokens"] + completion,
    }

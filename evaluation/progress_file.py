"""What an evaluation has generated so far, on disk: an interrupted one goes on where it was."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .method import Completions, Method

_VALUES = 64  # of each tensor that tell one model from another


class ProgressFile:
    """JSON-lines: what the run is, then a line for each finished batch of completions.

    A line that was being written when the process died is dropped, and its batch generated again. Batches have seeds
    of their own, so the completions are those of a run that was never interrupted.

    Args:
        path (`str` or `os.PathLike`): The file; created with its folder if need be.
        settings (`Mapping[str, Any]`): What completions depend on, beside the method.

    Raises:
        ValueError: If the file is of a run with other settings, or is none of ours.
    """

    def __init__(self, path: str | os.PathLike, settings: Mapping[str, Any]):
        self.path = Path(path)
        self._done: dict[tuple[str, int], dict[str, Any]] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        written = self.path.read_bytes() if self.path.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        if len(whole) < len(written):
            os.truncate(self.path, len(whole))
        if not whole:
            self._append({"settings": settings})
            return
        try:
            first, *batches = map(json.loads, whole.decode().splitlines())
            found = first["settings"]
            self._done = {(_key(batch["method"]), batch["batch"]): batch for batch in batches}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"`progress_file` {str(path)!r} is no record of an evaluation; name another.") from error
        other = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
        if other:
            shown = ", ".join(f"{name} ({found.get(name)!r}, now {settings.get(name)!r})" for name in other)
            raise ValueError(
                f"`progress_file` {str(path)!r} is of a run with another {shown}. Go on with the same settings, or "
                "name another file."
            )

    def load(self, method: Method, batch: int) -> tuple[Completions, float] | None:
        """The completions of a batch and the seconds that they took; None if they are not there."""
        found = self._done.get((_key(asdict(method)), batch))
        return None if found is None else (Completions(**found["completions"]), found["seconds"])

    def save(self, method: Method, batch: int, completions: Completions, seconds: float) -> None:
        """Adds a batch."""
        line = {"method": asdict(method), "batch": batch, "seconds": seconds, "completions": asdict(completions)}
        self._append(line)

    def _append(self, line: Mapping[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _key(method: Mapping[str, Any]) -> str:
    return json.dumps(method, sort_keys=True)


def describe_prompts(prompts: Sequence[Any]) -> str:
    """A digest of prompts; of images in them, their names or sizes."""
    text = json.dumps(prompts, default=lambda item: [type(item).__name__, str(getattr(item, "size", ""))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_weights(model: PreTrainedModel) -> str:
    """A digest of the first values of every tensor of a model: another checkpoint of the same name has another."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten()[:_VALUES].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

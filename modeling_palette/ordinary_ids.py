"""Keeps latent ids from what cannot read them: streamers, assistants, and processors that index the vocabulary."""

from typing import Any

import torch
from transformers.generation.candidate_generator import (
    AssistedCandidateGenerator,
    CandidateGenerator,
    PromptLookupCandidateGenerator,
)
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


def with_ordinary_ids(ids: torch.Tensor, latent_id_base: int) -> torch.Tensor:
    """`ids` with the row's last token in the place of latent ids: for readers that index the vocabulary by id, to
    whom a token that occurs once more makes no difference."""
    return torch.where(ids >= latent_id_base, ids[:, -1:], ids)


class OrdinaryIdProcessor(LogitsProcessor):
    """Keeps latent ids from a logits processor that indexes the vocabulary by id (transformers 5.16 does not pass by
    ids beyond it)."""

    def __init__(self, processor: LogitsProcessor, latent_id_base: int):
        self._processor = processor
        self._latent_id_base = latent_id_base

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._processor(with_ordinary_ids(input_ids, self._latent_id_base), scores)


def without_latent_ids(ids: torch.Tensor, latent_id_base: int) -> torch.Tensor:
    """`ids` (N, S + L) without the L latent ids of each row."""
    return ids[ids < latent_id_base].reshape(len(ids), -1)


class PrefixFreeProcessor(LogitsProcessor):
    """A user's logits processor, which sees prompt and completion."""

    def __init__(self, processor: LogitsProcessor, latent_id_base: int):
        self._processor = processor
        self._latent_id_base = latent_id_base

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._processor(without_latent_ids(input_ids, self._latent_id_base), scores)


class PrefixFreeCriteria(StoppingCriteria):
    """A user's stopping criteria, which see prompt and completion."""

    def __init__(self, criteria: StoppingCriteria, latent_id_base: int):
        self._criteria = criteria
        self._latent_id_base = latent_id_base

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self._criteria(without_latent_ids(input_ids, self._latent_id_base), scores, **kwargs)


class PrefixFreeStreamer(BaseStreamer):
    """Hands a streamer the prompt without its latent ids."""

    def __init__(self, streamer: BaseStreamer, latent_id_base: int):
        self._streamer = streamer
        self._latent_id_base = latent_id_base

    def put(self, value: torch.Tensor) -> None:
        rows = value if value.dim() > 1 else value[None]
        self._streamer.put(without_latent_ids(rows, self._latent_id_base).reshape(*value.shape[:-1], -1))

    def end(self) -> None:
        self._streamer.end()


class OrdinaryIdCandidates(CandidateGenerator):
    """
    Lets an assistant model draft for a sequence with latent ids, which it cannot read: it sees an ordinary token in
    their place. Drafts only cost speed when they are wrong; what is accepted is decided by the palette model.
    """

    def __init__(self, generator: AssistedCandidateGenerator, latent_id_base: int):
        self._generator = generator
        self._latent_id_base = latent_id_base

    def get_candidates(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        ordinary = with_ordinary_ids(input_ids, self._latent_id_base)
        candidates, logits = self._generator.get_candidates(ordinary, *args, **kwargs)
        drafted = candidates[:, input_ids.shape[1] :].to(input_ids.device)
        return torch.cat([input_ids, drafted], dim=1), logits

    def update_candidate_strategy(self, *args: Any, **kwargs: Any) -> Any:
        return self._generator.update_candidate_strategy(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_generator" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._generator, name)


class OrdinaryDrafts(CandidateGenerator):
    """Prompt look-up in the prompt without its latent ids, which can never be generated."""

    def __init__(self, generator: PromptLookupCandidateGenerator, latent_id_base: int, prefix_length: int):
        generator.max_length -= prefix_length
        self._generator = generator
        self._latent_id_base = latent_id_base

    def get_candidates(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        ordinary = without_latent_ids(input_ids, self._latent_id_base)
        candidates, logits = self._generator.get_candidates(ordinary, *args, **kwargs)
        return torch.cat([input_ids, candidates[:, ordinary.shape[1] :]], dim=1), logits

    def update_candidate_strategy(self, *args: Any, **kwargs: Any) -> Any:
        return self._generator.update_candidate_strategy(*args, **kwargs)

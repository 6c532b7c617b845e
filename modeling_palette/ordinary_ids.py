"""Keeps latent ids from what cannot read them: processors, criteria, streamers, assistants.

Each is handed the ids that the base would have had without a prefix, so whatever it counts, hashes or looks up is what
it is on the base.
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers.generation.candidate_generator import (
    AssistedCandidateGenerator,
    AssistedCandidateGeneratorDifferentTokenizers,
    CandidateGenerator,
    PromptLookupCandidateGenerator,
    UniversalSpeculativeDecodingGenerator,
)
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import (
    ConfidenceCriteria,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

# Generators that draft from the ids alone: with another model, or by looking up the prompt.
DRAFTS_ON_IDS = (
    AssistedCandidateGenerator,
    AssistedCandidateGeneratorDifferentTokenizers,
    PromptLookupCandidateGenerator,
    UniversalSpeculativeDecodingGenerator,
)
# Criteria that look at the last token, the clock, or a length that counts the prefix as well.
_READS_NO_PROMPT = (ConfidenceCriteria, EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria)


class OrdinaryIds:
    """
    The sequences of one call without their latent ids.

    Latent ids are never generated, so only the first columns hold some. Those columns are put in order once, and a
    step costs one concatenation and no synchronisation with the device. Rows with fewer ordinary tokens than others
    (a batch of prefixed and plain rows) are padded on the left.

    Args:
        latent_id_base (`int`): First latent id.
        pad (`int`): What pads.
    """

    def __init__(self, latent_id_base: int, pad: int = 0):
        self._latent_id_base = latent_id_base
        self._pad = pad
        self._num_rows = -1
        self._width = 0  # columns that hold latent ids
        self._order = self._head = torch.empty(0, 0, dtype=torch.int64)
        self.num_dropped = 0  # columns that the ordinary ids are shorter

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """
        Args:
            ids (`torch.Tensor` of shape `(N, S)`): Ids; always the same prompts, or the beams of them.

        Returns:
            `torch.Tensor` of shape `(N, S - num_dropped)`.
        """
        if not self.found_in(ids):
            return ids
        return torch.cat([self._head, ids[:, self._width :]], dim=1)

    def found_in(self, ids: torch.Tensor) -> bool:
        """Whether `ids`, of shape `(N, S)`, hold latent ids."""
        if self._num_rows != len(ids):
            self._look_at(ids)
        return self._width > 0

    def of_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask or types over the last `ids`, `(N, S)`, as they are over the ordinary ids; 0 at new pads."""
        head = mask[:, : self._width].masked_fill(self._is_latent, 0).gather(1, self._order)
        return torch.cat([head, mask[:, self._width :]], dim=1)

    def _look_at(self, ids: torch.Tensor) -> None:
        is_latent = ids >= self._latent_id_base
        columns = is_latent.any(0).nonzero()
        self._num_rows = len(ids)
        self._width = int(columns[-1]) + 1 if len(columns) else 0
        if not self._width:
            return
        self._is_latent = is_latent[:, : self._width]
        self.num_dropped = int(self._is_latent.sum(1).min())
        latent_first = self._is_latent.int().argsort(dim=1, descending=True, stable=True)
        self._order = latent_first[:, self.num_dropped :]
        self._head = ids[:, : self._width].masked_fill(self._is_latent, self._pad).gather(1, self._order)


class OrdinaryProcessorList(LogitsProcessorList):
    """Logits processors that see the ordinary ids."""

    def __init__(self, processors: Iterable[LogitsProcessor], ordinary: OrdinaryIds):
        super().__init__(processors)
        self._ordinary = ordinary

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return super().__call__(self._ordinary(input_ids), scores, **kwargs)


class OrdinaryCriteriaList(StoppingCriteriaList):
    """Stopping criteria that see the ordinary ids."""

    def __init__(self, criteria: Iterable[StoppingCriteria], ordinary: OrdinaryIds):
        super().__init__(criteria)
        self._ordinary = ordinary

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        is_done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criteria in self:
            ids = input_ids if type(criteria) in _READS_NO_PROMPT else self._ordinary(input_ids)
            is_done = is_done | criteria(ids, scores, **kwargs)
        return is_done


class PrefixFreeStreamer(BaseStreamer):
    """Hands a streamer the prompt without its latent ids."""

    def __init__(self, streamer: BaseStreamer, latent_id_base: int):
        self._streamer = streamer
        self._latent_id_base = latent_id_base

    def put(self, value: torch.Tensor) -> None:
        rows = value if value.dim() > 1 else value[None]
        ordinary = rows[rows < self._latent_id_base].reshape(len(rows), -1)
        self._streamer.put(ordinary.reshape(*value.shape[:-1], -1))

    def end(self) -> None:
        self._streamer.end()


def draft_on_ordinary_ids(generator: CandidateGenerator, ordinary: OrdinaryIds) -> None:
    """
    Let an assistant model, or a look-up in the prompt, draft for the ordinary ids: the one cannot read latent ids, the
    other would draft them. What is accepted is decided by the palette model.

    Args:
        generator (one of `DRAFTS_ON_IDS`): Built with the ordinary ids and lengths; changed in place, because
            transformers asks for its type.
        ordinary ([`OrdinaryIds`]): Of the one row that assisted decoding takes.
    """
    get_candidates = generator.get_candidates

    def get_candidates_for(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        without_prefix = ordinary(input_ids)
        candidates, logits = get_candidates(without_prefix, *args, **kwargs)
        drafted = candidates[:, without_prefix.shape[1] :].to(input_ids.device)
        return torch.cat([input_ids, drafted], dim=1), logits

    generator.get_candidates = get_candidates_for  # type: ignore[method-assign]

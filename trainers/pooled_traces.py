"""A dataset of pooled trace embeddings (METHOD eq. 5), held on disk: what the VAE is trained on."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

# Rows read at a time by what goes through the whole dataset.
CHUNK_SIZE = 8192
# A dimension that hardly varies is divided by this share of the mean deviation, so that rounding is not blown up.
MIN_RELATIVE_STD = 1e-3


class PooledTraces(Dataset):
    """
    Pooled embeddings of traces and their domains.

    The traces are read once, in chunks; their embeddings go to a temporary file that is mapped into memory, so that
    any number of traces fits.

    Args:
        traces (`Iterable[Mapping]`): Rows; see `trainers/traces.py`.
        pool_chunks (`Callable`): Maps an iterable of rows to an iterator of float32 tensors (n, H) or (n, G, H), in
            order.

    Attributes:
        domains (`list[str | None]`): The domain of each trace.
        embeddings (`np.memmap`): float32, shape (N, H), or (N, G, H) for G segments of each trace.
    """

    def __init__(
        self,
        traces: Iterable[Mapping[str, Any]],
        pool_chunks: Callable[[Iterator[Mapping[str, Any]]], Iterator[torch.Tensor]],
    ) -> None:
        self.domains: list[str | None] = []
        file = tempfile.TemporaryFile(prefix="pooled_traces_")  # noqa: SIM115 (lives as long as its memory map)
        shape: tuple[int, ...] = (0,)
        for chunk in pool_chunks(self._noting_domains(traces)):
            shape = tuple(chunk.shape[1:])
            file.write(chunk.numpy().tobytes())
        file.flush()
        self.embeddings = np.memmap(file, dtype=np.float32, mode="r+", shape=(len(self.domains), *shape))

    def _noting_domains(self, traces: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for number, row in enumerate(traces):
            domain = row.get("domain")
            if domain is not None and not (isinstance(domain, str) and domain.strip()):
                raise ValueError(
                    f"`domain` of row {number} must be a non-empty string, or None for a trace without one, got "
                    f"{domain!r}. Map the column to names."
                )
            self.domains.append(domain)
            yield row

    def __len__(self) -> int:
        return len(self.domains)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.embeddings[index].copy())

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        """A whole batch (B, H) or (B, G, H) in one read, as torch's fetcher prefers it."""
        return torch.from_numpy(self.embeddings[indices])

    def chunks(self, domain: str | None = None) -> Iterator[torch.Tensor]:
        """The embeddings (n, H) or (n, G, H) of a domain, or of all traces, in order."""
        for start in range(0, len(self), CHUNK_SIZE):
            rows = np.arange(start, min(start + CHUNK_SIZE, len(self)))
            if domain is not None:
                rows = rows[[self.domains[row] == domain for row in rows]]
            if len(rows):
                yield torch.from_numpy(self.embeddings[rows])

    def domain_counts(self) -> dict[str, int]:
        """Traces per domain, in order of appearance; traces without one are left out."""
        return dict(Counter(domain for domain in self.domains if domain is not None))

    def is_constant(self, domain: str) -> bool:
        """Whether all traces of a domain have the same embedding."""
        chunks = self.chunks(domain)
        first = next(chunks)
        return all(bool((chunk == first[0]).all()) for chunk in (first, *chunks))

    def mean_and_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mean and standard deviation of each dimension, over traces and segments, in two passes with float64 sums.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: float32, both of shape (H,).

        Raises:
            ValueError: If all embeddings are the same, or some are not finite.
        """
        count = self.embeddings.size // self.embeddings.shape[-1]
        chunks = (chunk.flatten(0, -2).double() for chunk in self.chunks())
        mean = torch.stack([chunk.sum(dim=0) for chunk in chunks]).sum(dim=0) / count
        squares = [(chunk.flatten(0, -2).double() - mean).square().sum(dim=0) for chunk in self.chunks()]
        std = (torch.stack(squares).sum(dim=0) / count).sqrt()
        if not bool(std.isfinite().all()):
            raise ValueError(
                "The pooled traces hold NaN or infinity: the base's input embedding is damaged, or was loaded in a "
                "dtype that its values overflow. Check the base's weights."
            )
        if std.max() <= torch.finfo(torch.float32).eps * mean.abs().max():
            raise ValueError(
                f"All {len(self)} traces have the same mean embedding, so there is nothing to learn. Give traces that "
                "differ."
            )
        return mean.float(), std.clamp_min(MIN_RELATIVE_STD * std.mean()).float()

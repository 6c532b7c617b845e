"""The order of prompts in each epoch, also after a resume."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler


class EpochOrder(Sampler):
    """
    TRL's [`~trl.trainer.utils.RepeatSampler`], whose order follows from the epoch alone.

    The sampler shuffles with a generator that goes on from epoch to epoch and is not saved: in TRL 1.16 a run that is
    resumed in its second epoch or later sees the order of the first one again, so some prompts twice and others not
    at all. Here each epoch starts from the seed and passes the epochs before it by, which gives an unbroken run the
    very order that it has with TRL.

    Args:
        sampler (`RepeatSampler`): TRL's sampler of training prompts.
        epoch (`Callable`): Returns the number of the epoch that begins, from 0.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]) -> None:
        self.sampler = sampler
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle and self.sampler.seed is not None:
            self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(self._epoch()):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)

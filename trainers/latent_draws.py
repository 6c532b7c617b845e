"""Random draws that depend on what they are for, and on nothing else.

A generator is made anew from its key: (seed, train or eval, global step, index among the draws of that step on all
processes). No state to save or to synchronise: one process and several ranks draw the same, whether the global batch
is split between ranks or into accumulation steps, and a resumed run draws what the unbroken one would have drawn.
Torch's global generator is never touched.
"""

import hashlib

import torch


def keyed_generator(*key: int | str) -> torch.Generator:
    """
    A CPU generator seeded by a key.

    Args:
        key (`int` or `str`): What the draw is for.

    Returns:
        `torch.Generator`
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)  # manual_seed takes 63 bits


class DrawCounter:
    """Counts the draws within a global step; starts over when the step or the mode changes."""

    def __init__(self) -> None:
        self._current: tuple[str, int] | None = None
        self._count = 0

    def take(self, mode: str, global_step: int, count: int) -> int:
        """
        Args:
            mode (`str`): `"train"` or `"eval"`.
            global_step (`int`): Optimizer steps done so far.
            count (`int`): Draws that are taken now, on all processes.

        Returns:
            `int`: The index of the first of them: how many were taken before, in a row, in the same mode and step.
        """
        if self._current != (mode, global_step):
            self._current, self._count = (mode, global_step), 0
        self._count += count
        return self._count - count

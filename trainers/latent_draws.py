"""Random draws that depend on what they are for, and on nothing else.

A generator is made anew from its key: (seed, train or eval, global step, k-th draw within the step, index in the
global batch). No state to save or to synchronise: one process and several ranks draw the same, and a resumed run draws
what the unbroken one would have drawn. Torch's global generator is never touched.
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
    """Counts the draws within a global step: k = 0, 1, ...; starts over when the step or the mode changes."""

    def __init__(self) -> None:
        self._current: tuple[str, int] | None = None
        self._count = 0

    def next(self, mode: str, global_step: int) -> int:
        """
        Args:
            mode (`str`): `"train"` or `"eval"`.
            global_step (`int`): Optimizer steps done so far.

        Returns:
            `int`: k, the number of earlier calls with the same mode and step in a row.
        """
        if self._current != (mode, global_step):
            self._current, self._count = (mode, global_step), 0
        self._count += 1
        return self._count - 1

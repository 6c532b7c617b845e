"""Which checkpoint to resume from, when the last one may be half-written.

transformers 5.24 writes a checkpoint straight into `checkpoint-N`: weights, optimizer, scheduler, random states, and
last `trainer_state.json`. Killed in the middle it leaves a *torn* folder, and `get_last_checkpoint`, which goes by
names, picks it: resuming fails at the missing file, at every restart again. With several processes the first may have
written that file before another its random state, which is then not restored, with no word of it at the default log
level; and where the folder was there before, the old file vouches for a mixture of old and new ones.

A checkpoint is whole when its `trainer_state.json` can be read: [`ResumeMixin`] removes an old one first, and has it
written when all processes have written all else.
"""

import json
import os
import re
from typing import Any

# transformers' names (`trainer_utils.PREFIX_CHECKPOINT_DIR`, `trainer.TRAINER_STATE_NAME`).
TRAINER_STATE = "trainer_state.json"
_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(folder: str) -> int | None:
    """The step in a checkpoint folder's name; `None` for other folders."""
    match = _CHECKPOINT_NAME.fullmatch(os.path.basename(os.path.normpath(folder)))
    return int(match.group(1)) if match else None


def trainer_state(checkpoint: str) -> dict[str, Any] | None:
    """
    Args:
        checkpoint (`str`): A checkpoint folder.

    Returns:
        `dict` or `None`: Its trainer state; `None` if it is missing or incomplete.
    """
    try:
        with open(os.path.join(checkpoint, TRAINER_STATE), encoding="utf-8") as file:
            state = json.load(file)
    except (OSError, ValueError):
        return None
    return state if "global_step" in state else None


def is_whole(checkpoint: str) -> bool:
    """Whether the trainer state of a checkpoint, which is written last, is there and complete."""
    return trainer_state(checkpoint) is not None


def last_whole_checkpoint(folder: str, before: int | None = None) -> str | None:
    """
    The last checkpoint that is not torn: what to resume from where transformers' `get_last_checkpoint` goes by names.

    Args:
        folder (`str`): The output folder of a run.
        before (`int`, *optional*): Look at checkpoints of earlier steps only.

    Returns:
        `str` or `None`: Its path; `None` if there is none.
    """
    if not os.path.isdir(folder):
        return None
    found = {step: name for name in os.listdir(folder) if (step := checkpoint_step(name)) is not None}
    for step in sorted(found, reverse=True):
        path = os.path.join(folder, found[step])
        if (before is None or step < before) and is_whole(path):
            return path
    return None

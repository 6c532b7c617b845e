"""Weights of checkpoints whose files name them otherwise than the model does.

transformers saves many families (Qwen2.5-VL, Gemma 3, mixtures of experts) under the names and in the pieces of their
first release, and converts them in `from_pretrained`. Its Trainer (5.24, huggingface/transformers#43701) does not: it
resumes with what has the same name, warns of the rest, and goes on from weights that were not trained.
"""

import json
import os
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def needs_conversion(model: Any, folder: str) -> bool:
    """Whether a checkpoint of a model holds weights under names that the model does not have."""
    if not isinstance(model, PreTrainedModel):
        return False
    names = _names_in(folder)
    return not names <= model.state_dict().keys()


def _names_in(folder: str) -> set[str]:
    index, weights = (os.path.join(folder, name) for name in (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME))
    if os.path.isfile(index):
        with open(index, encoding="utf-8") as file:
            return set(json.load(file)["weight_map"])
    if not os.path.isfile(weights):
        return set()
    with safe_open(weights, framework="pt") as file:
        return set(file.keys())


def load_converted(model: Any, folder: str) -> None:
    """
    Load a checkpoint's weights into a model by way of `from_pretrained`, which converts them.

    Args:
        model (`PreTrainedModel`): Keeps its place, dtype and tied weights.
        folder (`str`): A checkpoint of it.
    """
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())

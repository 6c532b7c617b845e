"""Tables beside the input embedding that are indexed by token id (Gemma 4): to them, a latent id is a pad."""

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_INSTALLED = "_reads_latent_ids_as_pad"


def per_layer_embeddings(model: Any) -> nn.Module | None:
    """The table of a model's per-layer embeddings, or `None`."""
    try:
        return model.get_per_layer_input_embeddings()
    except AttributeError:  # a family without, or one of its models that was configured without
        return None


def read_latent_ids_as_pad(table: nn.Module | None, id_base: int, pad_token_id: int | None) -> RemovableHandle | None:
    """
    Let a table give latent ids the row of the pad.

    A latent names a vector of the input embedding's output and nothing else. Gemma 4 itself reads the positions of
    images and sounds as pads in this table (transformers `Gemma4Model.forward`).

    Args:
        table (`nn.Module`, *optional*): Called with token ids as its one positional argument.
        id_base (`int`): The first latent id.
        pad_token_id (`int`, *optional*): The base's; 0 where it has none.

    Returns:
        The hook's handle; `None` without a table, or where the table does so already.
    """
    if table is None or hasattr(table, _INSTALLED):
        return None
    setattr(table, _INSTALLED, True)
    return table.register_forward_pre_hook(functools.partial(_with_pads, id_base=id_base, pad=pad_token_id or 0))


def _with_pads(module: nn.Module, args: tuple[torch.Tensor], id_base: int, pad: int) -> tuple[Any, ...]:
    return (args[0].masked_fill(args[0] >= id_base, pad), *args[1:])

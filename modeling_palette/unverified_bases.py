"""Bases that the conformance suite does not cover: do they read token ids through the input embedding alone?

A latent id stands for a vector of the input embedding's output. Where another part of a model reads ids (a second
table, a hash of n-grams, a range of ids for sounds), a prefix would be wrong without an error. So such a base runs
once: behind the same vectors, other ids must give the same logits.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .base_kinds import reads_images
from .latent_embedding import EmbeddingByKeywordError, called_with
from .per_layer_embeddings import per_layer_embeddings

# Of the change that other vectors make: in these sizes, what is left of it is rounding.
TOLERANCE = 1e-2
_OF_TOKENS = ("_token_id", "_token_index")


@torch.no_grad()
def check_unverified(base: PreTrainedModel, id_base: int) -> None:
    """
    Compare the logits of ten tokens whose middle ones have the same vectors, but other ids.

    Args:
        base (`PreTrainedModel`): A loaded base.
        id_base (`int`): The first latent id.

    Raises:
        ValueError: if the logits follow the ids, or do not follow the vectors, or if the input embedding is called by
            keyword.

    Warns:
        if the base cannot be run here: without weights, or because it needs more than token ids.
    """
    config = getattr(base.config, "base_config", base.config)  # of a palette that was loaded
    name = f"{getattr(base, 'base_class', type(base)).__name__} ({config.model_type!r})"
    ids = _ordinary_ids(base)
    reason = "its vocabulary is too small" if ids is None else _why_not_run(base)
    if ids is not None and reason is None:
        front, back, first, second, rows, others = ids
        latent = torch.arange(id_base, id_base + len(first), device=first.device)
        embedding = base.get_input_embeddings()
        try:
            vectors, moved = embedding(torch.stack([rows, others]))
            with evaluating(base):
                logits = _logits(base, (front, first, back), vectors, id_base)
                change = _apart(logits, _logits(base, (front, first, back), moved, id_base))
                apart = _apart(logits, _logits(base, (front, second, back), vectors, id_base))
        except EmbeddingByKeywordError as error:
            raise ValueError(f"A palette cannot be put on {name}: {error}") from error
        except Exception as error:
            reason = f"a forward pass with token ids alone fails ({type(error).__name__}: {error})"
    if reason is not None:
        warnings.warn(
            f"{name} is not among the families that the palette is verified on, and could not be checked: {reason}. "
            "Compare a prefix with the same vectors in `inputs_embeds` before you rely on it.",
            stacklevel=3,
        )
        return
    if not change > 0:
        raise ValueError(
            f"A palette cannot be put on {name}: what its input embedding gives does not reach its logits, so latents "
            "would have no effect. Use another base."
        )
    if not apart <= TOLERANCE * change:
        raise ValueError(
            f"A palette cannot be put on {name}: it reads token ids beside its input embedding (behind the same "
            f"vectors, other ids move its logits by {apart:.2g}, other vectors by {change:.2g}), so latent ids would "
            "give wrong results. Use another base."
        )
    # Last, because an id beyond a table ends a CUDA process.
    try:
        with evaluating(base):
            apart = _apart(logits, _logits(base, (front, latent, back), vectors, id_base))
    except Exception as error:
        raise ValueError(
            f"A palette cannot be put on {name}: it fails on ids beyond its vocabulary ({type(error).__name__}: "
            f"{error}). Use another base."
        ) from error
    if not apart <= TOLERANCE * change:
        raise ValueError(
            f"A palette cannot be put on {name}: ids beyond its vocabulary have a meaning to it (behind the same "
            f"vectors, they move its logits by {apart:.2g}, other vectors by {change:.2g}), so latent ids would give "
            "wrong results. Use another base."
        )
    if reads_images(type(config)):
        warnings.warn(
            f"{name} is not among the families that the palette is verified on. It was checked with text, but not "
            "with images: compare a prefix in front of an image with the same vectors in `inputs_embeds` before you "
            "rely on it.",
            stacklevel=3,
        )


def _ordinary_ids(base: PreTrainedModel) -> list[torch.Tensor] | None:
    """Three ids in front, four behind, and four times three in between; none of them is special."""
    config = base.config.get_text_config()
    outer = getattr(base.config, "base_config", base.config)  # names the placeholders of images
    named = [*vars(outer).items(), *vars(config).items()]
    special = {value for name, value in named if name.endswith(_OF_TOKENS) and isinstance(value, int)}
    size = min(getattr(config, "vocab_size", None) or 0, 10_000)  # of composite vocabularies, the text's part
    ordinary = [token for token in range(size) if token not in special]
    if len(ordinary) < 19:
        return None
    # far apart, so that tables that are coarser than ids tell them apart as well
    chosen = torch.tensor(ordinary, device=base.device)[torch.linspace(0, len(ordinary) - 1, 19).long()]
    return list(chosen.split([3, 4, 3, 3, 3, 3]))


def _why_not_run(base: PreTrainedModel) -> str | None:
    if any(hasattr(parameter, "ds_id") for parameter in base.parameters()):
        return "DeepSpeed ZeRO-3 holds its weights"
    if any(parameter.is_meta for parameter in base.parameters()) and not hasattr(base, "hf_device_map"):
        return "its weights are on the meta device"
    return None


def _logits(base: Any, ids: tuple[torch.Tensor, ...], vectors: torch.Tensor, id_base: int) -> torch.Tensor:
    """Logits of ids of which the middle ones get `vectors` for their rows, and are pads to per-layer embeddings."""
    front, middle, _ = map(len, ids)

    def in_the_middle(row: torch.Tensor, put: torch.Tensor) -> torch.Tensor:
        return torch.cat([row[:, :front], put, row[:, front + middle :]], 1)

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        row = called_with(args)
        return (row.masked_fill(row >= id_base, 0), *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return in_the_middle(output, vectors.to(output)[None])

    def pads(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (in_the_middle(args[0], args[0].new_full((1, middle), pad)), *args[1:])

    embedding, table = base.get_input_embeddings(), per_layer_embeddings(base)
    pad = base.config.get_text_config().pad_token_id or 0
    handles = [embedding.register_forward_pre_hook(before), embedding.register_forward_hook(after)]
    if table is not None:
        handles.append(table.register_forward_pre_hook(pads))
    try:
        return base(input_ids=torch.cat(ids)[None]).logits.float()
    finally:
        for handle in handles:
            handle.remove()


def _apart(logits: torch.Tensor, others: torch.Tensor) -> float:
    return float((logits - others).abs().max())


@contextmanager
def evaluating(base: nn.Module) -> Iterator[None]:
    """Evaluation mode in this block; behind it, each module is in the mode that it was in."""
    training = [module for module in base.modules() if module.training]
    base.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

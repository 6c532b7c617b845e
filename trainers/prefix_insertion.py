"""Puts a prefix of latent ids in front of every document of a collated language-modelling batch.

A *document* is a row's real tokens in a padded batch, or one of the sequences that a padding-free batch strings
together. Every per-token tensor grows with the prefix: the model attends to it and is never scored on it.

Shapes: B rows, S tokens, N documents, L prefix tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow.compute as pc
import torch
from datasets import Dataset

_LATENT, _PADDING = -1, -2
# What per-token tensors hold at prefix tokens and at padding; `None` for the padding token's id.
_FILL_VALUES: dict[str, tuple[int, int | None]] = {
    "input_ids": (0, None),
    "labels": (-100, -100),
    "attention_mask": (1, 0),
    "token_type_ids": (0, 0),
    "mm_token_type_ids": (0, 0),
}
_OF_IMAGES = ("pixel_", "image_", "video_", "num_", "spatial_")  # these hold rows of images or patches, not tokens
_RECOMPUTED = ("position_ids", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class Document(NamedTuple):
    """Where a document lies in `input_ids`."""

    row: int
    start: int
    length: int


def find_documents(batch: dict[str, Any]) -> list[Document]:
    """
    The documents of a batch, from its attention mask or, without one, from where its position ids start over.

    Documents of one token are left out: TRL's padding-free collator writes padding as such, and they carry no loss.

    Args:
        batch (`dict`): What TRL's collator returns: `input_ids` and `attention_mask` or `position_ids`, each (B, S).

    Returns:
        `list[Document]`: In the order of rows, then of starts.

    Raises:
        ValueError: If the batch has neither tensor, or an attention mask that is not (B, S) or has holes.
    """
    mask = batch.get("attention_mask")
    if mask is not None:
        if mask.shape != batch["input_ids"].shape:
            raise ValueError(
                f"`attention_mask` has shape {tuple(mask.shape)}, but a prefix can only be put into batches whose "
                f"mask has the shape of `input_ids`, {tuple(batch['input_ids'].shape)}. Use TRL's data collator."
            )
        documents = []
        for row, bits in enumerate(mask.bool().tolist()):
            length = sum(bits)
            start = bits.index(True) if length else 0
            if not all(bits[start : start + length]):
                raise ValueError(
                    f"`attention_mask` of row {row} has holes, so its tokens are not one document. Use "
                    "`padding_free=True` or packing for several documents in a row."
                )
            documents.append(Document(row, start, length))
    elif "position_ids" in batch:
        width = batch["input_ids"].shape[1]
        documents = []
        for row, positions in enumerate(batch["position_ids"].tolist()):
            starts = [index for index, position in enumerate(positions) if position == 0]
            documents += [
                Document(row, start, end - start) for start, end in zip(starts, [*starts[1:], width], strict=True)
            ]
    else:
        raise ValueError(
            "The batch has neither `attention_mask` nor `position_ids`, so its documents cannot be told apart. Use "
            "TRL's data collator."
        )
    return [document for document in documents if document.length > 1]


def longest_document(dataset: Any, limit: int) -> int:
    """
    The length in tokens of the longest document of at most `limit` tokens.

    Args:
        dataset (`Dataset` or `IterableDataset`): As TRL has prepared it, packed or not.
        limit (`int`): Longer documents do not count.

    Returns:
        `int`: 0 if there is none, if the rows hold no tokens, or for a stream, which is not read ahead.
    """
    columns = dataset.column_names if isinstance(dataset, Dataset) else []
    column = next((name for name in ("seq_lengths", "input_ids") if name in columns), None)
    if column is None:
        return 0
    longest = 0
    for batch in dataset.select_columns(column).with_format("arrow").iter(batch_size=1000):
        lists = batch[column]
        lengths = pc.list_flatten(lists) if column == "seq_lengths" else pc.list_value_length(lists)
        longest = max(longest, pc.max(pc.filter(lengths, pc.less_equal(lengths, limit))).as_py() or 0)
    return longest


def insert_prefixes(
    batch: dict[str, Any],
    documents: Sequence[Document],
    latent_ids: torch.Tensor,
    insert: Callable[[list[int], list[int]], list[int]],
    pad_token_id: int,
    pad_to_multiple_of: int | None = None,
) -> dict[str, Any]:
    """
    Inserts a prefix into each document.

    The prefix is attended to and has label -100. The first token of a document, which no model scores without a
    prefix, gets label -100 too, so that the loss is over the same tokens with and without one.

    Args:
        batch (`dict`): A collated batch; not changed.
        documents (sequence of [`Document`]): From [`find_documents`].
        latent_ids (`torch.Tensor` of shape `(N, L)`): Prefixes, in the order of `documents`.
        insert (`Callable`): The model's `insert_latent_ids(token ids, latent ids)`, which knows where a prefix goes.
        pad_token_id (`int`): For rows that come out shorter than others.
        pad_to_multiple_of (`int`, *optional*): Multiple of the new width.

    Returns:
        `dict`: The widened batch.

    Raises:
        ValueError: If the batch holds a per-token tensor that is not known here.
    """
    source = _source_columns(batch["input_ids"], documents, latent_ids, insert, pad_to_multiple_of)
    is_latent, is_padding = source == _LATENT, source == _PADDING
    columns = source.clamp(min=0)

    labels = batch["labels"].clone()
    for document in documents:
        labels[document.row, document.start] = -100

    widened: dict[str, Any] = {}
    for key, value in {**batch, "labels": labels}.items():
        if key in _RECOMPUTED:
            continue
        is_of_images = key.startswith(_OF_IMAGES)
        if not isinstance(value, torch.Tensor) or is_of_images or value.shape[:2] != labels.shape:
            widened[key] = value
            continue
        if key not in _FILL_VALUES or value.dim() != 2:
            raise ValueError(
                f"The batch holds the per-token tensor `{key}`, and it is not known what it should hold at the tokens "
                "of a prefix. Use TRL's data collator, or `num_prefix_tokens=0`."
            )
        at_latent, at_padding = _FILL_VALUES[key]
        value = value.gather(1, columns).masked_fill(is_latent, at_latent)
        widened[key] = value.masked_fill(is_padding, pad_token_id if at_padding is None else at_padding)
    widened["input_ids"][is_latent] = latent_ids.flatten().to(labels.device)
    if "position_ids" in batch:
        widened |= _recomputed(batch, documents, latent_ids.shape[1], source)
    return widened


def _source_columns(
    input_ids: torch.Tensor,
    documents: Sequence[Document],
    latent_ids: torch.Tensor,
    insert: Callable[[list[int], list[int]], list[int]],
    pad_to_multiple_of: int | None,
) -> torch.Tensor:
    """For each token of the widened batch (B, S'): its old column, `_LATENT` or `_PADDING`."""
    num_rows, width = input_ids.shape
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    taken = [0] * num_rows
    for document, prefix in zip(documents, latent_ids.tolist(), strict=True):
        tokens = input_ids[document.row, document.start : document.start + document.length].tolist()
        column = document.start + insert(tokens, prefix).index(prefix[0])
        rows[document.row] += [*range(taken[document.row], column), *[_LATENT] * len(prefix)]
        taken[document.row] = column
    for row, columns in enumerate(rows):
        columns += range(taken[row], width)
    multiple = pad_to_multiple_of or 1
    new_width = -(-max(map(len, rows)) // multiple) * multiple
    padded = [columns + [_PADDING] * (new_width - len(columns)) for columns in rows]
    return torch.tensor(padded, device=input_ids.device)


def _recomputed(
    batch: dict[str, Any], documents: Sequence[Document], prefix_length: int, source: torch.Tensor
) -> dict[str, Any]:
    """Position ids of the widened documents and, if the batch has them, the sequence boundaries that follow."""
    positions = torch.zeros_like(source)
    grown = [0] * source.shape[0]
    for document in documents:
        start = document.start + grown[document.row]
        length = document.length + prefix_length
        positions[document.row, start : start + length] = torch.arange(length, device=source.device)
        grown[document.row] += prefix_length
    recomputed: dict[str, Any] = {"position_ids": positions}
    if "cu_seq_lens_q" in batch:  # as in TRL 1.16's `DataCollatorForLanguageModeling`
        starts = (positions[0] == 0).nonzero().flatten()
        boundaries = torch.cat([starts, starts.new_tensor([positions.shape[1]])]).to(torch.int32)
        lengths = boundaries.diff()
        recomputed["cu_seq_lens_q"] = recomputed["cu_seq_lens_k"] = boundaries
        recomputed["max_length_q"] = recomputed["max_length_k"] = int(lengths.max())
        index = torch.arange(len(lengths), dtype=torch.int32, device=source.device)
        recomputed["seq_idx"] = torch.repeat_interleave(index, lengths)[None]
    return recomputed

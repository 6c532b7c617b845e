"""Pooled trace embeddings: the mean input embedding of question, reasoning and answer (METHOD eq. 5).

No forward pass of the model: a weighted embedding-bag over the distinct tokens of each trace, a block of columns at a
time. Reasoning text repeats itself (half of the tokens of GSM8K traces are repeats within their trace), and a block of
128 columns of the rows in use stays in the processor's cache; together they take about half the time of one
`embedding_bag` over all tokens (examples/benchmarks/pooling.json). Blocks are gathered in float32, so that sums of a
bfloat16 table do not lose their low bits.

Shapes: N traces, G segments of a trace, U distinct token ids, H hidden size of the base.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import nn

from .trace_images import ImageFeatures

# A trace: a row in one of the three formats, its text, or its token ids.
Trace: TypeAlias = Mapping[str, Any] | str | Sequence[int] | torch.Tensor | np.ndarray
TRACE_FORMATS = "`question` and `answer` (optionally `reasoning`), `prompt` and `completion`, or `messages`"
# A chunk ends at `batch_size` traces or here, whichever comes first: memory stays bounded for long traces too.
MAX_CHUNK_LENGTH = 1 << 22
# float32 columns gathered at a time. Measured from 64 to 1024 columns; 128 is best or near at every width and dtype.
BLOCK_COLUMNS = 128


def trace_text(row: Mapping[str, Any], name: str = "row") -> str:
    """
    The text of a trace, from a row in any of the three formats. The same trace gives the same tokens in each of them,
    up to the separators: no chat template is applied, because its fixed tokens would dilute the mean.

    Args:
        row (`Mapping[str, Any]`):
            `question` and `answer` with an optional `reasoning` (joined by newlines); or `prompt` and `completion`
            (joined as they are; each a string or a list of messages); or `messages`. Of a message's content the text
            counts; images are for [`ImageFeatures`].
        name (`str`, defaults to `"row"`): How errors name the row.

    Returns:
        `str`: Question, reasoning and answer.

    Raises:
        ValueError: If the row has none of the formats' columns.
        TypeError: If a column holds something else than text.
    """
    # Rows of sources in different formats, put together, have the columns of all, most of them None.
    if _has_columns(row, "question", "answer"):
        parts = {column: row.get(column) for column in ("question", "reasoning", "answer")}
        for column, value in parts.items():
            if value is not None and not isinstance(value, str):
                raise TypeError(f"`{column}` of {name} must be a string, got {type(value).__name__}: {value!r:.80}.")
        return "\n".join(value for value in parts.values() if value)
    if _has_columns(row, "prompt", "completion"):
        return _turns_text(row["prompt"], f"`prompt` of {name}") + _turns_text(
            row["completion"], f"`completion` of {name}", after_messages=not isinstance(row["prompt"], str)
        )
    if _has_columns(row, "messages"):
        return _turns_text(row["messages"], f"`messages` of {name}")
    raise ValueError(f"{name} is not a trace: it has the columns {sorted(row)}, but a trace has {TRACE_FORMATS}.")


def pool_traces(
    traces: Iterable[Trace],
    embedding: nn.Module | Callable[[torch.Tensor], torch.Tensor],
    tokenizer: Any = None,
    batch_size: int = 8192,
    ignored_ids: Collection[int] = (),
    image_features: ImageFeatures | None = None,
    num_segments: int = 1,
) -> torch.Tensor:
    r"""
    Mean input embeddings of traces (eq. 5): `h = mean_i E[(q;o)_i]`.

    Args:
        traces (`Iterable`):
            Rows (see [`trace_text`]), texts, or sequences of token ids. Read once, in chunks.
        embedding (`nn.Module` or `Callable`):
            The base's input embedding. Its *output* is pooled, so that modules which scale (Gemma's) are right.
        tokenizer (*optional*):
            The base's tokenizer, or a processor that has one. Not needed for token ids. Texts are tokenised without
            special tokens.
        batch_size (`int`, defaults to 8192):
            Traces per chunk. Traces that occur twice in a chunk are tokenised and pooled once.
        ignored_ids (`Collection[int]`, *optional*):
            Token ids that do not count: a vision-language base's [`placeholder_ids`], which no picture has replaced.
        image_features ([`ImageFeatures`], *optional*):
            Takes the images of rows in: the mean is over the text's tokens and the positions of the images. By default
            the text alone counts.
        num_segments (`int`, defaults to 1):
            G. Each trace is cut into G parts of as many tokens, which are pooled apart; a trace of fewer tokens than
            that has some of them in several parts.

    Returns:
        `torch.Tensor`: float32, shape (N, H), or (N, G, H) where G is more than 1; on the CPU, one row per trace in
        the order given.

    Raises:
        ValueError: If there are no traces, if some are empty (the error names their row numbers), if a row has the
            wrong columns, if a token id is not in the embedding, if `batch_size` or `num_segments` is below 1, if a
            text comes without a `tokenizer`, or if several segments are asked for with `image_features`.
        TypeError: If a trace is none of the above.
    """
    chunks = list(
        iter_pooled_traces(traces, embedding, tokenizer, batch_size, ignored_ids, image_features, num_segments)
    )
    if not chunks:
        raise ValueError("`traces` is empty: there is nothing to pool.")
    return torch.cat(chunks)


def iter_pooled_traces(
    traces: Iterable[Trace],
    embedding: nn.Module | Callable[[torch.Tensor], torch.Tensor],
    tokenizer: Any = None,
    batch_size: int = 8192,
    ignored_ids: Collection[int] = (),
    image_features: ImageFeatures | None = None,
    num_segments: int = 1,
) -> Iterator[torch.Tensor]:
    """
    [`pool_traces`], chunk by chunk: any number of traces in bounded memory.

    Yields:
        `torch.Tensor`: float32, shape (n, H) or (n, G, H), n at most `batch_size`.
    """
    if isinstance(traces, (str, bytes, Mapping)):
        raise TypeError(f"`traces` must be an iterable of traces, got one {type(traces).__name__}. Put it in a list.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if num_segments < 1:
        raise ValueError(f"`num_segments` must be at least 1, got {num_segments}.")
    if num_segments > 1 and image_features is not None:
        raise ValueError(
            f"`num_segments`={num_segments} cuts the text of traces, where their images have no place. Pool images "
            "with `num_segments`=1, or the text alone."
        )
    first_row, length = 0, 0
    chunk: list[str | tuple[int, ...]] = []
    images: dict[int, tuple[torch.Tensor, int]] = {}  # by their row in the chunk: sum and number of features
    for number, trace in enumerate(traces):
        features = None
        if image_features is not None and isinstance(trace, Mapping):
            features = image_features(trace, f"row {number}")
        if features is not None:
            images[len(chunk)] = features
        chunk.append(_canonical(trace, f"row {number}"))
        length += len(chunk[-1])
        if len(chunk) == batch_size or length >= MAX_CHUNK_LENGTH:
            yield _pool_chunk(chunk, first_row, embedding, tokenizer, ignored_ids, images, num_segments)
            first_row, length, chunk, images = number + 1, 0, [], {}
    if chunk:
        yield _pool_chunk(chunk, first_row, embedding, tokenizer, ignored_ids, images, num_segments)


@torch.no_grad()
def pool_token_ids(
    sequences: Sequence[Sequence[int]], embedding: nn.Module | Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    r"""
    Mean embedding of each of a few thousand sequences of token ids, in one go.

    Args:
        sequences (`Sequence[Sequence[int]]`): N sequences of token ids of any length, none empty.
        embedding (`nn.Module` or `Callable`): Maps ids (U,) to rows (U, H). See [`pool_traces`].

    Returns:
        `torch.Tensor`: float32, shape (N, H), on the CPU.

    Raises:
        ValueError: If a sequence is empty or a token id is not in the embedding.
    """
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    if not len(lengths) or not lengths.all():
        empty = _named_rows(np.flatnonzero(lengths == 0)) if len(lengths) else "no sequences"
        raise ValueError(f"`sequences` must hold token ids, got none: {empty}.")
    tokens = np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=int(lengths.sum()))
    num_ids = int(tokens.max()) + 1
    num_embeddings = getattr(embedding, "num_embeddings", num_ids)
    if tokens.min() < 0 or num_ids > num_embeddings:
        bad = int(tokens.min()) if tokens.min() < 0 else num_ids - 1
        raise ValueError(
            f"Token id {bad} is not in the base's input embedding, which has {num_embeddings} rows. Does the "
            "tokenizer belong to this base?"
        )

    # Distinct (trace, token) pairs, in the order of the traces, with their counts.
    pairs, counts = np.unique(np.repeat(np.arange(len(lengths)) * num_ids, lengths) + tokens, return_counts=True)
    trace_of_pair, token_of_pair = np.divmod(pairs, num_ids)
    offsets = np.searchsorted(trace_of_pair, np.arange(len(lengths)))
    used = np.zeros(num_ids, dtype=bool)
    used[token_of_pair] = True
    row_of_token = np.cumsum(used) - 1

    gather_columns, device, hidden_size = _row_gatherer(embedding, torch.from_numpy(np.flatnonzero(used)))
    bag_rows = torch.from_numpy(row_of_token[token_of_pair]).to(device)
    bag_offsets = torch.from_numpy(offsets).to(device)
    bag_weights = torch.from_numpy(counts.astype(np.float32)).to(device)
    pooled = torch.empty(len(lengths), hidden_size, dtype=torch.float32)
    for start in range(0, hidden_size, BLOCK_COLUMNS):
        columns = slice(start, start + BLOCK_COLUMNS)
        pooled[:, columns] = nn.functional.embedding_bag(
            bag_rows, gather_columns(columns), bag_offsets, mode="sum", per_sample_weights=bag_weights
        )
    return pooled.div_(torch.from_numpy(lengths)[:, None])


def _row_gatherer(
    embedding: nn.Module | Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor
) -> tuple[Callable[[slice], torch.Tensor], torch.device, int]:
    """A function from a slice of columns to the embedding's outputs for `ids` in float32; their device; H."""
    if _is_plain_table(embedding):
        # Gathering blocks from the table itself saves one copy of all rows. Hooks are passed by, which is right: the
        # palette's hook leaves ordinary ids alone and NEFTune's adds noise.
        table = embedding.weight.detach()
        ids = ids.to(table.device)
        return lambda columns: table[:, columns].index_select(0, ids).float(), table.device, table.shape[1]
    # Scaled, offloaded, sharded or quantised: only the module knows its output.
    parameter = next(embedding.parameters(), None) if isinstance(embedding, nn.Module) else None
    if isinstance(embedding, nn.Module) and hasattr(parameter, "full_tensor"):
        rows = _rows_of_sharded(embedding, ids)
    else:
        rows = embedding(ids if parameter is None or parameter.is_meta else ids.to(parameter.device))
    return lambda columns: rows[:, columns].float().contiguous(), rows.device, rows.shape[1]


def _rows_of_sharded(embedding: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """
    Output of an embedding whose table FSDP2 shards; every rank must ask for it, each for its own ids. The module may
    not be called for it: before the model has run once, FSDP takes it for the root ("requires a single root module").
    """
    shard = embedding._parameters["weight"]
    table = nn.Parameter(shard.full_tensor(), requires_grad=False)  # type: ignore[union-attr]
    embedding._parameters["weight"] = table
    try:
        return embedding.forward(ids.to(table.device))
    finally:
        embedding._parameters["weight"] = shard


def _is_plain_table(embedding: Any) -> TypeGuard[nn.Embedding]:
    """Whether the embedding's output is its table's rows. Accelerate's offloading sets `forward` on the instance;
    under ZeRO-3 the table is empty between forwards; tensor-parallel and quantised tables are tensor subclasses."""
    return (
        isinstance(embedding, nn.Embedding)
        and type(embedding).forward is nn.Embedding.forward
        and "forward" not in vars(embedding)
        and embedding.max_norm is None
        and type(embedding.weight) in (torch.Tensor, nn.Parameter)
        and not embedding.weight.is_meta
        and embedding.weight.numel() > 0
    )


def _pool_chunk(
    chunk: list[str | tuple[int, ...]],
    first_row: int,
    embedding: nn.Module | Callable[[torch.Tensor], torch.Tensor],
    tokenizer: Any,
    ignored_ids: Collection[int],
    images: Mapping[int, tuple[torch.Tensor, int]],
    num_segments: int,
) -> torch.Tensor:
    """Pool texts and token ids, each distinct one once. `first_row` is the number of the chunk's first trace."""
    distinct = {trace: index for index, trace in enumerate(dict.fromkeys(chunk))}
    sequences: list[Sequence[int]] = [()] * len(distinct)
    texts = [trace for trace in distinct if isinstance(trace, str)]
    if texts:
        if tokenizer is None:
            raise ValueError("`tokenizer` is None, but some traces are text. Pass the base's tokenizer, or token ids.")
        tokenize = getattr(tokenizer, "tokenizer", tokenizer)
        encoded = tokenize(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        for text, ids in zip(texts, encoded["input_ids"], strict=True):
            sequences[distinct[text]] = ids
    for trace, index in distinct.items():
        if not isinstance(trace, str):
            sequences[index] = trace
    if ignored_ids:
        ignored = frozenset(ignored_ids)
        sequences = [[token for token in ids if token not in ignored] for ids in sequences]
    index_of_row = [distinct[trace] for trace in chunk]
    empty = [first_row + row for row, index in enumerate(index_of_row) if not len(sequences[index])]
    if empty:
        raise ValueError(
            f"{len(empty)} traces have no tokens to pool: {_named_rows(empty)}. Drop them, or fill their question and "
            "answer."
        )
    if num_segments > 1:
        parts = [part for ids in sequences for part in _segments(ids, num_segments)]
        pooled = pool_token_ids(parts, embedding).unflatten(0, (len(sequences), num_segments))
    else:
        pooled = pool_token_ids(sequences, embedding)
    pooled = pooled if len(distinct) == len(chunk) else pooled[index_of_row]
    for row, (total, count) in images.items():
        num_tokens = len(sequences[index_of_row[row]])
        pooled[row] = (pooled[row] * num_tokens + total) / (num_tokens + count)
    return pooled


def _segments(ids: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    """A sequence in so many parts, none of them empty."""
    bounds = [part * len(ids) // count for part in range(count + 1)]
    for start, end in pairwise(bounds):
        yield ids[start : max(end, start + 1)]


def _canonical(trace: Trace, name: str) -> str | tuple[int, ...]:
    """The trace's text or its token ids, hashable."""
    if isinstance(trace, str):
        return trace
    if isinstance(trace, Mapping):
        return trace_text(trace, name)
    if isinstance(trace, (torch.Tensor, np.ndarray)):
        trace = trace.tolist()
    if isinstance(trace, (list, tuple)) and all(isinstance(token, (int, np.integer)) for token in trace):
        return tuple(trace)
    raise TypeError(
        f"{name} is not a trace: got {type(trace).__name__} {trace!r:.80}, expected a dictionary with "
        f"{TRACE_FORMATS}, a string, or a sequence of token ids."
    )


def _has_columns(row: Mapping[str, Any], *columns: str) -> bool:
    """Whether the row has these columns and something in one of them."""
    return all(column in row for column in columns) and any(row[column] is not None for column in columns)


def _turns_text(turns: Any, name: str, after_messages: bool = False) -> str:
    """The text of a string, of None, or of a list of messages."""
    if turns is None or isinstance(turns, str):
        return turns or ""
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
        raise TypeError(f"{name} must be a string or a list of messages, got {type(turns).__name__}: {turns!r:.80}.")
    texts = []
    for turn in turns:
        # Reasoning of a message, where chat templates of reasoning models look for it.
        texts += [turn.get("reasoning_content") or "", _content_text(turn.get("content"), name)]
    joined = "\n".join(text for text in texts if text)
    return "\n" + joined if after_messages and joined else joined


def _content_text(content: Any, name: str) -> str:
    """The text of a message's content: a string, None (tool calls), or a list of typed parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, (list, tuple)) and all(isinstance(part, Mapping) for part in content):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    raise TypeError(f"A message's content in {name} must be a string or a list of parts, got {content!r:.80}.")


def _named_rows(rows: Sequence[int] | np.ndarray, limit: int = 10) -> str:
    """`rows 0, 3, 7 and 5 more`."""
    named = ", ".join(str(row) for row in rows[:limit])
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"row{'s' if len(rows) > 1 else ''} {named}{more}"

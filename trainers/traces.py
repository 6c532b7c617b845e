"""Traces from wherever they are: what the VAE is trained on, as one dataset with known columns."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)

TraceSource: TypeAlias = str | os.PathLike | Dataset | IterableDataset | Sequence[Any]

TRACE_COLUMNS = ("question", "reasoning", "answer", "prompt", "completion", "messages", "domain")
IMAGE_COLUMNS = ("image", "images")
_REQUIRED_COLUMNS = (("question", "answer"), ("prompt", "completion"), ("messages",))
_FORMATS = "`question` and `answer` (optionally `reasoning`), `prompt` and `completion`, or `messages`"
_BUILDERS = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet"}


def load_traces(
    source: TraceSource,
    split: str | None = None,
    domain: str | None = None,
    streaming: bool = False,
    keep_images: bool = False,
) -> Dataset | IterableDataset:
    """
    Load traces and check their columns.

    Args:
        source (`str`, `os.PathLike`, `Dataset`, `IterableDataset` or a sequence):
            A JSON-lines file (plain or gzip), a Parquet file, a folder written by `save_to_disk`, a Hub id (with a
            configuration: `"openai/gsm8k:main"`), a dataset, a list of rows, or a list of any of these, which are put
            one after the other.
        split (`str`, *optional*):
            Split of what is loaded by name, `"train"` if not given. Slices such as `"train[:5000]"` work.
        domain (`str`, *optional*): Domain of all the traces, in place of what their `domain` column says, if anything.
        streaming (`bool`, defaults to `False`): Return an `IterableDataset`: nothing is held in memory or cached.
        keep_images (`bool`, defaults to `False`): Keep the columns `image` and `images` too.

    Returns:
        `Dataset` or `IterableDataset`: The traces with their trace columns alone: `question`, `reasoning`, `answer`;
        `prompt`, `completion`; `messages`; and `domain`.

    Raises:
        FileNotFoundError: If `source` looks like a file and is none.
        TypeError: If `source` is of another type.
        ValueError: If the columns are not those of traces, if there is no row, if a dataset has no such split, or if
            `split` is given for a `source` that is already loaded.
    """
    if isinstance(source, Sequence) and not isinstance(source, str):
        if source and not isinstance(source[0], Mapping):
            return concatenate_datasets([load_traces(part, split, domain, streaming, keep_images) for part in source])
        dataset, described = _dataset_of_rows(source, keep_images), "the list of rows"
    elif isinstance(source, (str, os.PathLike)):
        dataset, described = load_by_name(os.fspath(source), split or "train", streaming), f"{source!s}"
        split = None
    elif isinstance(source, (Dataset, IterableDataset)):
        dataset, described = source, "the dataset"
    elif isinstance(source, (DatasetDict, IterableDatasetDict)):
        raise TypeError(
            f"`source` has the splits {list(source)}; pass one of them, such as source[{next(iter(source))!r}]."
        )
    else:
        raise TypeError(
            f"`source` must be a path, a Hub id, a dataset, a list of rows or a list of these, got "
            f"{type(source).__name__}."
        )
    if split is not None:
        raise ValueError(f"`split` is {split!r}, but {described} is already loaded: select its split yourself.")

    columns = _checked_columns(dataset, described)
    dataset = dataset.select_columns([column for column in _kept_columns(keep_images) if column in columns])
    if domain is not None:
        dataset = dataset.remove_columns("domain") if "domain" in columns else dataset
        dataset = _with_domain(dataset, domain)
    return dataset.to_iterable_dataset() if streaming and isinstance(dataset, Dataset) else dataset


def load_by_name(source: str, split: str, streaming: bool) -> Dataset | IterableDataset:
    """A file, a folder of `save_to_disk`, or a Hub dataset."""
    if os.path.isdir(source):
        dataset = load_from_disk(source)
        if isinstance(dataset, DatasetDict):
            if split not in dataset:
                raise ValueError(f"`split` must be one of {list(dataset)} for {source}, got {split!r}.")
            dataset = dataset[split]
        return dataset
    suffix = os.path.splitext(source.removesuffix(".gz"))[1]
    if os.path.isfile(source) or source.endswith(".gz") or suffix in _BUILDERS:
        if not os.path.isfile(source):
            raise FileNotFoundError(f"`source` is {source!r}, but there is no such file.")
        if suffix not in _BUILDERS:
            raise ValueError(
                f"`source` is a file that ends in {suffix!r}; traces are read from {', '.join(_BUILDERS)}, also with "
                ".gz at the end."
            )
        return load_dataset(_BUILDERS[suffix], data_files=source, split=split, streaming=streaming)
    hub_id, _, configuration = source.partition(":")
    return load_dataset(hub_id, configuration or None, split=split, streaming=streaming)


def _kept_columns(keep_images: bool) -> tuple[str, ...]:
    return TRACE_COLUMNS + IMAGE_COLUMNS if keep_images else TRACE_COLUMNS


def _dataset_of_rows(rows: Sequence[Any], keep_images: bool) -> Dataset:
    """A dataset of all the trace columns of the rows; of the first row's columns if none has a trace column."""
    columns = [column for column in _kept_columns(keep_images) if any(column in row for row in rows)]
    columns = columns or [column for row in rows[:1] for column in row]
    return Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})


def _checked_columns(dataset: Dataset | IterableDataset, described: str) -> list[str]:
    """The columns, if they are those of traces and there is a row."""
    columns = dataset.column_names
    if isinstance(dataset, IterableDataset):
        first_row = next(iter(dataset), None)
        if columns is None and first_row is not None:
            columns = list(first_row)
        empty = first_row is None
    else:
        empty = len(dataset) == 0
    if empty:
        raise ValueError(f"There are no traces in {described}: the dataset is empty.")
    if not any(set(required) <= set(columns) for required in _REQUIRED_COLUMNS):
        raise ValueError(
            f"No traces in {described}: found the columns {sorted(columns)}, but traces have {_FORMATS}. Rename the "
            "columns, for example dataset.rename_column('response', 'answer')."
        )
    return columns


def _with_domain(dataset: Dataset | IterableDataset, domain: str) -> Dataset | IterableDataset:
    """The dataset with a constant `domain` column."""
    if isinstance(dataset, Dataset):
        return dataset.add_column("domain", [domain] * len(dataset))
    return dataset.map(lambda row: {"domain": domain})

"""Times the pooling of traces against their tokenisation, and measures its error against a float64 reference.

Trains a 32k BPE tokenizer on the traces, then alternates tokenisation, our pooling and one plain `embedding_bag` over
all tokens in one process, for several widths and dtypes; medians over repetitions, and the fastest of them, which a
busy machine disturbs less. Embeddings are random with standard deviation 1. Needs about 3 GiB of memory:

    python examples/benchmarks/pooling.py --traces gsm8k_train.jsonl.gz mbpp.jsonl.gz csqa_train.jsonl.gz

It leaves out reading the files and the forward pass that pooling does not need.
"""

import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import HfArgumentParser, PreTrainedTokenizerFast

from reasoning_palette.modeling_palette.trace_pooling import pool_token_ids, trace_text
from reasoning_palette.trainers.traces import load_traces

NUM_REFERENCE_TRACES = 1000


@dataclass
class PoolingArguments:
    """What to time."""

    traces: list[str] = field(metadata={"help": "Trace files or Hub ids."})
    num_traces: int = field(default=10_000, metadata={"help": "Traces to take, the first ones."})
    vocab_size: int = field(default=32_000, metadata={"help": "Size of the BPE vocabulary."})
    hidden_sizes: list[int] = field(default_factory=lambda: [1024, 2560, 4096], metadata={"help": "Widths H."})
    repetitions: int = field(default=5, metadata={"help": "Timings per entry, of which the median counts."})
    threads: int = field(default=1, metadata={"help": "Threads of torch and of the tokenizer."})
    output: str = field(default="examples/benchmarks/pooling.json", metadata={"help": "The result."})


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def plain_embedding_bag(sequences: list[list[int]], table: torch.Tensor) -> torch.Tensor:
    """One embedding-bag over all tokens: what pooling would be without its measures."""
    tokens = torch.tensor(list(itertools.chain.from_iterable(sequences)))
    offsets = torch.tensor([0, *itertools.accumulate(map(len, sequences[:-1]))])
    return nn.functional.embedding_bag(tokens, table, offsets, mode="mean")


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, hidden_size: int, dtype: torch.dtype, repetitions: int
) -> dict[str, Any]:
    """One row of the result: medians in seconds, shares of tokenisation, largest errors."""

    def tokenize() -> list[list[int]]:
        return tokenizer(texts, return_attention_mask=False, return_token_type_ids=False)["input_ids"]

    embedding = nn.Embedding(len(tokenizer), hidden_size, dtype=dtype)
    sequences = tokenize()
    functions: dict[str, Callable[[], Any]] = {
        "tokenisation": tokenize,
        "pooling": lambda: pool_token_ids(sequences, embedding),
        "plain_embedding_bag": lambda: plain_embedding_bag(sequences, embedding.weight.detach()),
    }
    timings: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            timings[name].append(seconds(function))
    medians = {name: statistics.median(values) for name, values in timings.items()}
    fastest = {name: min(values) for name, values in timings.items()}

    some = sequences[:NUM_REFERENCE_TRACES]
    table = embedding.weight.detach()
    reference = torch.stack([table[torch.tensor(ids)].double().mean(dim=0) for ids in some])
    errors = {
        "pooling": (pool_token_ids(some, embedding) - reference).abs().max().item(),
        "plain_embedding_bag": (plain_embedding_bag(some, table) - reference).abs().max().item(),
    }
    return {
        "hidden_size": hidden_size,
        "dtype": str(dtype).removeprefix("torch."),
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "share_of_tokenisation": {name: round(medians[name] / medians["tokenisation"], 4) for name in errors},
        "share_of_tokenisation_fastest": {name: round(fastest[name] / fastest["tokenisation"], 4) for name in errors},
        "max_error_against_float64": {name: float(f"{value:.2g}") for name, value in errors.items()},
    }


def main(args: PoolingArguments) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = str(args.threads > 1).lower()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = itertools.islice(load_traces(args.traces), args.num_traces)
    texts = [trace_text(row) for row in rows]
    tokenizer = train_tokenizer(texts, args.vocab_size)
    sequences = tokenizer(texts)["input_ids"]
    result: dict[str, Any] = {
        "traces": [Path(source).name for source in args.traces],
        "num_traces": len(texts),
        "tokens": sum(map(len, sequences)),
        "vocabulary": len(tokenizer),
        "distinct_tokens_per_trace": round(sum(len(set(ids)) for ids in sequences) / sum(map(len, sequences)), 3),
        "repetitions": args.repetitions,
        "threads": args.threads,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "rows": [],
    }
    print(f"{'H':>5} {'dtype':<9} {'pooling / tokenisation':>23} {'plain':>7} {'max error':>10} {'plain':>8}")
    for hidden_size in args.hidden_sizes:
        for dtype in (torch.float32, torch.bfloat16):
            row = measure(texts, tokenizer, hidden_size, dtype, args.repetitions)
            result["rows"].append(row)
            share, error = row["share_of_tokenisation"], row["max_error_against_float64"]
            print(
                f"{hidden_size:>5} {row['dtype']:<9} {share['pooling']:>23.3f} {share['plain_embedding_bag']:>7.3f} "
                f"{error['pooling']:>10.1e} {error['plain_embedding_bag']:>8.1e}",
                flush=True,
            )
    Path(args.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(HfArgumentParser(PoolingArguments).parse_args_into_dataclasses()[0])

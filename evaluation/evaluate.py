"""Runs several methods on one benchmark with the same sample budget."""

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .benchmark import Benchmark
from .method import Method, complete, draw_codes
from .progress_file import ProgressFile, describe_prompts, describe_weights
from .prompt_encoding import padding_token_id
from .result import EvaluationResult, MethodResult, compare_with_first, describe_environment
from .scoring import score_samples


def evaluate_palette(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    benchmark: Benchmark,
    methods: Sequence[Method],
    num_samples: int = 8,
    max_new_tokens: int = 64,
    batch_size: int = 256,
    seed: int = 0,
    disable_progress_bar: bool = False,
    keep_completions: bool = False,
    progress_file: str | os.PathLike | None = None,
) -> EvaluationResult:
    """Draws the samples of every method, grades and labels them.

    A method whose samples are all the same (greedy decoding without a prefix) is run once per problem and counted
    `num_samples` times, so its pass@k equals its pass@1.

    Args:
        model (`PreTrainedModel`): A causal or vision-language LM; with a palette where a method asks for one.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): Its tokenizer or processor, with a padding token. A
            processor where the benchmark's prompts have images.
        benchmark (`Benchmark`): Problems and their grader.
        methods (`Sequence[Method]`): The rows of the table.
        num_samples (`int`, *optional*, defaults to 8): Samples per problem and method.
        max_new_tokens (`int`, *optional*, defaults to 64): Longest completion, in tokens.
        batch_size (`int`, *optional*, defaults to 256): Largest number of sequences that are generated together. The
            random draws depend on it.
        seed (`int`, *optional*, defaults to 0): Seed of latents, soft prompts and sampled tokens; every method starts
            from it.
        disable_progress_bar (`bool`, *optional*, defaults to `False`): Hides the progress bar.
        keep_completions (`bool`, *optional*, defaults to `False`): Keeps all texts in the result, to look at them.
        progress_file (`str` or `os.PathLike`, *optional*): JSON-lines that every finished batch is added to. Where the
            file is there, of a run with the same settings, its batches are not generated again: a run that was killed
            goes on, and ends in the same result, its `seconds` being those of both parts.

    Returns:
        `EvaluationResult`: Figures per method; `save(path)` writes them as JSON, `to_table()` as text.

    Raises:
        ValueError: If there are no problems or methods, two methods share a name, `num_samples` or `batch_size` is
            below 1, the tokenizer has no padding token, a method asks for a palette or a domain that the model does
            not have, or `progress_file` is of another run.
    """
    _check(model, tokenizer, benchmark, methods, num_samples, batch_size)
    was_training = model.training
    model.eval()
    name = getattr(model, "name_or_path", "") or type(model).__name__
    progress_record = None
    if progress_file is not None:
        settings = {
            "model": name,
            "weights": describe_weights(model),
            "benchmark": benchmark.name,
            "prompts": describe_prompts([benchmark.prompt(problem) for problem in benchmark.problems]),
            "num_samples": num_samples,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "seed": seed,
        }
        progress_record = ProgressFile(progress_file, settings)
    total = len(methods) * len(benchmark.problems)
    try:
        with tqdm(total=total, desc=benchmark.name, unit="problem", disable=disable_progress_bar) as progress:
            results = []
            for method in methods:
                progress.set_postfix_str(method.name)
                results.append(
                    _run(
                        model,
                        tokenizer,
                        benchmark,
                        method,
                        num_samples,
                        max_new_tokens,
                        batch_size,
                        seed,
                        progress,
                        keep_completions,
                        progress_record,
                    )
                )
    finally:
        model.train(was_training)
    return EvaluationResult(
        model=name,
        benchmark=benchmark.name,
        num_problems=len(benchmark.problems),
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        seed=seed,
        methods=results,
        environment=describe_environment(),
        batch_size=batch_size,
        comparisons=compare_with_first(results, num_samples),
    )


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    benchmark: Benchmark,
    method: Method,
    num_samples: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    progress: Any,
    keep_completions: bool,
    progress_record: ProgressFile | None,
) -> MethodResult:
    drawn = 1 if method.deterministic else num_samples
    batches = torch.arange(len(benchmark.problems)).split(max(1, batch_size // drawn))
    # A seed of its own for every batch: the same one would hand the same latents to every batch.
    seeds = torch.randint(2**31, (len(batches),), generator=torch.Generator().manual_seed(seed)).tolist()
    texts: list[list[str]] = []
    codes: list[list[int]] = []
    generated_tokens, seconds = 0, 0.0
    shared = draw_codes(model, method, num_samples, seed)
    for batch, (indices, batch_seed) in enumerate(zip(batches, seeds, strict=True)):
        found = progress_record.load(method, batch) if progress_record else None
        if found is None:
            start = time.perf_counter()
            prompts = [benchmark.prompt(benchmark.problems[index]) for index in indices.tolist()]
            completions = complete(
                model, tokenizer, prompts, method, drawn, max_new_tokens=max_new_tokens, seed=batch_seed, codes=shared
            )
            found = completions, time.perf_counter() - start
            if progress_record:
                progress_record.save(method, batch, *found)
        completions = found[0]
        seconds += found[1]
        generated_tokens += sum(completions.num_tokens)
        for row in range(len(indices)):
            samples = slice(row * drawn, (row + 1) * drawn)
            texts.append(completions.texts[samples] * (num_samples // drawn))
            if completions.latent_codes is not None:
                codes.append(completions.latent_codes[samples])
        progress.update(len(indices))
    return score_samples(benchmark, method, texts, codes or None, generated_tokens, seconds, keep_completions)


def _check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    benchmark: Benchmark,
    methods: Sequence[Method],
    num_samples: int,
    batch_size: int,
) -> None:
    if not benchmark.problems:
        raise ValueError(f"`benchmark` {benchmark.name!r} has no problems.")
    if not methods:
        raise ValueError("`methods` is empty; give at least one `Method`.")
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"`methods` are named {names}; give every method a name of its own.")
    for argument, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{argument}` is {value}; it must be at least 1.")
    if padding_token_id(tokenizer) is None:
        raise ValueError(
            "`tokenizer` has no padding token; set one, for example `tokenizer.pad_token = tokenizer.eos_token`."
        )
    palette = getattr(model, "palette", None)
    for method in methods:
        if method.prefix != "palette":
            continue
        if palette is None:
            raise ValueError(
                f"Method {method.name!r} asks for a palette, but `model` has none; wrap the base with "
                "`PaletteForCausalLM.from_base(base, palette=...)`, or `PaletteForVision2Seq`."
            )
        if method.domain is not None and method.domain not in palette.domains:
            raise ValueError(
                f"Method {method.name!r} asks for the domain {method.domain!r}, but the palette knows "
                f"{sorted(palette.domains)}; add it with `model.add_domain`."
            )

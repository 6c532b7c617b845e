"""Trains the base model of the demo from nothing: a 0.8M-parameter Qwen3 on generated countdown traces.

The documents hold one to three worked examples in one strategy, now and then with stray words of that strategy in
front. That is what makes the model responsive: it has learned that what stands before a question tells the style of
what follows. It prints greedy and sampled quality on the validation split and writes weights, tokenizer and a
`recipe.json`. Ten to fifteen minutes on one core:

    python examples/01_train_base.py --output_dir demo_output/base

With `--traces` (files of JSON-lines, plain or gzip, Parquet, or Hub ids) it makes a BPE tokenizer from those texts and
trains a small base on them instead; no quality beyond the loss is measured then:

    python examples/01_train_base.py --traces gsm8k.jsonl.gz mbpp.jsonl.gz --output_dir real_output/base

It leaves out what a real pretraining run needs: distribution, evaluation during training, checkpoints.
"""

import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import HfArgumentParser, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from reasoning_palette.evaluation import Method, countdown_benchmark, evaluate_palette
from reasoning_palette.evaluation.countdown import STRATEGIES, Context, draw_contexts
from reasoning_palette.evaluation.countdown_tokenizer import EOS, PAD, build_tokenizer


@dataclass
class BaseArguments:
    """Model and recipe. The defaults are those of the shipped weights."""

    output_dir: str = field(default="demo_output/base", metadata={"help": "Folder for weights and tokenizer."})
    traces: list[str] | None = field(default=None, metadata={"help": "Trace files or Hub ids instead of countdown."})
    hidden_size: int = field(default=128, metadata={"help": "Hidden size H."})
    num_layers: int = field(default=4, metadata={"help": "Transformer layers."})
    vocab_size: int = field(default=4096, metadata={"help": "Size of the BPE vocabulary (with `--traces` only)."})
    max_length: int = field(default=256, metadata={"help": "Tokens after which a document is cut."})
    max_steps: int = field(default=6000, metadata={"help": "Optimiser steps."})
    tokens_per_batch: int = field(default=1024, metadata={"help": "Tokens of a batch, padding included."})
    learning_rate: float = field(default=5e-3, metadata={"help": "Peak of the cosine schedule."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps of linear warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's decoupled weight decay."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights, the documents and their order."})


def countdown_documents(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[list[int]]:
    """Endless token lists of style-coherent contexts; every worked example ends in EOS."""

    def text(context: Context) -> str:
        examples = [
            f"{row['question']} {row['reasoning']} {row['answer']} {tokenizer.eos_token}" for row in context.traces
        ]
        return " ".join([*context.stray_words, *examples])

    for context in draw_contexts(seed):
        yield tokenizer(text(context)).input_ids


def trace_texts(sources: list[str]) -> list[str]:
    """The texts of trace files or Hub ids: question, reasoning and answer."""
    # The countdown path needs neither `datasets` nor the trainers.
    from reasoning_palette.modeling_palette.trace_pooling import trace_text
    from reasoning_palette.trainers.traces import load_traces

    return [trace_text(row) for source in sources for row in load_traces(source)]


def train_bpe(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, so that no character of any text is unknown; it pads on the left."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, padding_side="left")


def text_documents(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, max_length: int, seed: int
) -> Iterator[list[int]]:
    """Endless token lists of the texts, reshuffled in every pass, each ending in EOS and cut at `max_length`."""
    generator = random.Random(seed)
    documents = [[*ids, tokenizer.eos_token_id][:max_length] for ids in tokenizer(texts).input_ids]
    while True:
        generator.shuffle(documents)
        yield from documents


def batches(documents: Iterator[list[int]], tokens_per_batch: int, seed: int) -> Iterator[list[list[int]]]:
    """Groups documents of similar length, so that little of a batch is padding, and shuffles the groups."""
    generator = random.Random(seed)
    while pool := sorted(itertools.islice(documents, 4096), key=len):
        groups: list[list[list[int]]] = [[]]
        for document in pool:
            if len(document) * (len(groups[-1]) + 1) > tokens_per_batch and groups[-1]:
                groups.append([])
            groups[-1].append(document)
        generator.shuffle(groups)
        yield from groups


def train(model: Qwen3ForCausalLM, documents: Iterator[list[int]], args: BaseArguments) -> float:
    """Next-token training with AdamW, warm-up and a cosine to zero; returns the mean loss of the last tenth."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": args.weight_decay}, {"params": other, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / args.warmup_steps,
            0.5 * (1 + math.cos(math.pi * step / args.max_steps)),
        ),
    )
    model.train()
    losses: list[float] = []
    progress = tqdm(range(args.max_steps), desc="base", unit="step", mininterval=1.0)
    for _, batch in zip(progress, batches(documents, args.tokens_per_batch, args.seed), strict=False):
        longest = max(map(len, batch))
        # Right padding: causal attention never looks at it, so no mask is needed and the fast kernel is used.
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in batch])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        progress.set_postfix(refresh=False, loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}")
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def build_model(tokenizer: PreTrainedTokenizerFast, args: BaseArguments) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights and tied embeddings."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            intermediate_size=args.hidden_size * 8 // 3,
            num_hidden_layers=args.num_layers,
            num_attention_heads=args.hidden_size // 32,
            num_key_value_heads=args.hidden_size // 32,
            head_dim=32,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            initializer_range=args.hidden_size**-0.5,  # fan-in: the stock 0.02 is made for widths in the thousands
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def measure(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, num_problems: int = 200) -> dict[str, Any]:
    """Quality on the validation split, and how far one style word before the question decides the strategy."""
    benchmark = countdown_benchmark("validation", num_problems)
    methods = [Method("greedy"), Method("sampling, T = 1", temperature=1.0)]
    result = evaluate_palette(model, tokenizer, benchmark, methods, num_samples=8)
    print(result.to_table())
    followed = {}
    for name, strategy in STRATEGIES.items():
        worded = replace(benchmark, prompt=lambda problem, word=strategy.word: f"{word} {problem.question}")
        answers = evaluate_palette(model, tokenizer, worded, methods[:1], num_samples=1, disable_progress_bar=True)
        followed[name] = answers["greedy"].strategies[name]
    greedy, sampling = result["greedy"], result["sampling, T = 1"]
    return {
        "validation_problems": num_problems,
        "greedy_pass@1": greedy.mean_at_1,
        "sampled_mean@1": sampling.mean_at_1,
        "sampled_pass@8": sampling.pass_at_k[8],
        "sampled_strategies": sampling.strategies,
        "greedy_strategies": greedy.strategies,
        "strategy_followed_after_its_word": followed,
    }


def main(args: BaseArguments) -> None:
    torch.manual_seed(args.seed)
    if args.traces:
        texts = trace_texts(args.traces)
        tokenizer = train_bpe(texts, args.vocab_size)
        documents = text_documents(texts, tokenizer, args.max_length, args.seed)
    else:
        tokenizer = build_tokenizer()
        documents = countdown_documents(tokenizer, args.seed)
    model = build_model(tokenizer, args)
    start = time.perf_counter()
    loss = train(model, documents, args)
    output = Path(args.output_dir)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    report: dict[str, Any] = {
        "recipe": {name: value for name, value in asdict(args).items() if name != "output_dir"},
        "parameters": model.num_parameters(),
        "training_seconds": round(time.perf_counter() - start),
        "final_loss": loss,
    }
    if not args.traces:
        report["quality"] = measure(model, tokenizer)
    (output / "recipe.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main(HfArgumentParser(BaseArguments).parse_args_into_dataclasses()[0])

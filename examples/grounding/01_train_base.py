"""Trains the base model of the grounding demo from nothing: a 0.7M-parameter Qwen3-VL on generated coloured shapes.

A document is a picture and one to three questions, each with a search and a box, all in one strategy, now and then
with stray words of that strategy in front. That is what makes the model responsive: it has learned that what stands
before a question tells the style of what follows. Several questions on one picture also say more about it, for less.
Most pictures begin with a single object. It prints quality on the validation split and writes weights, processor and
a `recipe.json`. Four minutes on one core:

    python examples/grounding/01_train_base.py --output_dir demo_output/grounding/base

A larger one, where there is a GPU:

    python examples/grounding/01_train_base.py --device cuda --hidden_size 256 --num_layers 8 \
        --vision_hidden_size 256 --tokens_per_batch 16384 --learning_rate 1e-3

It leaves out what a real pretraining run needs: distribution, evaluation during training, checkpoints.
"""

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import HfArgumentParser, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from reasoning_palette.evaluation import Method, evaluate_palette
from reasoning_palette.evaluation.shapes import (
    NUM_OBJECTS,
    NUM_UNITS,
    STRATEGIES,
    UNIT_PIXELS,
    UNIT_THOUSANDTHS,
    Context,
    draw_context,
)
from reasoning_palette.evaluation.shapes_benchmark import shapes_benchmark
from reasoning_palette.evaluation.shapes_processor import (
    IMAGE,
    MERGE_SIZE,
    PATCH_SIZE,
    TEMPORAL_PATCH_SIZE,
    VIDEO,
    VISION_END,
    VISION_START,
    build_processor,
)


@dataclass
class BaseArguments:
    """Model and recipe."""

    output_dir: str = field(default="demo_output/grounding/base", metadata={"help": "Where to write."})
    device: str = field(default="cpu", metadata={"help": "Device to train on."})
    hidden_size: int = field(default=96, metadata={"help": "Hidden size H of the language model."})
    num_layers: int = field(default=4, metadata={"help": "Layers of the language model."})
    vision_hidden_size: int = field(default=64, metadata={"help": "Hidden size of the vision encoder."})
    vision_depth: int = field(default=2, metadata={"help": "Layers of the vision encoder."})
    max_steps: int = field(default=2000, metadata={"help": "Optimiser steps."})
    tokens_per_batch: int = field(default=768, metadata={"help": "Tokens of a batch, roughly."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak of the cosine schedule."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps of linear warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's decoupled weight decay."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights and the documents."})


TOKENS_PER_PICTURE, TOKENS_PER_TRACE = 20, 30  # for the size of a batch only


def build_model(processor: Qwen3VLProcessor, args: BaseArguments) -> Qwen3VLForConditionalGeneration:
    """A Qwen3-VL with random weights and tied embeddings."""
    tokenizer = processor.tokenizer
    side = NUM_UNITS * UNIT_PIXELS // PATCH_SIZE
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": args.hidden_size,
            "intermediate_size": args.hidden_size * 8 // 3,
            "num_hidden_layers": args.num_layers,
            "num_attention_heads": args.hidden_size // 32,
            "num_key_value_heads": args.hidden_size // 32,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": args.vision_depth,
            "hidden_size": args.vision_hidden_size,
            "intermediate_size": 2 * args.vision_hidden_size,
            "num_heads": args.vision_hidden_size // 16,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "out_hidden_size": args.hidden_size,
            "num_position_embeddings": side * side,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO),
        vision_start_token_id=tokenizer.convert_tokens_to_ids(VISION_START),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(VISION_END),
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for module in model.modules():  # the stock 0.02 is made for widths in the thousands: fan-in instead
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv3d)):
                module.weight.normal_(std=module.weight[0].numel() ** -0.5)
            elif isinstance(module, torch.nn.Embedding):
                module.weight.normal_(std=module.embedding_dim**-0.5)
        positions = model.model.visual.pos_embed.weight
        positions.copy_(smooth_positions(side, positions.shape[1]))
        edges = tokenizer.convert_tokens_to_ids([str(UNIT_THOUSANDTHS * edge) for edge in range(NUM_UNITS + 1)])
        embedding = model.get_input_embeddings().weight  # of numbers, too, neighbours are alike
        embedding[edges] = mix(cosines(len(edges)), args.hidden_size) * args.hidden_size**-0.5
        model.tie_weights()
    return model


def smooth_positions(side: int, hidden_size: int) -> torch.Tensor:
    """Positions (side * side, hidden size) of which neighbours are alike.

    From independent vectors, a model would have to learn where each patch lies, one by one.
    """
    waves = cosines(side)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    mixed = mix(torch.cat([rows, columns], dim=-1).reshape(side * side, -1), hidden_size)
    return 0.5 * mixed  # pixels, from -1 to 1, have a standard deviation of about 0.5


def cosines(count: int) -> torch.Tensor:
    """Coordinates (count, count - 1) of points on a line: cosines, the faster the smaller."""
    centres = (torch.arange(count) + 0.5) / count
    return torch.stack([torch.cos(math.pi * k * centres) / k for k in range(1, count)], dim=1)


def mix(features: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """Random combinations (N, hidden size) of features, with a standard deviation of 1."""
    mixed = features @ torch.randn(features.shape[1], hidden_size)
    return mixed / mixed.std()


def document_text(context: Context) -> str:
    """The text of a document, with one image token for the picture; every answer ends in EOS."""
    picture = VISION_START + IMAGE + VISION_END
    turns = [
        f"<|im_start|>user\n{'' if index else picture}{row['question']}<|im_end|>\n"
        f"<|im_start|>assistant\n{row['reasoning']}{row['answer']}<|im_end|>\n"
        for index, row in enumerate(context.traces)
    ]
    return " ".join(context.stray_words) + "".join(turns)


def draw_num_objects(generator: random.Random, progress: float) -> int:
    """The curriculum: in the first quarter mostly one object; then, until half-time, more and more often all."""
    if progress < 0.25 and generator.random() < 0.7:
        return 1
    if progress >= 0.25 and generator.random() < (progress - 0.25) / 0.25:
        return NUM_OBJECTS
    return generator.randint(2 if progress < 0.25 else 1, NUM_OBJECTS)


def batches(processor: Qwen3VLProcessor, args: BaseArguments) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of documents of the same number of objects, so that little of them is padding."""
    generator = random.Random(f"documents:{args.seed}")
    unseen = [processor.tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, VISION_START, VISION_END)]
    unseen = torch.tensor([*unseen, processor.tokenizer.pad_token_id])
    for step in range(args.max_steps):
        num_objects = draw_num_objects(generator, step / args.max_steps)
        count = max(1, args.tokens_per_batch // (TOKENS_PER_PICTURE + TOKENS_PER_TRACE * num_objects))
        contexts = [draw_context(generator, num_objects) for _ in range(count)]
        batch = processor(
            text=[document_text(context) for context in contexts],
            images=[[context.traces[0]["image"]] for context in contexts],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        ids = batch["input_ids"]
        yield {**batch, "labels": ids.masked_fill(torch.isin(ids, unseen), -100)}


def train(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, args: BaseArguments) -> float:
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
        lambda step: min((step + 1) / args.warmup_steps, 0.5 * (1 + math.cos(math.pi * step / args.max_steps))),
    )
    model.train()
    losses: list[float] = []
    progress = tqdm(batches(processor, args), total=args.max_steps, desc="base", unit="step", mininterval=1.0)
    for batch in progress:
        loss = model(**{name: tensor.to(args.device) for name, tensor in batch.items()}, use_cache=False).loss
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


def measure(
    model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, num_problems: int = 200
) -> dict[str, Any]:
    """Quality on the validation split, and how far one style word before the prompt decides the strategy."""
    benchmark = shapes_benchmark("validation", num_problems)
    methods = [Method("greedy"), Method("sampling, T = 1", temperature=1.0)]
    result = evaluate_palette(model, processor, benchmark, methods, num_samples=8)
    print(result.to_table())
    greedy, sampling = result["greedy"], result["sampling, T = 1"]
    followed, template = {}, processor.chat_template
    for name, strategy in STRATEGIES.items():
        processor.chat_template = f"{strategy.word} {template}"
        answers = evaluate_palette(model, processor, benchmark, methods[:1], 1, disable_progress_bar=True)
        followed[name] = answers["greedy"].strategies[name]
    processor.chat_template = template
    return {
        "validation_problems": num_problems,
        "greedy_pass@1": greedy.mean_at_1,
        "greedy_strategies": greedy.strategies,
        "sampled_mean@1": sampling.mean_at_1,
        "sampled_pass@8": sampling.pass_at_k[8],
        "sampled_strategies": sampling.strategies,
        "strategy_followed_after_its_word": followed,
    }


def main(args: BaseArguments) -> None:
    torch.manual_seed(args.seed)
    processor = build_processor()
    model = build_model(processor, args).to(args.device)
    start = time.perf_counter()
    loss = train(model, processor, args)
    output = Path(args.output_dir)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    report: dict[str, Any] = {
        "recipe": {name: value for name, value in asdict(args).items() if name != "output_dir"},
        "parameters": model.num_parameters(),
        "training_seconds": round(time.perf_counter() - start),
        "final_loss": loss,
    }
    report["quality"] = measure(model, processor)
    (output / "recipe.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main(HfArgumentParser(BaseArguments).parse_args_into_dataclasses()[0])

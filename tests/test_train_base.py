"""The script that trains the base, and the weights that it made."""

import importlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasoning_palette.evaluation import Method, countdown_benchmark, evaluate_palette
from reasoning_palette.evaluation.countdown import STRATEGIES
from reasoning_palette.evaluation.countdown_tokenizer import build_tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"
script = importlib.import_module("01_train_base")


def test_documents_end_in_eos_and_hold_up_to_three_examples():
    tokenizer = build_tokenizer()
    for document in itertools.islice(script.countdown_documents(tokenizer, seed=0), 50):
        assert document[-1] == tokenizer.eos_token_id and 1 <= document.count(tokenizer.eos_token_id) <= 3
        assert tokenizer.unk_token_id not in document


def test_batches_keep_every_document_once_and_the_budget():
    documents = [[index] * (1 + index % 40) for index in range(4096)]
    seen = []
    for batch in script.batches(iter(documents), tokens_per_batch=200, seed=0):
        assert len(batch) * max(map(len, batch)) <= 200
        seen += batch
        if len(seen) == 4096:
            break
    assert sorted(seen) == documents


def test_documents_that_run_out_end_the_batches():
    assert list(script.batches(iter([[1, 2]]), tokens_per_batch=10, seed=0)) == [[[1, 2]]]


def test_a_short_training_lowers_the_loss_and_repeats_with_the_seed():
    tokenizer = build_tokenizer()
    args = script.BaseArguments(hidden_size=32, num_layers=1, max_steps=30, tokens_per_batch=512, warmup_steps=5)
    documents = list(itertools.islice(script.countdown_documents(tokenizer, args.seed), 100))

    def run():
        torch.manual_seed(args.seed)
        model = script.build_model(tokenizer, args)
        return model, script.train(model, itertools.cycle(documents), args)

    (first, loss), (second, again) = run(), run()
    assert loss < 4.3 and loss == again  # an even guess costs log(118) = 4.8 nats
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_bpe_loses_no_character_and_documents_are_cut():
    texts = ["Natalia sold clips to 48 of her friends.", "def f(x):\n    return x + 1  # naïve ✓", "long " * 100]
    tokenizer = script.train_bpe(texts, vocab_size=300)
    for text in texts:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    documents = list(itertools.islice(script.text_documents(texts, tokenizer, max_length=64, seed=0), 6))
    assert max(map(len, documents)) == 64
    assert sum(document[-1] == tokenizer.eos_token_id for document in documents) == 4  # two texts, two passes


@pytest.fixture(scope="module")
def shipped():
    folder = EXAMPLES / "countdown_base"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_shipped_weights_are_small_and_of_the_default_recipe(shipped):
    model, _ = shipped
    recipe = json.loads((EXAMPLES / "countdown_base" / "recipe.json").read_text())
    defaults = {name: value for name, value in vars(script.BaseArguments()).items() if name != "output_dir"}
    assert recipe["recipe"] == defaults
    assert recipe["parameters"] == model.num_parameters()
    assert (EXAMPLES / "countdown_base" / "model.safetensors").stat().st_size < 5_000_000


def test_the_shipped_base_lets_a_style_word_decide(shipped):
    model, tokenizer = shipped
    benchmark = countdown_benchmark("validation", 16)
    for name, strategy in STRATEGIES.items():
        worded = replace(benchmark, prompt=lambda problem, word=strategy.word: f"{word} {problem.question}")
        result = evaluate_palette(
            model, tokenizer, worded, [Method("greedy")], num_samples=1, disable_progress_bar=True
        )
        assert result["greedy"].strategies[name] >= 0.9


def test_the_shipped_base_has_one_strategy_under_greedy_and_several_when_sampled(shipped):
    model, tokenizer = shipped
    methods = [Method("greedy"), Method("sampling", temperature=1.0)]
    result = evaluate_palette(
        model, tokenizer, countdown_benchmark("validation", 16), methods, num_samples=8, disable_progress_bar=True
    )
    assert max(result["greedy"].strategies.values()) > 0.9
    assert min(result["sampling"].strategies[name] for name in STRATEGIES) > 0.05
    assert result["sampling"].pass_at_k[8] > result["greedy"].pass_at_k[8] + 0.2

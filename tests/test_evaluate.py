"""evaluate_palette on tiny models, and the random soft prompt against unpadded references."""

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen3Config, Qwen3ForCausalLM

from reasoning_palette.evaluation import Benchmark, Method, countdown_benchmark, evaluate_palette
from reasoning_palette.evaluation.countdown_tokenizer import build_tokenizer
from reasoning_palette.evaluation.method import complete
from reasoning_palette.evaluation.random_soft_prompt import (
    draw_soft_prompts,
    embedding_statistics,
    splice_soft_prompts,
)
from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **TINY)).eval()


@pytest.fixture(scope="module")
def gemma(tokenizer):
    torch.manual_seed(0)
    return Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=len(tokenizer), sliding_window=4, **TINY)).eval()


class Scripted(torch.nn.Module):
    """Stands in for a model: answers every prompt with the same list of completions, in turn."""

    def __init__(self, tokenizer, completions):
        super().__init__()
        self.tokenizer, self.completions = tokenizer, completions
        self.device = torch.device("cpu")
        self.generation_config = type("GenerationConfig", (), {"eos_token_id": tokenizer.eos_token_id})

    def generate(self, input_ids, num_return_sequences=1, **_):
        written = self.completions[:num_return_sequences] * len(input_ids)
        ids = self.tokenizer([f"{text} <eos>" for text in written], padding=True, padding_side="right")["input_ids"]
        prompts = input_ids.repeat_interleave(num_return_sequences, dim=0)
        sequences = torch.cat([prompts, torch.tensor(ids)], dim=1)
        return type("Output", (), {"sequences": sequences})


def one_problem():
    benchmark = countdown_benchmark("test", 1)
    return Benchmark(**{**vars(benchmark), "name": "one", "problems": [type(benchmark.problems[0])((6, 4, 3), 21)]})


def test_figures_by_hand(tokenizer):
    samples = [
        "scale 6 * 4 -> 24 - 3 -> 21 yes answer ( 6 * 4 ) - 3",
        "gather 6 + 4 -> 10 - 3 -> 7 no answer none",
        "gather 6 + 4 -> 10 - 3 -> 7 no answer none",
        "shrink 6 - 4 -> 2 + 3 -> 5 no",
    ]
    model = Scripted(tokenizer, samples)
    result = evaluate_palette(
        model, tokenizer, one_problem(), [Method("T = 1", temperature=1.0)], num_samples=4, disable_progress_bar=True
    )
    figures = result["T = 1"]
    assert figures.mean_at_1 == 0.25 and figures.num_correct == [1]
    assert figures.pass_at_k == {1: 0.25, 2: 0.5, 4: 1.0}
    # Pairs: the correct sample meets `none` twice (1/2 each) and the abstention once (1): 2 of 6. Of all four, `none`
    # has most votes.
    assert figures.maj_at_k == {1: 0.25, 2: pytest.approx(2 / 6), 4: 0.0}
    assert figures.distinct_answers == 2 and figures.distinct_completions == 3
    assert figures.strategies == {"multiply": 0.25, "add": 0.5, "subtract": 0.25}
    assert figures.grades == {"correct": 1, "wrong": 2, "ungradable": 1}
    assert figures.generated_tokens == sum(len(text.split()) + 1 for text in samples)
    assert figures.standard_error is None


def test_greedy_without_a_prefix_runs_once_and_counts_for_all(tokenizer):
    model = Scripted(tokenizer, ["answer ( 6 * 4 ) - 3"])
    result = evaluate_palette(
        model, tokenizer, one_problem(), [Method("greedy")], num_samples=8, disable_progress_bar=True
    )
    figures = result["greedy"]
    assert figures.pass_at_k == {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0} and figures.num_correct == [8]
    assert figures.strategies["unlabelled"] == 1.0 and figures.generated_tokens == 9


def test_results_repeat_leave_the_global_seed_alone_and_write_json(model, tokenizer, tmp_path):
    benchmark = countdown_benchmark("validation", 6)
    methods = [
        Method("greedy"),
        Method("sampling", temperature=1.0),
        Method("random", prefix="random", num_prefix_tokens=2),
    ]
    options = {"num_samples": 3, "max_new_tokens": 8, "batch_size": 6, "disable_progress_bar": True}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = evaluate_palette(model, tokenizer, benchmark, methods, seed=1, **options)
    assert torch.equal(torch.rand(1), expected)
    second = evaluate_palette(model, tokenizer, benchmark, methods, seed=1, **options)
    for one, other in zip(first.methods, second.methods, strict=True):
        assert {**vars(one), "seconds": 0} == {**vars(other), "seconds": 0}
    assert first["sampling"].distinct_completions > 1 and first["random"].distinct_completions > 1
    assert first["greedy"].distinct_completions == 1

    first.save(tmp_path / "deep" / "result.json")
    saved = json.loads((tmp_path / "deep" / "result.json").read_text())
    assert saved["benchmark"] == "countdown-validation-6-seed0" and saved["seed"] == 1 and saved["num_samples"] == 3
    assert list(saved["methods"][1]["pass_at_k"]) == ["1", "2", "3"]
    assert saved["environment"]["versions"]["torch"] == torch.__version__
    assert saved["methods"][2]["method"] == {
        "name": "random",
        "prefix": "random",
        "num_prefix_tokens": 2,
        "domain": None,
        "latent_tile": False,
        "temperature": 0.0,
        "shared_latents": False,
    }
    table = first.to_table().splitlines()
    assert len({len(line) for line in table}) == 1 and len(table) == 5
    assert table[0].split()[:3] == ["method", "pass@1", "pass@3"]


def test_embedding_statistics_are_those_of_the_output(model, gemma):
    table = model.get_input_embeddings().weight.detach()
    mean, deviation = embedding_statistics(model)
    torch.testing.assert_close(mean, table.mean(0))
    torch.testing.assert_close(deviation, table.std(0, correction=0))
    mean, deviation = embedding_statistics(gemma)
    torch.testing.assert_close(deviation, gemma.get_input_embeddings().weight.detach().std(0, correction=0) * 32**0.5)
    drawn = draw_soft_prompts(gemma, 500, 8, torch.Generator().manual_seed(0)).flatten(0, 1)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.1 * deviation.max().item(), rtol=0)
    torch.testing.assert_close(drawn.std(0), deviation, atol=0, rtol=0.1)


@pytest.mark.parametrize("family", ["model", "gemma"])
def test_soft_prompts_ignore_left_padding(family, tokenizer, request):
    model = request.getfixturevalue(family)
    texts = ["numbers 6 4 3 target 21", "scale scale scale scale numbers 6 4 3 target 21", "target 5"]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    prompts = draw_soft_prompts(model, 3, 4, torch.Generator().manual_seed(0))
    spliced = splice_soft_prompts(model, batch["input_ids"], batch["attention_mask"], prompts)
    options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(**spliced, **options)
    for row, text in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        alone = torch.cat([prompts[row : row + 1], model.get_input_embeddings()(ids)], dim=1)
        reference = model.generate(inputs_embeds=alone, attention_mask=torch.ones(alone.shape[:2]), **options)
        length = reference.sequences.shape[1]
        assert torch.equal(together.sequences[row, :length], reference.sequences[0])
        for step in range(length):
            torch.testing.assert_close(together.logits[step][row], reference.logits[step][0], atol=1e-5, rtol=1e-4)


def test_a_zero_length_soft_prompt_is_the_plain_model(model, tokenizer):
    texts = ["numbers 6 4 3 target 21", "target 5"]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    spliced = splice_soft_prompts(model, batch["input_ids"], batch["attention_mask"], torch.zeros(2, 0, 32))
    plain = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**spliced, max_new_tokens=8, do_sample=False), plain)


def test_right_padding_is_refused(model, tokenizer):
    batch = tokenizer(["target 5", "numbers 6"], return_tensors="pt")
    batch["attention_mask"][0, 1] = 0
    with pytest.raises(ValueError, match="rows that are padded on the right"):
        splice_soft_prompts(model, batch["input_ids"], batch["attention_mask"], torch.zeros(2, 1, 32))


def test_lengths_count_eos_once_even_where_it_pads(tokenizer):
    model = Scripted(tokenizer, ["answer none", "scale 6 * 4 answer none"])
    batch = complete(model, tokenizer, ["target 5"], Method("T", temperature=1.0), 2, max_new_tokens=8, seed=0)
    assert batch.num_tokens == [3, 7] and batch.texts == ["answer none", "scale 6 * 4 answer none"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefix": "latent", "num_prefix_tokens": 1}, "`prefix` is 'latent'; choose 'none', 'palette' or 'random'"),
        ({"num_prefix_tokens": 4}, "`num_prefix_tokens` is 4 with `prefix='none'`; it must be 0"),
        ({"prefix": "palette"}, "`num_prefix_tokens` is 0 with `prefix='palette'`"),
        ({"prefix": "random", "num_prefix_tokens": 4, "domain": "add"}, "`domain` and `latent_tile` need"),
        ({"temperature": -1.0}, "`temperature` is -1.0"),
    ],
)
def test_methods_refuse_wrong_combinations(arguments, message):
    with pytest.raises(ValueError, match=message):
        Method("m", **arguments)


def test_evaluation_refuses_bad_arguments(model, tokenizer):
    benchmark = countdown_benchmark("test", 2)

    def run(methods, num_samples=2, tokenizer=tokenizer, benchmark=benchmark):
        evaluate_palette(model, tokenizer, benchmark, methods, num_samples, disable_progress_bar=True)

    with pytest.raises(ValueError, match="asks for a palette, but `model` has none"):
        run([Method("prior", prefix="palette", num_prefix_tokens=1)])
    with pytest.raises(ValueError, match="`methods` is empty"):
        run([])
    with pytest.raises(ValueError, match=r"`methods` are named \['a', 'a'\]"):
        run([Method("a"), Method("a", temperature=1.0)])
    with pytest.raises(ValueError, match="`num_samples` is 0"):
        run([Method("a")], num_samples=0)
    with pytest.raises(ValueError, match="`benchmark` 'none' has no problems"):
        run([Method("a")], benchmark=Benchmark(**{**vars(benchmark), "name": "none", "problems": []}))
    bare = build_tokenizer()
    bare.pad_token = None
    with pytest.raises(ValueError, match="`tokenizer` has no padding token"):
        run([Method("a")], tokenizer=bare)


@pytest.fixture(scope="module")
def palette_model(tokenizer):
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **TINY)).eval()
    palette = PaletteVAE(32, latent_dim=4, hidden_sizes=(16,))
    generator = torch.Generator().manual_seed(0)
    for shift, name in enumerate(("multiply", "add")):
        palette.fit_domain(name, 3 * shift + torch.randn(50, 4, generator=generator))
    return PaletteForCausalLM.from_base(base, palette=palette, tokenizer=tokenizer)


@pytest.mark.filterwarnings("ignore:.*untrained")
def test_palette_methods_draw_per_sample_and_can_be_replayed(palette_model, tokenizer):
    benchmark = countdown_benchmark("test", 4)
    methods = [
        Method("greedy"),
        Method("prior", prefix="palette", num_prefix_tokens=3),
        Method("tiled", prefix="palette", num_prefix_tokens=3, latent_tile=True),
        Method("domain add", prefix="palette", num_prefix_tokens=3, domain="add"),
        Method("random", prefix="random", num_prefix_tokens=3),
    ]
    result = evaluate_palette(
        palette_model,
        tokenizer,
        benchmark,
        methods,
        num_samples=4,
        max_new_tokens=10,
        batch_size=8,  # two batches: the second must not draw the first one's latents again
        disable_progress_bar=True,
    )
    codes = result["prior"].latent_codes
    assert len(codes) == 4 and all(len(row) == 4 for row in codes)
    assert len({code for row in codes for code in row}) == 16
    assert result["greedy"].latent_codes is None and result["random"].latent_codes is None
    num_codes = palette_model.config.num_codes
    assert {code // num_codes for row in codes for code in row} == {0}
    source = palette_model.palette.domains["add"]["source"]
    assert {code // num_codes for row in result["domain add"].latent_codes for code in row} == {source}

    drawn = complete(palette_model, tokenizer, [benchmark.problems[0].question], methods[1], 4, 10, seed=3)
    prompt = tokenizer([benchmark.problems[0].question], return_tensors="pt", return_token_type_ids=False)
    width = prompt["input_ids"].shape[1]
    replayed = palette_model.generate(
        **prompt,
        latent=drawn.latent_codes[2],
        num_prefix_tokens=3,
        max_new_tokens=10,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    assert tokenizer.decode(replayed[0, width:], skip_special_tokens=True) == drawn.texts[2]


def test_unknown_domains_are_named(palette_model, tokenizer):
    methods = [Method("physics", prefix="palette", num_prefix_tokens=1, domain="physics")]
    with pytest.raises(ValueError, match=r"domain 'physics', but the palette knows \['add', 'multiply'\]"):
        evaluate_palette(palette_model, tokenizer, countdown_benchmark("test", 1), methods, disable_progress_bar=True)


@pytest.mark.filterwarnings("ignore:.*untrained")
def test_shared_latents_are_those_of_every_problem(palette_model, tokenizer):
    benchmark = countdown_benchmark("test", 4)
    method = Method("shared", prefix="palette", num_prefix_tokens=3, domain="add", shared_latents=True)
    options = {"num_samples": 3, "max_new_tokens": 10, "batch_size": 6, "disable_progress_bar": True}
    result = evaluate_palette(palette_model, tokenizer, benchmark, [method], keep_completions=True, **options)
    figures = result["shared"]
    (codes,) = {tuple(row) for row in figures.latent_codes}
    assert len(set(codes)) == 3
    source = palette_model.palette.domains["add"]["source"]
    assert {code // palette_model.config.num_codes for code in codes} == {source}
    assert (figures.latent_contrast.num_latents, figures.latent_contrast.num_problems) == (3, 4)
    prompt = tokenizer([benchmark.problems[3].question], return_tensors="pt", return_token_type_ids=False)
    replayed = palette_model.generate(
        **prompt, latent=codes[1], num_prefix_tokens=3, max_new_tokens=10, do_sample=False, pad_token_id=0
    )
    width = prompt["input_ids"].shape[1]
    assert tokenizer.decode(replayed[0, width:], skip_special_tokens=True) == figures.completions[3][1]
    with pytest.raises(ValueError, match="so does `shared_latents`"):
        Method("m", shared_latents=True)


def test_intervals_comparisons_and_diversity_by_hand(tokenizer):
    problem = one_problem().problems[0]
    benchmark = Benchmark(**{**vars(one_problem()), "problems": [problem, problem]})
    right, wrong = "scale 6 * 4 -> 24 - 3 -> 21 yes answer ( 6 * 4 ) - 3", "gather 6 + 4 -> 10 - 3 -> 7 no answer none"
    model = Scripted(tokenizer, [right, wrong])
    methods = [Method("greedy"), Method("sampling", temperature=1.0)]
    result = evaluate_palette(model, tokenizer, benchmark, methods, num_samples=2, disable_progress_bar=True)
    figures = result["sampling"]
    assert figures.diversity["answer_entropy"] == figures.diversity["strategy_entropy"] == pytest.approx(0.6931472)
    assert 1 < figures.diversity["vendi_score"] < 2 and result["greedy"].diversity["vendi_score"] == pytest.approx(1)
    assert figures.majority == [0.5, 0.5] and figures.by_problem("pass@2", 2) == [1.0, 1.0]
    interval = figures.intervals["pass@1"]
    assert (interval.low, interval.mean, interval.high, interval.num_problems) == (0.5, 0.5, 0.5, 2)
    assert [(c.ours, c.theirs, c.metric, c.difference.mean) for c in result.comparisons] == [
        ("sampling", "greedy", "pass@1", -0.5),
        ("sampling", "greedy", "pass@2", 0.0),
        ("sampling", "greedy", "maj@2", -0.5),
    ]
    assert result.compare("greedy", "sampling", "maj@2").difference.mean == 0.5
    with pytest.raises(ValueError, match="`metric` is 'maj@1'; choose 'pass@k' with k up to 2, or 'maj@2'"):
        result.compare("greedy", "sampling", "maj@1")


def test_equal_samples_are_graded_once_and_threads_keep_the_order(tokenizer):
    problem, graded = one_problem().problems[0], []
    benchmark = one_problem()

    def grade(problem, text):
        graded.append(text)
        time.sleep(0.02 if "( 6" in text else 0.0)  # the first to be asked is the last to be done
        return benchmark.grade(problem, text)

    benchmark_of_two = Benchmark(
        **{**vars(benchmark), "problems": [problem, problem], "grade": grade, "grading_threads": 4}
    )
    model = Scripted(tokenizer, ["answer ( 6 * 4 ) - 3", "answer none", "answer none"])
    result = evaluate_palette(
        model, tokenizer, benchmark_of_two, [Method("T", temperature=1.0)], 3, disable_progress_bar=True
    )
    assert sorted(graded) == sorted(["answer ( 6 * 4 ) - 3", "answer none"] * 2)
    assert result["T"].num_correct == [1, 1] and result["T"].grades == {"correct": 2, "wrong": 4, "ungradable": 0}


def without_seconds(result):
    saved = json.loads(json.dumps(result.to_dict()))
    for method in saved["methods"]:
        del method["seconds"]
    return saved


@pytest.mark.filterwarnings("ignore:.*untrained", "ignore:.*fork")
def test_a_killed_run_goes_on_and_ends_in_the_same_result(palette_model, tokenizer, tmp_path, monkeypatch):
    methods = [Method("T = 1", temperature=1.0), Method("prior", prefix="palette", num_prefix_tokens=2)]
    path = tmp_path / "deep" / "progress.jsonl"

    def run(progress_file=None, num_samples=2, methods=methods):
        options = {"num_samples": num_samples, "max_new_tokens": 6, "batch_size": 4, "disable_progress_bar": True}
        benchmark = countdown_benchmark("test", 6)  # three batches per method
        return evaluate_palette(palette_model, tokenizer, benchmark, methods, progress_file=progress_file, **options)

    whole = run()
    generate, calls = palette_model.generate, []

    def killing(*args, **kwargs):
        calls.append(1)
        if len(calls) > 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return generate(*args, **kwargs)

    monkeypatch.setattr(palette_model, "generate", killing)
    child = multiprocessing.get_context("fork").Process(target=run, args=(path,))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert len(path.read_text().splitlines()) == 5  # the settings and four batches
    with open(path, "a") as file:
        file.write('{"method": {"name"')  # killed while it wrote

    def counting(*args, **kwargs):
        calls.append(1)
        return generate(*args, **kwargs)

    monkeypatch.setattr(palette_model, "generate", counting)
    resumed = run(path)
    assert len(calls) == 2
    assert without_seconds(resumed) == without_seconds(whole)
    assert without_seconds(run(path)) == without_seconds(whole) and len(calls) == 2
    # another method joins, and the others' samples are kept
    assert run(path, methods=[*methods, Method("T = 2", temperature=2.0)])["prior"] == resumed["prior"]
    assert len(calls) == 5

    with pytest.raises(ValueError, match=r"of a run with another num_samples \(2, now 3\)"):
        run(path, num_samples=3)
    with torch.no_grad():
        palette_model.get_input_embeddings().weight[0, 0] += 1
    with pytest.raises(ValueError, match="of a run with another weights"):
        run(path)
    with torch.no_grad():
        palette_model.get_input_embeddings().weight[0, 0] -= 1
    path.write_text("no JSON\n")
    with pytest.raises(ValueError, match="is no record of an evaluation; name another"):
        run(path)

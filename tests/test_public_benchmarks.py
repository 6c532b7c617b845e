"""Public benchmarks: rows with the columns of the Hub and of traces, files, and real references."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from reasoning_palette.evaluation import Method, load_benchmark
from reasoning_palette.evaluation.code_grader import CodeGrader
from reasoning_palette.evaluation.math_grader import MathGrader
from reasoning_palette.evaluation.public_benchmarks import PUBLIC_SETS
from reasoning_palette.evaluation.scoring import score_samples

REAL_DATA = Path(__file__).parents[1].parent / "shared" / "data"

# a row as the Hub's set has it, an answer that is right, one that is wrong
ROWS = {
    "gsm8k": ({"question": "Twice 9?", "answer": "2 * 9 = <<2*9=18>>18\n#### 18"}, r"\boxed{18}", r"\boxed{9}"),
    "math500": ({"problem": "Half?", "solution": "", "answer": r"\frac{1}{2}"}, r"\boxed{0.5}", r"\boxed{2}"),
    "olympiadbench": (
        {"question": "Solve.", "final_answer": ["$2$, $-2$"], "is_multiple_answer": True},
        r"\boxed{\pm 2}",
        r"\boxed{2}",
    ),
    "amc23": ({"question": "27?", "answer": "27.0", "id": 3}, r"\boxed{27}", r"\boxed{270}"),
    "minervamath": ({"question": "Mass?", "answer": "5.0e-3"}, r"\boxed{0.005}", r"\boxed{5}"),
    "aime24": ({"problem": "How many?", "solution": r"\boxed{073}", "id": 60}, r"\boxed{73}", r"\boxed{37}"),
    "aime25": ({"problem": "How many?", "answer": "070", "id": "0"}, r"\boxed{70}", r"\boxed{7}"),
    "aqua": (
        {"question": "Speed?", "options": ["A)5", "B)15 km"], "rationale": "", "correct": "B"},
        "Answer: B",
        "Answer: A",
    ),
    "commonsenseqa": (
        {
            "question": "Where?",
            "choices": {"label": ["A", "B"], "text": ["house", "garden"]},
            "answerKey": "B",
        },
        "The answer is garden.",
        "The answer is house.",
    ),
    "mbpp": (
        {
            "task_id": 2,
            "text": "Double it.",
            "code": "",
            "test_list": ["assert double(2) == 4"],
            "test_setup_code": "import math",
            "challenge_test_list": [],
        },
        "```python\ndef double(x):\n    return 2 * x\n```",
        "```python\ndef double(x):\n    return x\n```",
    ),
    "humaneval": (
        {
            "task_id": "HumanEval/0",
            "prompt": "def double(x):\n",
            "canonical_solution": "",
            "test": "def check(candidate):\n    assert candidate(2) == 4",
            "entry_point": "double",
        },
        "    return 2 * x",
        "    return x",
    ),
}


@pytest.mark.parametrize("name", list(PUBLIC_SETS))
def test_columns_of_the_hub(name):
    row, right, wrong = ROWS[name]
    assert set(PUBLIC_SETS[name].columns) <= set(row)
    benchmark = load_benchmark(name, [row])
    (problem,) = benchmark.problems
    assert benchmark.grade(problem, right) == "correct" and benchmark.grade(problem, wrong) == "wrong"
    assert benchmark.grade(problem, "") == "ungradable" and benchmark.answer_to(problem, "") is None
    (message,) = benchmark.prompt(problem)
    assert message["role"] == "user" and problem.question in message["content"]
    assert benchmark.name == name and benchmark.label("") == "unlabelled"


def test_options_are_shown_and_vote_by_their_letter():
    benchmark = load_benchmark("commonsenseqa", [ROWS["commonsenseqa"][0]], conversation=False)
    (problem,) = benchmark.problems
    assert "Where?\n(A) house\n(B) garden\n" in benchmark.prompt(problem)
    assert benchmark.answer_to(problem, "The answer is garden.") == "B"


def test_figures_of_samples():
    rows = [{"question": "Twice 9?", "answer": "18"}, {"question": "Twice 2?", "answer": "4"}]
    benchmark = load_benchmark("gsm8k", rows, label=lambda text: "long" if len(text) > 20 else "short")
    texts = [
        [r"\boxed{18}", r"so it is $\boxed{18.0}$", "#### 17", ""],
        [r"\boxed{9^{9^9}}", r"\boxed{5}", r"\boxed{5}", "The answer is 4."],
    ]
    figures = score_samples(benchmark, Method("T", temperature=1.0), texts, None, 0, 0.0)
    assert figures.num_correct == [2, 1] and figures.grades == {"correct": 3, "wrong": 3, "ungradable": 2}
    assert figures.majority == [1.0, 0.0] and figures.strategies == {"long": 0.125, "short": 0.875}
    assert figures.ungradable_completions == ["", r"\boxed{9^{9^9}}"]


def test_prompts_of_base_models():
    row = ROWS["humaneval"][0]
    assert (
        load_benchmark("humaneval", [row], conversation=False).prompt(load_benchmark("humaneval", [row]).problems[0])
        == row["prompt"]
    )
    benchmark = load_benchmark("gsm8k", [ROWS["gsm8k"][0]], conversation=False, template="Q: {question}\nA:")
    assert benchmark.prompt(benchmark.problems[0]) == "Q: Twice 9?\nA:"


def test_files_and_draws(tmp_path):
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1), "reasoning": None} for n in range(20)]
    path = tmp_path / "sums.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    whole = load_benchmark("gsm8k", path)
    assert [problem.answer for problem in whole.problems] == [row["answer"] for row in rows]
    Dataset.from_list(rows).to_parquet(tmp_path / "sums.parquet")
    drawn = load_benchmark("gsm8k", str(tmp_path / "sums.parquet"), num_problems=5, seed=1)
    assert drawn.name == "gsm8k-5-seed1" and len({problem.question for problem in drawn.problems}) == 5
    assert drawn.problems == load_benchmark("gsm8k", path, num_problems=5, seed=1).problems
    assert drawn.problems != load_benchmark("gsm8k", path, num_problems=5, seed=2).problems
    traces = [{"question": "Which?\n(A) one\n(B) two", "answer": "B"}]
    assert load_benchmark("commonsenseqa", traces).problems[0].options == {"A": "one", "B": "two"}
    traces = [{"question": "Which?\nOptions: A)1 km B)2 km", "answer": "B"}]
    assert load_benchmark("aqua", traces).problems[0].options == {"A": "1 km", "B": "2 km"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gsm9k"}, "`name` is 'gsm9k'; choose one of gsm8k, math500"),
        ({"source": []}, "`source` has 0 rows"),
        ({"source": [ROWS["gsm8k"][0]], "num_problems": 2}, "`num_problems` is 2, but `source` has 1 rows"),
        ({"source": [{"text": "?"}]}, r"Row 0 of `source` has no 'question': found the columns \['text'\]"),
        ({"source": [ROWS["gsm8k"][0]], "split": "test"}, "`source` is loaded already"),
        ({"source": "sums.jsonl", "split": "test"}, "`source` is a file, which has none"),
        ({"template": "Solve."}, "`template` is 'Solve.'; it must have '{question}'"),
        ({"grader": CodeGrader()}, "`grader` is a CodeGrader, but gsm8k is graded by a MathGrader"),
        ({"name": "aqua", "grader": MathGrader()}, "`grade_choice`, which has no settings"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark(**{"name": "gsm8k", **arguments})


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the real traces are not beside the checkout")
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("gsm8k", "gsm8k_test_a", 200),
        ("math500", "math500_a", 120),
        ("olympiadbench", "olympiadbench_a", 120),
        ("aqua", "aqua_dev", 254),
        ("commonsenseqa", "csqa_cose_dev_a", 475),
        ("mbpp", "mbpp_a", 30),
        ("humaneval", "humaneval_a", 15),
    ],
)
def test_real_references_are_correct(name, file, count):
    path = REAL_DATA / f"{file}.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    benchmark = load_benchmark(name, path)
    assert len(benchmark.problems) == len(rows)
    kind = PUBLIC_SETS[name].kind
    wrong = []
    for problem, row in list(zip(benchmark.problems, rows, strict=True))[:count]:
        if kind == "math":
            text = f"So it is $\\boxed{{{problem.answer}}}$."
        else:
            text = f"Answer: {row['answer']}" if kind == "choice" else row["answer"]
        if benchmark.grade(problem, text) != "correct":
            wrong.append((row["id"], text))
    assert wrong == []

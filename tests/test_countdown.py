"""The countdown family: what a problem is, how traces search, and how completions are graded and labelled."""

import itertools
import random
from collections import Counter

import pytest

from reasoning_palette.evaluation.countdown import (
    LARGEST_VALUE,
    MAX_ATTEMPTS,
    STRATEGIES,
    Problem,
    attempts_of,
    draw_contexts,
    evaluate_expression,
    final_answer,
    generate_problems,
    generate_traces,
    grade,
    label_strategy,
    solving_strategies,
    split_of,
    write_trace,
)
from reasoning_palette.evaluation.countdown_tokenizer import build_tokenizer

PROBLEM = Problem((6, 4, 3), 21)


def test_attempts_by_hand():
    assert [a.expression for a in attempts_of((6, 4, 3), "multiply")] == [
        "( 6 * 4 ) * 3",
        "( 6 * 4 ) + 3",
        "( 6 * 4 ) - 3",
        "( 6 * 3 ) * 4",
        "( 6 * 3 ) + 4",
        "( 6 * 3 ) - 4",
        "( 4 * 3 ) * 6",
        "( 4 * 3 ) + 6",
        "( 4 * 3 ) - 6",
    ]
    # The larger number comes first, and what would end below 1, as ( 9 - 3 ) - 10, is left out.
    assert [(a.expression, a.value) for a in attempts_of((3, 9, 10), "subtract")] == [
        ("( 9 - 3 ) * 10", 60),
        ("( 9 - 3 ) + 10", 16),
        ("( 10 - 3 ) * 9", 63),
        ("( 10 - 3 ) + 9", 16),
        ("( 10 - 9 ) * 3", 3),
        ("( 10 - 9 ) + 3", 4),
    ]


def test_attempts_use_every_number_once_and_stay_in_range():
    for numbers in itertools.combinations(range(2, 16), 3):
        for name, strategy in STRATEGIES.items():
            for attempt in attempts_of(numbers, name):
                assert attempt.operator == strategy.operator
                assert sorted((attempt.first, attempt.second, attempt.third)) == list(numbers)
                assert 1 <= attempt.between <= LARGEST_VALUE and 1 <= attempt.value <= LARGEST_VALUE
                assert evaluate_expression(attempt.expression.split()) == attempt.value


def test_each_strategy_solves_almost_half_and_together_all():
    problems = generate_problems("test", 200)
    counts = Counter(name for problem in problems for name in solving_strategies(problem))
    assert all(0.40 <= counts[name] / 200 <= 0.55 for name in STRATEGIES)
    assert all(solving_strategies(problem) for problem in problems)


def test_splits_are_disjoint_frozen_and_blind_to_the_order_of_numbers():
    problems = {split: generate_problems(split, 300) for split in ("train", "validation", "test")}
    keys = {split: {(tuple(sorted(p.numbers)), p.target) for p in rows} for split, rows in problems.items()}
    assert all(len(rows) == 300 for rows in keys.values())
    assert all(not keys[a] & keys[b] for a, b in itertools.combinations(keys, 2))
    for order in itertools.permutations((6, 4, 3)):
        assert split_of(Problem(order, 21)) == split_of(PROBLEM)
    # Frozen: published figures are on these very problems.
    assert [problem.question for problem in problems["test"][:3]] == FIRST_TEST_QUESTIONS
    assert generate_problems("test", 20) == problems["test"][:20]
    assert generate_problems("test", 20, seed=1) != problems["test"][:20]


FIRST_TEST_QUESTIONS = [
    "numbers 13 2 15 target 11",
    "numbers 9 7 12 target 28",
    "numbers 3 12 8 target 60",
]


def test_more_problems_than_a_split_holds_are_refused():
    with pytest.raises(
        ValueError, match="`num_problems` is 5000; it must lie between 0 and 444, the size of the validation split"
    ):
        generate_problems("validation", 5000)
    with pytest.raises(ValueError, match="`split` is 'dev'; choose one of train, validation, test"):
        generate_problems("dev", 1)


def test_a_trace_stops_at_its_first_hit():
    generator = random.Random(0)
    solved = 0
    for _ in range(300):
        row = write_trace(PROBLEM, "multiply", generator)
        verdicts = [word for word in row["reasoning"].split() if word in ("yes", "no")]
        assert 1 <= len(verdicts) <= MAX_ATTEMPTS
        assert "yes" not in verdicts[:-1]
        assert label_strategy(row["reasoning"]) == row["domain"] == "multiply"
        if verdicts[-1] == "yes":
            solved += 1
            assert grade(PROBLEM, f"{row['reasoning']} {row['answer']}") == "correct"
        else:
            assert len(verdicts) == MAX_ATTEMPTS and row["answer"] == "answer none"
    assert solved / 300 == pytest.approx(1 / 3, abs=0.08)  # one of nine expressions hits, three are tried


def test_traces_follow_the_mix_and_repeat_with_the_seed():
    rows = generate_traces("train", 2000)
    shares = Counter(row["domain"] for row in rows)
    for name, strategy in STRATEGIES.items():
        assert shares[name] / 2000 == pytest.approx(strategy.trace_weight, abs=0.04)
    assert generate_traces("train", 10) == rows[:10]
    assert generate_traces("train", 10, seed=1) != rows[:10]


def test_contexts_keep_their_style():
    stray = 0
    for context in itertools.islice(draw_contexts(), 500):
        styles = {row["domain"] for row in context.traces}
        assert len(styles) == 1 and 1 <= len(context.traces) <= 3
        assert set(context.stray_words) <= {STRATEGIES[styles.pop()].word}
        stray += bool(context.stray_words)
        for row in context.traces:
            _, a, b, c, _, target = row["question"].split()
            assert split_of(Problem((int(a), int(b), int(c)), int(target))) == "train"
    assert stray / 500 == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("scale 6 * 4 -> 24 - 3 -> 21 yes answer ( 6 * 4 ) - 3", "correct"),
        ("answer 6*4-3", "correct"),
        ("answer 4 * 6 - 3\n", "correct"),
        ("answer 3 answer ( 6 * 4 ) - 3", "correct"),  # the last answer counts
        ("answer ( 6 * 4 ) + 3", "wrong"),
        ("answer 6 + 4 + 3 + 4 + 4", "wrong"),  # reaches 21 with numbers that are not there
        ("answer 21", "wrong"),
        ("answer none", "wrong"),
        ("scale 6 * 4 -> 24 - 3 -> 21 yes", "ungradable"),
        ("answer", "ungradable"),
        ("answer ( 6 * 4 - 3", "ungradable"),
        ("answer 6 * 4 - 3 scale", "ungradable"),
        ("answer 6 / ( 4 - 4 )", "ungradable"),
        ("answer __import__ ( 4 )", "ungradable"),
        ("answer ( 6 * 4 ) - 3 3", "ungradable"),
        ("", "ungradable"),
    ],
)
def test_grades(completion, expected):
    assert grade(PROBLEM, completion) == expected


def test_grades_are_exact():
    # 8 / (3 - 8 / 3) = 24 in fractions, 23.999999999999993 in floats
    assert evaluate_expression(["8", "/", "(", "3", "-", "8", "/", "3", ")"]) == 24
    assert grade(Problem((2, 3, 7), 1), "answer 7 / 3 - 2") == "wrong"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("scale 6 * 4 -> 24 - 3 -> 21 yes answer ( 6 * 4 ) - 3", "multiply"),
        ("gather 6 + 4 -> 10 - 3 -> 7 no gather 6 + 3 -> 9", "add"),
        ("shrink 6 - 4 -> 2 + 3 -> 5 no", "subtract"),
        ("scale 6 + 4 -> 10 - 3 -> 7 no", "unlabelled"),  # says one thing and does another
        ("scale 6 * 4 -> 24 - 3 -> 21 no gather 6 + 4 -> 10", "unlabelled"),
        ("answer none", "unlabelled"),
        ("", "unlabelled"),
    ],
)
def test_labels(completion, expected):
    assert label_strategy(completion) == expected


def test_final_answer():
    assert final_answer("scale answer ( 6 * 4 )\n - 3 ") == "( 6 * 4 ) - 3"
    assert final_answer("answer none") == "none"
    assert final_answer("no answers here") is None


def test_tokenizer_knows_every_word_and_pads_on_the_left():
    tokenizer = build_tokenizer()
    for row in generate_traces("train", 300):
        text = f"{row['question']} {row['reasoning']} {row['answer']}"
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids and len(ids) < 50
        assert tokenizer.decode(ids) == text
    batch = tokenizer(["numbers 6 4 3 target 21", "scale numbers 6 4 3 target 21"], padding=True)
    assert batch["input_ids"][0][0] == tokenizer.pad_token_id and batch["attention_mask"][0] == [0, 1, 1, 1, 1, 1, 1]
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "numbers 6 4 3 target 21"


def test_tokenizer_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    build_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "numbers 6 4 3 target 21 scale 6 * 4 -> 24"
    assert loaded(text).input_ids == build_tokenizer()(text).input_ids
    assert loaded.padding_side == "left" and loaded.eos_token == "<eos>" and loaded.pad_token == "<pad>"
    assert loaded.decode(loaded(text).input_ids) == text

"""Graders on tricky answers: one after the other, under threads, and in the workers of a data loader."""

import pickle
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from graded_answers import CHOICE, HUMANEVAL, HUMANEVAL_ARGUMENTS, MATH, MBPP, MBPP_ARGUMENTS, OPTIONS
from torch.utils.data import DataLoader, Dataset

from reasoning_palette.evaluation.choice_grader import ChoiceProblem, chosen_option, grade_choice, lettered_options
from reasoning_palette.evaluation.code_grader import CodeGrader, CodeProblem, answer_code, code_vote, mbpp_entry_point
from reasoning_palette.evaluation.killable_worker import KillableWorkers, WorkerLost
from reasoning_palette.evaluation.math_grader import MathGrader, math_vote


class Answers(Dataset):
    """The tables of `graded_answers`; an item is its verdict."""

    def __init__(self):
        self.math = MathGrader(cpu_seconds=1.0)
        self.code = CodeGrader(cpu_seconds=1, wall_seconds=20)
        mbpp, humaneval = CodeProblem(*MBPP_ARGUMENTS), CodeProblem(*HUMANEVAL_ARGUMENTS, is_continued=True)
        choice = ChoiceProblem("Which?", OPTIONS, "B")
        self.calls = [(self.math.grade, reference, text) for reference, text, _ in MATH]
        self.calls += [(self.code.grade, mbpp, text) for text, _ in MBPP]
        self.calls += [(self.code.grade, humaneval, text) for text, _ in HUMANEVAL]
        self.calls += [(grade_choice, choice, text) for text, _ in CHOICE]
        self.verdicts = [row[-1] for table in (MATH, MBPP, HUMANEVAL, CHOICE) for row in table]

    def __len__(self):
        return len(self.calls)

    def __getitem__(self, index):
        grade, problem, text = self.calls[index]
        return grade(problem, text)


@pytest.fixture(scope="module")
def answers():
    return Answers()


def assert_verdicts(answers, found):
    pairs = zip(answers.calls, answers.verdicts, found, strict=True)
    assert [(call[1], call[2], given) for call, expected, given in pairs if given != expected] == []


def test_there_are_two_hundred(answers):
    assert len(answers) >= 200 and {"correct", "wrong", "ungradable"} == set(answers.verdicts)


def test_one_after_the_other(answers):
    assert_verdicts(answers, [answers[index] for index in range(len(answers))])


def test_under_eight_threads(answers):
    with ThreadPoolExecutor(8) as pool:
        assert_verdicts(answers, list(pool.map(answers.__getitem__, range(len(answers)))))


def test_in_the_workers_of_a_data_loader(answers):
    found = DataLoader(answers, batch_size=8, num_workers=2, collate_fn=list)
    assert_verdicts(answers, [verdict for batch in found for verdict in batch])


def test_a_lost_process_is_replaced_and_close_ends_the_idle_ones():
    grader = MathGrader(cpu_seconds=0.5, max_workers=1)
    assert grader.grade("5", r"\boxed{9^{9^9}}") == "ungradable"
    assert grader.grade("5", r"\boxed{5}") == "correct"
    (process,) = grader._workers._idle
    copy = pickle.loads(pickle.dumps(grader))
    grader.close()
    assert process.poll() is not None
    assert copy.grade("5", r"\boxed{6}") == "wrong"
    copy.close()


def test_a_process_that_does_not_start_says_why(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match=r"`worker.py` did not start: it ended with status 3"):
        KillableWorkers(script, [], 1, 5.0).request({})
    script.write_text("print('{\"ready\": true}', flush=True)\nimport time\ntime.sleep(60)")
    with pytest.raises(WorkerLost, match="status -9"):
        KillableWorkers(script, [], 1, wall_seconds=0.5).request({})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install 'math-verify>=0.9'"):
        MathGrader()


def test_boxes_alone_where_they_are_asked_for():
    grader = MathGrader("boxed")
    assert grader.grade("5", "The answer is 5.") == "ungradable"
    assert grader.grade("5", "#### 5") == "ungradable"
    assert grader.grade("5", r"\boxed{5}") == "correct"
    grader.close()


def test_votes():
    assert math_vote(r"\boxed{\dfrac{1}{2}}") == math_vote(r"\boxed{ \frac{1}{2} }") == r"\frac{1}{2}"
    assert math_vote("#### 1,000") == math_vote("The answer is 1000.") == math_vote(r"\boxed{1{,}000}") == "1000"
    assert math_vote(r"\boxed{}") is None and math_vote("none") is None
    assert code_vote("```python\ndef f(x):  # twice\n    return (2*x)\n```") == code_vote("def f(x):\n  return 2 * x")
    assert code_vote("") is None


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", "stopped", "SIGXCPU"),
        ("import time\ntime.sleep(60)", "stopped", "time"),
        ("import os\nwhile True: os.fork()", "failed", "BlockingIOError"),
        ("import threading\nthreading.Thread(target=print).start()", "failed", "RuntimeError"),
        ("blocks = []\nwhile True: blocks.append(bytearray(10 ** 8))", "failed", "MemoryError"),
        ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", "failed", "PermissionError"),
        ("import ctypes\nctypes.string_at(0)", "stopped", "SIGSEGV"),
        ("raise SystemExit(0)", "failed", "SystemExit"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\nassert A(1).x", "passed", ""),
    ],
)
def test_programs_are_stopped(program, status, detail):
    start = time.monotonic()
    run = CodeGrader(cpu_seconds=1, wall_seconds=5).run(program)
    if detail == "PermissionError" and run.status == "stopped":
        pytest.fail("the program ended what watches it")
    # a busy machine may reach the limit on time before the one on processor time
    assert run.status == status and run.detail in (detail, "time")
    assert time.monotonic() - start < 15


def test_programs_have_no_network_where_that_is_permitted():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        run = CodeGrader().run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)")
    assert run.status == ("failed" if run.network_isolated else "passed")


def test_code_of_answers():
    mbpp = CodeProblem(*MBPP_ARGUMENTS)
    assert answer_code("Use `double`.", mbpp) is None
    long = "def double(x):\n    return 2 * x\n" + "This line (is prose.\n" * 5000
    start = time.monotonic()
    assert answer_code(long, mbpp).strip().endswith("2 * x") and time.monotonic() - start < 5
    assert answer_code("def double(x):\n    return 2 * x\nThat is all.", mbpp).strip().endswith("2 * x")
    assert mbpp_entry_point(["assert set(similar((1,), (1,))) == {1}"]) == "similar"
    with pytest.raises(ValueError, match="`tests` call no function"):
        mbpp_entry_point(["assert 1"])


def test_options():
    start = time.monotonic()
    assert chosen_option("the answer is " * 50_000 + "B", OPTIONS) == "B" and time.monotonic() - start < 5
    assert lettered_options(["A)32400", "(B) 6000", "c. 600"]) == {"A": "32400", "B": "6000", "c": "600"}
    with pytest.raises(ValueError, match="'6000', which has no letter in front"):
        lettered_options(["6000"])
    with pytest.raises(ValueError, match=r"`answer` is 'E'; it must be one of the options, \['A', 'B', 'C', 'D'\]"):
        ChoiceProblem("Which?", OPTIONS, "E")
    numbers = {"A": "5", "B": "15"}
    assert chosen_option("Answer: 15", numbers) == "B" and chosen_option("Answer: 5 km", numbers) == "A"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MathGrader("box"), "`answer_format` is 'box'; choose 'any' or 'boxed'"),
        (lambda: MathGrader(cpu_seconds=0), "`cpu_seconds` is 0; it must be above 0"),
        (lambda: CodeGrader(memory_gib=-1), "`memory_gib` is -1; it must be above 0"),
    ],
)
def test_limits_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""The speed benchmarks run as their docstrings say, here at a size where times mean nothing; what must hold at every
size is checked: no text differs between threads and one at a time, and the palette's file is its tensors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reasoning_palette.evaluation.paired_ratios import paired_ratios

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
TINY = ["--hidden_size", "128", "--num_layers", "2", "--vocab_size", "100"]


def run(name, folder, *arguments):
    output = folder / "result.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *TINY, *arguments, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(output.read_text())


def test_sixteen_threads_give_what_one_at_a_time_gives(tmp_path):
    found = run(
        "concurrency", tmp_path, "--threads", "16", "--calls", "5", "--blocks", "2", "--completion_length", "6"
    )
    assert found["differing"] == 0
    assert found["throughput"]["pairs"] == 2


def test_generate_overhead(tmp_path):
    found = run("generate_overhead", tmp_path, "--turns", "2", "--completion_length", "4")
    assert {name: figures["pairs"] for name, figures in found["results"].items()} == {
        "no_prefix": 2,
        "prefix_8": 2,
        "prompt_tuning_8": 2,
        "prefix_8 / prompt_tuning_8": 2,
    }


def test_load_time(tmp_path):
    found = run("load_time", tmp_path, "--turns", "2")
    palette = found["palette_bytes"]
    assert palette["tensors"] < palette["file"] <= 1.05 * palette["tensors"]


def test_paired_ratios_by_hand():
    found = paired_ratios([2.0, 3.0, 8.0], [1.0, 2.0, 2.0])
    assert (found["pairs"], found["ours"], found["theirs"], found["median_ratio"]) == (3, 3.0, 2.0, 2.0)
    assert found["ratios"] == [2.0, 1.5, 4.0]
    # the 27 resamples of three: the median is the least with probability 7/27, the greatest with the same
    assert (found["lower_95"], found["upper_95"]) == (1.5, 4.0)
    assert paired_ratios([1.0, 1.0], [2.0, 2.0])["lower_95"] == 0.5


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([1.0], [1.0], "two turns or more"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "the same number on each side, got"),
        ([1.0, 0.0], [1.0, 2.0], "must be above 0"),
        ([1.0, float("nan")], [1.0, 2.0], "must be above 0"),
    ],
)
def test_paired_ratios_refuses(ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        paired_ratios(ours, theirs)

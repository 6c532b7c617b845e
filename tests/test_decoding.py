"""Every way to decode, against loops by hand on spliced embeddings; the lines of docs/decoding.md, run."""

import pytest
from decoding_matrix import CASES, GROUPS, PAGE, line, outcome

LINES = PAGE.read_text().splitlines()
RUNS = [pytest.param(case, id=f"{case.group}: {case.name}") for case in CASES]


@pytest.mark.parametrize("case", RUNS)
def test_decoding(case):
    """The outcome is the one that the page gives; `python tests/decoding_matrix.py` makes the page anew."""
    outcomes = {name: outcome(case, name) for name in case.settings}
    assert line(case, outcomes) in LINES


def test_the_page_has_these_lines_and_no_others():
    names = [case.name for case in CASES]
    assert len({(case.group, case.name) for case in CASES}) == len(names)
    rows = [text.split(" | ")[0].removeprefix("| ") for text in LINES if text.startswith("| ")]
    assert [name for name in rows if name not in ("|", "---")] == names
    assert [text.removeprefix("## ") for text in LINES if text.startswith("## ")] == GROUPS

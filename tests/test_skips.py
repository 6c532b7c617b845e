"""What the tests may skip is listed, and the list is kept to what they can skip."""

import shutil
from pathlib import Path

import pytest
import yaml

pytest_plugins = ["pytester"]
TESTS = Path(__file__).parent
LISTED = yaml.safe_load((TESTS / "skips.yaml").read_text())


@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry["reason"][:40])
def test_listed_tests_exist(entry):
    assert entry["reason"]
    assert all((TESTS / name).is_file() for name in entry["tests"])


@pytest.mark.parametrize(
    ("reason", "exit_code"),
    [("the real traces are not beside the checkout", 0), ("the real traces are not here", 1), ("", 1)],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unlisted_skip_fails_the_run(pytester, reason, exit_code, workers):
    for name in ("conftest.py", "skips.yaml"):
        shutil.copy(TESTS / name, pytester.path)
    pytester.makepyfile(test_traces=f"import pytest\ndef test_one(): pytest.skip({reason!r})\ndef test_two(): pass")
    result = pytester.runpytest_subprocess("--numprocesses", str(workers))
    assert result.ret == exit_code
    assert ("NOT LISTED" in result.stdout.str()) == bool(exit_code)


def test_a_module_that_skips_itself_is_seen(pytester):
    for name in ("conftest.py", "skips.yaml"):
        shutil.copy(TESTS / name, pytester.path)
    pytester.makepyfile(test_other="import pytest\npytest.importorskip('no_such_module')")
    assert "NOT LISTED" in pytester.runpytest_subprocess().stdout.str()

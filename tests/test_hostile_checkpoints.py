"""
Checkpoints that mean harm: nothing in them runs, nothing is written beside what was asked for, memory stays bounded,
and the error says what is wrong. docs/security.md is the table of them.
"""

import re

import pytest
from hostile_checkpoints import LOADS, cases
from hostile_runs import CONTROL, ENOUGH, outcomes

pytestmark = pytest.mark.timeout(600)  # nearly all of it in the fixture
NAMES = [case.name for case in cases()]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return outcomes(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("case", cases(), ids=NAMES)
def test_a_hostile_checkpoint(found, case):
    outcome = found[case.name]
    assert "failed" not in outcome, outcome["failed"]
    assert re.match(case.expected, outcome["error"] or LOADS, re.DOTALL), outcome["error"]
    assert not outcome["ran"]
    assert not outcome["unpickled"]
    assert not outcome["started"]
    assert not outcome["written"]
    assert bool(outcome["connected"]) == case.through_hub
    assert all("127.0.0.1" in address for address in outcome["connected"])
    assert outcome["growth"] < ENOUGH


def test_the_guard_sees_what_it_is_there_for(found):
    outcome = found[CONTROL]
    assert outcome["ran"]
    assert {"builtins.exec", "torch.load"} <= set(outcome["unpickled"])
    assert any(event.startswith("subprocess.Popen") for event in outcome["started"])
    assert any(str(path).endswith("saved-beside") for path in outcome["written"])
    assert any("checkpoint/link" in str(path) for path in outcome["written"])
    assert outcome["connected"] == ["('127.0.0.1', 9)"]
    assert 300 << 20 <= outcome["growth"] < 2 << 30
    assert outcome["error"].startswith("MemoryError")


def test_every_case_has_a_name_of_its_own():
    assert len(set(NAMES)) == len(NAMES) > 80

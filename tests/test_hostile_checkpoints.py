"""
Checkpoints that mean harm: nothing in them runs, nothing is written beside what was asked for, memory stays bounded,
and the error says what is wrong. docs/security.md is the table of them.
"""

import re

import pytest
import safetensors
import torch
import transformers
from hostile_checkpoints import LOADS, cases, make_sound
from hostile_runs import CONTROL, ENOUGH, outcomes
from packaging.version import Version
from safetensors.torch import load_file
from security_page import PAGE, committed_rows, is_harmful, rows
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.timeout(600)  # nearly all of it in the fixture
NAMES = [case.name for case in cases()]
# Some of the errors are those of these two.
WRITTEN_WITH = re.search(r"(transformers \d+\.\d+)\S* and (safetensors \d+\.\d+)", PAGE.read_text()).groups()
HERE = tuple(
    f"{module.__name__} {'.'.join(map(str, Version(module.__version__).release[:2]))}"
    for module in (transformers, safetensors)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def found(folder):
    return outcomes(folder)


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
    assert not is_harmful(outcome)


def test_the_guard_sees_what_it_is_there_for(found):
    outcome = found[CONTROL]
    assert is_harmful(outcome)
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


def test_the_weights_of_a_trusted_base_are_unpickled_where_it_is_asked_for(tmp_path):
    make_sound(tmp_path, str(tmp_path / "base"))
    weights = load_file(tmp_path / "base" / "model.safetensors")
    torch.save(weights, tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(OSError, match="pass `use_safetensors=False`"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "palette")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "palette", use_safetensors=False)
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.skipif(HERE != WRITTEN_WITH, reason=f"the page is of {' and '.join(WRITTEN_WITH)}")
def test_the_page_says_so(found, folder):
    assert committed_rows() == {kind: [cells[:2] for cells in table] for kind, table in rows(found, folder).items()}

"""transformers' own common model tests: what a base passes, its palette passes, also with latent ids in its prompts.

The tests come from the source distribution of the installed transformers, which pip fetches
(`transformers_checks.py`). docs/transformers_tests.md holds the counts.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

pytest.importorskip("parameterized", reason="transformers' tests import it: pip install parameterized")
from transformers_checks import FAMILIES, download

CHECKS = Path(__file__).with_name("transformers_checks.py")
RUNS = ("palette", "latent_ids")  # with ordinary prompts, and with latent ids in front of them
pytestmark = pytest.mark.timeout(600)

# Tests that a base passes and its palette does not: how it ends there, and why that is right. Each must end so
# wherever the base passes it, so that none can stay here without need.
INCOMPLETE = r"failed: ValueError: The checkpoint .* lacks \d+ tensors of its palette"
EMPTY = r"failed: ValueError: model\.safetensors of .* holds no palette: `embedding_mean` is missing"
DIFFERENCES = {
    "test_can_init_all_missing_weights": (
        # transformers 5.19 has no switch to run it for files without a copyright line
        INCOMPLETE + "|skipped: Not a prioritized model for now",
        "A palette that a checkpoint lacks is refused, not made up.",
    ),
    "test_model_weights_reload_no_missing_tied_weights": (EMPTY, "The same, with every tensor removed."),
    "test_correct_missing_keys": (
        r"failed: ValueError: '.*' is a '.*' checkpoint, not a palette's",
        "A base's checkpoint has no palette; the error names `from_base`, which puts one on it.",
    ),
    "test_model_get_set_embeddings": (
        r"failed: ValueError: The palette decodes to hidden_size=32, but the base's input embedding has width 10",
        "The test sets an embedding of another width, into which no latent fits.",
    ),
    "test_config_check_config_can_be_init_without_params": (
        r"failed: ValueError: `base_config` is None",
        "A palette is on a base. transformers leaves this check out for composite configs that need a part.",
    ),
    "test_init_weights_can_init_buffers": (
        # of all the buffers, the weights alone
        r"failed: AssertionError:.*meta device\):\n`weight` in module `BufferLinear` called from `\w+`\s*\Z",
        "The palette's weights are buffers, so that nothing trains them, and random in a fresh palette; the test "
        "takes every buffer for a constant.",
    ),
    "test_torch_save_load": (
        r"failed: TypeError: 'collections.OrderedDict' object is not callable",
        "A slip in transformers' test: for boolean tensors, which Qwen3 has none of, it calls the state dict.",
    ),
    "test_moe_models_record_router_logits": (
        r"skipped: This model has no sparse experts",
        "It looks for experts in the source file of the model's class, which for a palette is not the base's.",
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def outcomes(request):
    """Outcome and number of model calls of every test, by run."""
    try:
        download()
    except OSError as error:
        pytest.skip(f"transformers' tests could not be fetched, `make transformers-tests` does: {error}")
    done = subprocess.run(
        [sys.executable, str(CHECKS), "run", request.param], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def passed_by(run):
    return {name for name, (outcome, _) in run.items() if outcome == "passed"}


@pytest.mark.parametrize("run", RUNS)
def test_what_a_base_passes_its_palette_passes(outcomes, run):
    base, palette = outcomes["base"], outcomes[run]
    assert base.keys() == palette.keys()
    assert len(passed_by(base)) > 100
    assert not {name: outcome for name, (outcome, _) in base.items() if outcome.startswith("failed")}
    lost = passed_by(base) - passed_by(palette)
    assert not {name: palette[name] for name in lost if name not in DIFFERENCES}


@pytest.mark.parametrize("run", RUNS)
def test_differences_are_those_that_are_explained(outcomes, run):
    different = passed_by(outcomes["base"]) & DIFFERENCES.keys()
    if Version(transformers.__version__) < Version("5.24"):  # its `ConfigTester` lets a config require a part
        different -= passed_by(outcomes[run])
    for name in different:
        pattern, _ = DIFFERENCES[name]
        assert re.match(pattern, outcomes[run][name][0], re.DOTALL), (name, outcomes[run][name])


@pytest.mark.parametrize("run", RUNS)
def test_no_test_passes_a_palette_by(outcomes, run):
    """Tests choose what they do by the names of classes: one that did nothing would pass as well."""
    for name in passed_by(outcomes["base"]) & passed_by(outcomes[run]):
        assert outcomes[run][name][1] >= outcomes["base"][name][1], name

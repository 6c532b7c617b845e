"""transformers' own model tests on a base and on its palette; what `test_transformers_common.py` starts as a process.

transformers' source distribution holds `tests/test_*.py`, but no folder below `tests/`. What those files import from
there gets a stand-in (`STAND_INS`), and each says what is lost by it.

    python tests/transformers_checks.py download      # fetch the tests of the installed version, print where they are
    python tests/transformers_checks.py run qwen3     # print the outcome of every test, as JSON
"""

import collections
import json
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

import torch
import transformers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.auto import modeling_auto

from reasoning_palette.modeling_palette import PaletteConfig, PaletteForCausalLM

SDIST = f"transformers-{transformers.__version__}.tar.gz"
PACKAGE = "transformers_tests"
STAND_INS = {
    # GenerationTesterMixin: the tests of `generate`. Empty; `test_generation.py` holds ours.
    "generation/test_utils.py": "class GenerationTesterMixin: ...",
    # ExportTesterMixin: torch.export, ONNX and ExecuTorch. Empty.
    "exporters/test_export.py": "class ExportTesterMixin: ...",
    # The values that a config without sub-configs must keep.
    "utils/test_configuration_utils.py": "config_common_kwargs = {'output_attentions': True, 'dtype': 'float16'}",
    # Starts the processes of distributed tests, which are left out (`DISTRIBUTED`).
    "distributed_testing_utils.py": "def __getattr__(name): return None",
}
# Tests that start processes, for families that upstream lists by name. Those of the plans stay.
DISTRIBUTED = ("test_tp_forward", "test_tp_backward", "test_tp_generation", "test_fsdp2_", "test_hsdp_")

# As upstream's CausalLMModelTester has them.
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 37,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "qwen3": (Qwen3ForCausalLM, lambda: Qwen3Config(hidden_act="gelu", head_dim=16, **SIZES)),
    "gemma3": (
        Gemma3ForCausalLM,
        lambda: Gemma3TextConfig(head_dim=16, layer_types=["full_attention", "sliding_attention"], **SIZES),
    ),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        lambda: Qwen3MoeConfig(
            hidden_act="gelu", head_dim=16, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, **SIZES
        ),
    ),
}
NUM_LATENT_IDS = 2  # columns of the prompt that hold latent ids in the third run


def palette_config(base_config):
    return PaletteConfig(
        base_config=base_config,
        latent_dim=8,
        encoder_hidden_sizes=[16],
        domains={"math": {"source": 1, "count": 100}},
    )


def download():
    """The source distribution of the installed transformers, fetched once for this environment."""
    folder = Path(sys.prefix) / "share" / "transformers-tests"
    if not (folder / SDIST).is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        command += ["--dest", str(folder), f"transformers=={transformers.__version__}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")
    return folder / SDIST


def unpack(sdist, folder):
    """A package of the tests in `sdist`, with stand-ins for what it does not hold."""
    package = Path(folder) / PACKAGE
    package.mkdir()
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                (package / parts[2]).write_bytes(archive.extractfile(member).read())
    for name, code in STAND_INS.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(code)
    for directory in (package, *(path for path in package.iterdir() if path.is_dir())):
        (directory / "__init__.py").touch()
    sys.path.insert(0, str(folder))


class ModelTester:
    """What the mixins ask a model's tester for."""

    batch_size, seq_length, is_training = 13, 7, True
    num_hidden_layers, num_attention_heads, hidden_size = 2, 2, 32

    def __init__(self, parent, model_class, make_config, holds_latent_ids):
        self.parent = parent
        self.causal_lm_class = model_class
        self.get_config = make_config
        self.holds_latent_ids = holds_latent_ids

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = torch.randint(SIZES["vocab_size"], (self.batch_size, self.seq_length))
        if self.holds_latent_ids:
            codes = torch.randint(2 * config.num_codes, (self.batch_size,))  # the prior's and the domain's
            for position in range(NUM_LATENT_IDS):
                input_ids[:, position] = config.latent_id_base + codes * config.max_prefix_tokens + position
        mask = torch.tril(torch.ones_like(input_ids))
        return config, {"input_ids": input_ids, "attention_mask": mask}


def test_case(name, model_class, make_config, holds_latent_ids=False):
    """A `unittest.TestCase` of all mixins that the source distribution holds, for one model class."""
    from transformers_tests.generation.test_utils import GenerationTesterMixin
    from transformers_tests.test_configuration_common import ConfigTester
    from transformers_tests.test_fsdp_mixin import FSDPTesterMixin
    from transformers_tests.test_modeling_common import ModelTesterMixin
    from transformers_tests.test_tensor_parallel_mixin import TensorParallelTesterMixin
    from transformers_tests.test_training_mixin import TrainingTesterMixin

    def set_up(self):
        torch.manual_seed(0)
        self.model_tester = ModelTester(self, model_class, make_config, holds_latent_ids)
        config = json.loads(make_config().to_json_string())
        inputs = {"base_config": config["base_config"]} if "base_config" in config else {}
        self.config_tester = ConfigTester(self, config_class=type(make_config()), **inputs)

    def config_test(check):
        return lambda self: getattr(self.config_tester, check)()

    checks = [check for check in dir(ConfigTester) if check.startswith(("create_and_test_", "check_"))]
    mixins = (ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin, TensorParallelTesterMixin, FSDPTesterMixin)
    members = {"setUp": set_up, "model_tester": None, "all_model_classes": (model_class,)}
    # One test is for model files with a recent copyright line only, and ours has none.
    members["test_can_init_all_missing_weights_before_2023"] = True
    members |= {f"test_config_{check}": config_test(check) for check in checks}
    members |= {test: None for mixin in mixins for test in dir(mixin) if test.startswith(DISTRIBUTED)}
    return type(name, (*mixins, unittest.TestCase), members)


class Outcomes(unittest.TestResult):
    """Outcome of every test: `"passed"`, `"skipped: why"` or `"failed: why"`; and how often it called the model."""

    def __init__(self, model_class):
        super().__init__()
        self.of_test = {}
        self.calls = collections.Counter()
        self._model_class = model_class

    def startTest(self, test):
        def count(module, args):
            if not torch.compiler.is_compiling():  # a count that grows would be compiled anew at every call
                self.calls[test._testMethodName] += isinstance(module, self._model_class)

        self._hook = torch.nn.modules.module.register_module_forward_pre_hook(count)

    def stopTest(self, test):
        self._hook.remove()

    def addSuccess(self, test):
        self.of_test.setdefault(test._testMethodName, "passed")

    def addSkip(self, test, reason):
        self.of_test.setdefault(self._name(test), f"skipped: {reason}")

    def addFailure(self, test, error):
        kind, value, _ = error
        message = f"failed: {kind.__name__}: {value}"
        self.of_test[self._name(test)] = message

    addError = addFailure

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.addFailure(test, error)

    @staticmethod
    def _name(test):
        return getattr(test, "test_case", test)._testMethodName


def outcomes(case):
    """Outcome and number of model calls of every test."""
    found = Outcomes(case.all_model_classes)
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(found)
    return {name: (outcome, found.calls[name]) for name, outcome in sorted(found.of_test.items())}


def run(family):
    base_class, make_config = FAMILIES[family]
    wrapped_class = type(PaletteForCausalLM.from_base(base_class(make_config())))
    # Upstream's tests tell a language model (which gets labels, which is trained) by the name of its class in here.
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["palette"] = wrapped_class.__name__

    def make_wrapped():
        return palette_config(make_config())

    with tempfile.TemporaryDirectory() as folder:
        unpack(download(), folder)
        return {
            "base": outcomes(test_case("BaseTest", base_class, make_config)),
            "palette": outcomes(test_case("PaletteTest", wrapped_class, make_wrapped)),
            "latent_ids": outcomes(test_case("LatentIdsTest", wrapped_class, make_wrapped, holds_latent_ids=True)),
        }


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    print(json.dumps(run(*arguments)) if command == "run" else download())

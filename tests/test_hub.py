"""
Checkpoints straight from the Hub, in processes that cannot import this package: the stand-in serves them, hub_checks.py
runs there. Folder and Hub are different paths through transformers; test_remote_code.py has the folder's.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_checks import CODE, LENGTH, NEW, PROMPT
from hub_stand_in import HubStandIn
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, load_file, save_file
from trainer_testing import spliced_logits, tiny_base, tiny_palette, tiny_tokenizer

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

CHECKS = Path(__file__).with_name("hub_checks.py")
USERS = {"alice-token": "alice", "bob-token": "bob"}
SIZES = {"tie_word_embeddings": False, "initializer_range": 0.5}
# Would run if anyone trusted the base's repository.
MODELING_OF_BASE = """
import os
from transformers import Qwen3ForCausalLM

open(os.environ["HUB_MARKER"], "w").close()


class UntrustedQwen3ForCausalLM(Qwen3ForCausalLM):
    pass
"""
DOWNLOAD_ATTEMPTS = 6  # of huggingface_hub, for one file


def palette_model(base, folder, palette_only=False, tokenizer=None, **fields):
    model = PaletteForCausalLM.from_base(base, tiny_palette(), tokenizer=tokenizer or tiny_tokenizer(), **fields)
    model.save_pretrained(folder, palette_only=palette_only)
    return model


def make_base(folder, seed):
    tiny_base(seed, **SIZES).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_of_base.UntrustedQwen3ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_of_base.py").write_text(MODELING_OF_BASE)


def make_adapter(folder):
    torch.manual_seed(2)
    model = PaletteForCausalLM.from_base(tiny_base(**SIZES), tiny_palette())
    model.name_or_path = "alice/palette"
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder, save_embedding_layers=False)


def greedy(base, model):
    """The ids that a stock base continues hand-spliced rows with."""
    ids, prefix = list(PROMPT[0]), model.latent_ids(torch.tensor([CODE]), LENGTH)[0].tolist()
    while len(ids) < len(PROMPT[0]) + NEW and ids[-1] != 1:
        ids.append(int(spliced_logits(base, model, prefix, ids)[-1].argmax()))
    return ids


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    make_base(folder / "base", 0)
    make_base(folder / "later", 7)
    with HubStandIn(USERS) as hub:
        revision = hub.put("alice/base", folder / "base")
        hub.put("alice/base", folder / "later")
        named = {"base_model_name_or_path": "alice/base", "base_model_revision": revision}
        model = palette_model(tiny_base(**SIZES), folder / "full")
        palette_model(tiny_base(**SIZES), folder / "palette", palette_only=True, **named)
        larger = tiny_tokenizer()
        larger.add_tokens(["branch"])
        palette_model(tiny_base(7, **SIZES), folder / "branch", tokenizer=larger)
        (folder / "branch" / "trainers" / "of_this_branch.py").write_text("")
        hub.put("alice/Full-0.1", folder / "full")
        hub.put("alice/Full-0.1", folder / "branch", revision="other")
        hub.put("alice/palette", folder / "palette")
        hub.put("bob/private", folder / "full", private=True)
        code = {path: data for path, data in hub.files("alice/Full-0.1").items() if path.endswith(".py")}
        hub.put("alice/many", code)
        hub.put("alice/many", folder / "branch", under="math")
        make_adapter(folder / "adapter")
        hub.put("alice/adapter", folder / "adapter")
        stock = {0: tiny_base(**SIZES), 7: tiny_base(7, **SIZES)}
        adapted = PeftModel.from_pretrained(tiny_base(**SIZES), folder / "adapter").merge_and_unload()
        expected = {name: greedy(base, model) for name, base in {**stock, "adapted": adapted}.items()}
        assert len({tuple(ids) for ids in expected.values()}) == 3
        yield SimpleNamespace(hub=hub, folder=folder, expected=expected, files=hub.files, put=hub.put, fail=hub.fail)


def ask(hub, calls, without="", with_trl=False, offline=False):
    """
    Findings of checks, in a process that cannot import this package. `-S` skips the `.pth` files of editable installs;
    third-party packages come back through PYTHONPATH.
    """
    site = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if any((Path(folder) / "reasoning_palette").is_dir() for folder in site):
        pytest.skip("the package is installed in site-packages itself, where it cannot be hidden from a process")
    environment = {
        **os.environ,
        **hub.hub.environment(hub.folder / "home", "alice-token", offline),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(site)),
        "HUB_CHECKS": json.dumps(calls),
        "HUB_WITHOUT": without,
        "HUB_WITH_TRL": "1" if with_trl else "",
        "HUB_MARKER": str(hub.folder / "marker"),
    }
    output = hub.folder / "findings.json"
    done = subprocess.run(
        [sys.executable, "-S", str(CHECKS), str(output), *calls],
        env=environment,
        cwd=hub.folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def loaded(hub):
    """Loads of every kind, without TRL and PEFT."""
    folder = hub.folder
    calls = {
        "refusal": {"repo": "alice/Full-0.1"},
        "every_auto_class:full": {"repo": "alice/Full-0.1"},
        "every_auto_class:palette": {"repo": "alice/palette"},
        "somewhere:branch": {"repo": "alice/Full-0.1", "revision": "other", "folder": str(folder / "from_branch")},
        "somewhere:subfolder": {"repo": "alice/many", "subfolder": "math", "folder": str(folder / "from_subfolder")},
        "somewhere:private": {"repo": "bob/private", "token": "bob-token", "folder": str(folder / "from_private")},
        "trust_in_the_base": {"repo": "alice/palette", "marker": str(folder / "marker")},
    }
    return ask(hub, calls, without="trl peft")


def test_every_auto_class_and_the_pipeline(hub, loaded):
    full, palette = loaded["every_auto_class:full"], loaded["every_auto_class:palette"]
    assert full["config"] == "PaletteConfig"
    assert full["AutoModelForCausalLM"] == full["AutoModel"] == hub.expected[0]
    assert palette == full
    assert full["math"] != full["code"]

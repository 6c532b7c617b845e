"""Checkpoints in a fresh process that cannot import this package: the code in the folder must be enough."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from trainer_testing import tiny_base, tiny_palette, tiny_tokenizer

from reasoning_palette.modeling_palette import PaletteForCausalLM

IDS = [[5, 6, 7]]
SCRIPT = """
import importlib.util, json, sys
assert importlib.util.find_spec("reasoning_palette") is None
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline

folder, again = sys.argv[1:]
trust = {"trust_remote_code": True}
found = {"config": type(AutoConfig.from_pretrained(folder, **trust)).__name__}
ids = torch.tensor([[5, 6, 7]])
arguments = {"latent": 1048579, "num_prefix_tokens": 4, "max_new_tokens": 8, "do_sample": False}
for auto in (AutoModelForCausalLM, AutoModel):
    model, info = auto.from_pretrained(folder, output_loading_info=True, **trust)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    found[auto.__name__] = model.generate(ids, **arguments).tolist()
found["logits"] = model(torch.cat([model.latent_ids(torch.tensor([3]), 4), ids], 1)).logits[0, -1].tolist()
pipe = pipeline("text-generation", model=folder, **trust)
for domain in ("math", "code"):
    found[domain] = pipe("w3 w4", domain=domain, max_new_tokens=8, do_sample=False)[0]["generated_text"]
model.save_pretrained(again)
reloaded = AutoModelForCausalLM.from_pretrained(again, **trust)
found["again"] = reloaded.generate(ids, **arguments).tolist()
print(json.dumps(found))
"""
REFUSAL = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
"""


def run_without_the_package(script, cache, *arguments):
    """`-S` skips the `.pth` files of editable installs; third-party packages come back through PYTHONPATH."""
    site = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if any((Path(folder) / "reasoning_palette").is_dir() for folder in site):
        pytest.skip("the package is installed in site-packages itself, where it cannot be hidden from a process")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(site)),
        "HF_MODULES_CACHE": str(cache / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, "-S", "-c", script, *map(str, arguments)],
        env=environment,
        cwd=cache,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("palette_only", [False, True], ids=["full", "palette-only"])
def test_a_checkpoint_works_without_the_package(palette_only, tmp_path):
    base = tiny_base(tie_word_embeddings=False, initializer_range=0.5)
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = PaletteForCausalLM.from_base(str(tmp_path / "base"), tiny_palette())
    model.save_pretrained(tmp_path / "checkpoint", palette_only=palette_only)

    done = run_without_the_package(SCRIPT, tmp_path, tmp_path / "checkpoint", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert "not supported for text-generation" not in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    ids = torch.tensor(IDS)
    expected = model.generate(ids, latent=(1 << 20) + 3, num_prefix_tokens=4, max_new_tokens=8, do_sample=False)
    assert found["AutoModelForCausalLM"] == found["AutoModel"] == found["again"] == expected.tolist()
    assert found["config"] == "PaletteConfig"
    logits = model(torch.cat([model.latent_ids(torch.tensor([3]), 4), ids], 1)).logits[0, -1]
    assert torch.equal(torch.tensor(found["logits"]), logits)
    assert found["math"] != found["code"]
    trainers = {path.name for path in (tmp_path / "checkpoint" / "trainers").iterdir()}
    assert trainers == {path.name for path in (tmp_path / "again" / "trainers").iterdir()}


def test_without_trust_the_usual_refusal(tmp_path):
    PaletteForCausalLM.from_base(tiny_base(), tiny_palette()).save_pretrained(tmp_path / "checkpoint")
    done = run_without_the_package(REFUSAL, tmp_path, tmp_path / "checkpoint")
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr

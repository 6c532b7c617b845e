"""Checkpoints in a fresh process that cannot import this package: the code in the folder must be enough."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from entry_imports import completed, entries
from trainer_testing import tiny_base, tiny_palette, tiny_tokenizer
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

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
TRAINING = """
import importlib.util, sys
assert importlib.util.find_spec("reasoning_palette") is None
from datasets import Dataset
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

repo, output = sys.argv[1:]


def shipped(name):
    return get_class_from_dynamic_module(f"trainers/{name}", repo)


common = dict(use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no")
common |= dict(max_steps=2, trust_remote_code=True)
rollouts = dict(per_device_train_batch_size=8, num_generations=4, max_completion_length=6, latent_schedule="constant")
prompts = Dataset.from_list([{"prompt": f"w{n} w2", "completion": " w3 w4"} for n in range(16)])
for kind in ("SFT", "GRPO", "RLOO"):
    file = f"palette_{kind.lower()}_trainer"
    trainer_class, config_class = shipped(f"{file}.Palette{kind}Trainer"), shipped(f"{file}.Palette{kind}Config")
    special = {}
    if kind != "SFT":
        special["reward_funcs"] = lambda completions, **kwargs: [len(set(text.split())) for text in completions]
        special["callbacks"] = [shipped("best_latents.BestLatentsCallback")(min_codes=2)]
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True),
        args=config_class(f"{output}/{kind}", num_prefix_tokens=3, **common, **({} if kind == "SFT" else rollouts)),
        train_dataset=prompts,
        **special,
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    saved = AutoModelForCausalLM.from_pretrained(f"{output}/{kind}", trust_remote_code=True)
    print("DOMAINS", kind, sorted(saved.palette.domains))
"""
# transformers refuses code from a checkpoint that imports what is not installed, unless it does so in a `try`.
INSTALLED = {"torch", "transformers", "huggingface_hub", "numpy", "safetensors"}  # the last three by transformers
INSTALLED_FOR_TRAINING = INSTALLED | {"trl", "accelerate", "datasets", "pyarrow"}  # all by TRL
REFUSAL = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
"""


def run_without_the_package(script, cache, *arguments):
    """
    `-S` skips the `.pth` files of editable installs; third-party packages come back through PYTHONPATH. The code of
    the checkpoint is watched there (quiet_code.py): doing what it may not do makes the return code 70.
    """
    site = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if any((Path(folder) / "reasoning_palette").is_dir() for folder in site):
        pytest.skip("the package is installed in site-packages itself, where it cannot be hidden from a process")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(site)),
        "HF_MODULES_CACHE": str(cache / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    environment["TMPDIR"] = str(cache)
    watched = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import quiet_code; quiet_code.watch()\n"
    return subprocess.run(
        [sys.executable, "-S", "-c", watched + script, *map(str, arguments)],
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


def test_trainers_of_a_checkpoint_train_without_the_package(tmp_path):
    model = PaletteForCausalLM.from_base(tiny_base(), tiny_palette(), tokenizer=tiny_tokenizer())
    model.save_pretrained(tmp_path / "checkpoint")
    done = run_without_the_package(TRAINING, tmp_path, tmp_path / "checkpoint", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert re.findall("^DOMAINS.*", done.stdout, flags=re.MULTILINE) == [
        "DOMAINS SFT ['code', 'math']",
        "DOMAINS GRPO ['code', 'high-reward', 'math']",
        "DOMAINS RLOO ['code', 'high-reward', 'math']",
    ]
    for kind in ("SFT", "GRPO", "RLOO"):
        assert "## Palette" in (tmp_path / "runs" / kind / "README.md").read_text()


def test_without_trust_the_usual_refusal(tmp_path):
    PaletteForCausalLM.from_base(tiny_base(), tiny_palette()).save_pretrained(tmp_path / "checkpoint")
    done = run_without_the_package(REFUSAL, tmp_path, tmp_path / "checkpoint")
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr


@pytest.mark.parametrize(
    ("folder", "installed"), [("modeling_palette", INSTALLED), ("trainers", INSTALLED_FOR_TRAINING)]
)
def test_the_code_asks_for_nothing_that_is_not_installed(folder, installed):
    modules = sorted((Path(__file__).parent.parent / folder).glob("[!_]*.py"))
    asked_for = {module.name: set(get_imports(module)) - sys.stdlib_module_names for module in modules}
    assert len(asked_for) > 20
    assert {name: packages - installed for name, packages in asked_for.items() if packages - installed} == {}


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.stem)
def test_the_first_module_names_all_that_it_leads_to(entry):
    """What test_hub.py shows with downloads that break off."""
    imports = {Path(file).stem for file in get_relative_import_files(entry)}
    assert imports and set(get_relative_imports(entry)) == imports - {entry.stem}, "run python tests/entry_imports.py"
    assert entry.read_text() == completed(entry), "run python tests/entry_imports.py"

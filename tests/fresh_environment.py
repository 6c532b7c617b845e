"""
Checkpoints from the Hub in an environment where this package has never been, made anew:
`python tests/fresh_environment.py [FOLDER]`.

`pip install torch transformers` and nothing else: full and palette-only checkpoints are refused without trust; with
it they are loaded, generate, and serve `pipeline` under two domains and an unmodified base. Then `pip install trl`,
without PEFT: three steps of GRPO with the class from the Hub, a push, and the same logits from what was pushed. Then
`pip install peft`: the same once more, and adapters. The Hub is the tests' stand-in. Generated ids are compared with
those of a stock base that hand-spliced embeddings are put into.

It takes minutes and downloads packages, so it is no part of `make test`; test_hub.py runs the same checks in the
environment of the tests, where those packages are blocked. FOLDER keeps the environment for the next run.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from types import SimpleNamespace

import torch
from card_schema import text_errors
from hub_checks import CODE, LENGTH, NEW, PROMPT
from hub_stand_in import HubStandIn
from test_hub import SIZES, make_adapter, make_base, palette_model
from trainer_testing import spliced_logits, tiny_base

CHECKS = Path(__file__).with_name("hub_checks.py")
FULL, PALETTE = "alice/full", "alice/palette"
OF_TRAINING = ("accelerate", "datasets", "peft", "sklearn", "scipy", "trl", "reasoning_palette")


def make_environment(folder):
    """A virtual environment with pip, as `python -m venv` makes it."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    return python


def install(python, *packages):
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)


def publish(hub, folder):
    """A base, a full and a palette-only checkpoint on it, and an adapter; returns the model and its stock base."""
    make_base(folder / "base", 0)
    revision = hub.put("alice/base", folder / "base")
    named = {"base_model_name_or_path": "alice/base", "base_model_revision": revision}
    model = palette_model(tiny_base(**SIZES), folder / "full", **named)
    palette_model(tiny_base(**SIZES), folder / "palette", palette_only=True, **named)
    hub.put(FULL, folder / "full")
    hub.put(PALETTE, folder / "palette")
    make_adapter(folder / "adapter")
    hub.put("alice/adapter", folder / "adapter")
    return SimpleNamespace(model=model, base=tiny_base(**SIZES))


def continued(published, ids, code, length):
    """The greedy ids that a stock base continues hand-spliced rows with."""
    prefix = published.model.latent_ids(torch.tensor([code]), length)[0].tolist()
    ids = list(ids)
    for _ in range(NEW):
        ids.append(int(spliced_logits(published.base, published.model, prefix, ids)[-1].argmax()))
        if ids[-1] == 1:
            break
    return ids


def text_under(published, domain):
    """What a pipeline must say to "w3 w4" under a domain."""
    model = published.model
    words = model.tokenizer("w3 w4", return_tensors="pt")
    asked = {"domain": domain, "latent_seed": 1, "max_new_tokens": 1, "do_sample": False}
    drawn = model.generate(**words, **asked, return_dict_in_generate=True)
    ids = words.input_ids[0].tolist()
    answer = continued(published, ids, int(drawn.latent_codes), model.config.num_prefix_tokens)[len(ids) :]
    return "w3 w4" + model.tokenizer.decode(answer, skip_special_tokens=True)  # as the pipeline puts them together


def ask(python, hub, folder, calls, with_trl=False):
    """What hub_checks.py finds in the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= hub.environment(folder / "home", "alice-token")
    environment |= {"HUB_CHECKS": json.dumps(calls), "HUB_WITH_TRL": "1" if with_trl else ""}
    output = folder / "findings.json"
    command = [str(python), str(CHECKS), str(output), *calls]
    subprocess.run(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, check=True)
    found = json.loads(output.read_text())
    failed = {name: value["error"] for name, value in found.items() if isinstance(value, dict) and "error" in value}
    if failed:
        sys.exit("\n\n".join(f"{name} FAILED\n{error}" for name, error in failed.items()))
    return found


def expect(what, found, wanted):
    if found != wanted:
        sys.exit(f"FAILED: {what}: found {found!r}, expected {wanted!r}")
    print(f"  {what}: ok", flush=True)


def expect_only(found, *installed):
    expect(f"of {', '.join(OF_TRAINING)} there are: {', '.join(installed) or 'none'}", found, sorted(installed))


def check_inference(python, hub, folder, published):
    full, palette = f"every_auto_class:{FULL}", f"every_auto_class:{PALETTE}"
    calls = {
        "importable": {"names": OF_TRAINING},
        f"refusal:{FULL}": {"repo": FULL},
        f"refusal:{PALETTE}": {"repo": PALETTE},
        full: {"repo": FULL},
        palette: {"repo": PALETTE},
        "on_a_stock_base": {"base": "alice/base", "repo": PALETTE},
        "next_generation": {"repo": FULL, "target": "alice/again", "folder": str(folder / "again")},
    }
    found = ask(python, hub, folder, calls)
    expect_only(found["importable"])
    for repo in (FULL, PALETTE):
        refused = ["Please pass the argument `trust_remote_code=True`" in text for text in found[f"refusal:{repo}"]]
        expect(f"{repo} without trust: refused, with the way out", refused, [True] * 4)
    ids = continued(published, PROMPT[0], CODE, LENGTH)
    for name in (full, palette):
        generated = [found[name]["AutoModelForCausalLM"], found[name]["AutoModel"]]
        expect(f"{name.split(':')[1]} generates what hand-spliced embeddings do", generated, [ids, ids])
        for domain in ("math", "code"):
            said = found[name][domain][0]["generated_text"]
            expect(f"{name.split(':')[1]}, pipeline under {domain!r}", said, text_under(published, domain))
    expect("an unmodified base with `custom_generate`", found["on_a_stock_base"], ids)
    expect("save and push: the ids", found["next_generation"]["ids"], ids)
    lost_or_added = set(found["next_generation"]["saved"]) ^ hub.files(FULL).keys()
    expect("save and push: the files", lost_or_added, set())


def check_training(python, hub, folder, target):
    calls = {
        "importable": {"names": OF_TRAINING},
        "training": {"repo": PALETTE, "target": target, "folder": str(folder / target)},
    }
    found = ask(python, hub, folder, calls, with_trl=True)
    expect("3 steps of GRPO, a push, the same logits", found["training"], {"steps": 3, "moved": True, "same": True})
    code = {path for path in hub.files(FULL) if path.endswith(".py")}
    expect("the code went with the push", code - hub.files(target).keys(), set())
    return found


def main(environment):
    with tempfile.TemporaryDirectory() as name, HubStandIn({"alice-token": "alice"}, text_errors) as hub:
        folder = Path(name)
        python = make_environment(Path(environment) if environment else folder / "venv")
        published = publish(hub, folder)
        print("pip install torch transformers", flush=True)
        install(python, "torch", "transformers")
        check_inference(python, hub, folder, published)
        print("pip install trl", flush=True)
        install(python, "trl")
        found = check_training(python, hub, folder, "alice/trained")
        expect_only(found["importable"], "accelerate", "datasets", "trl")
        print("pip install peft", flush=True)
        install(python, "peft")
        found = check_training(python, hub, folder, "alice/trained-beside-peft")
        expect_only(found["importable"], "accelerate", "datasets", "peft", "trl")
        calls = {"adapters": {"repo": "alice/adapter", "palette": PALETTE}}
        by_peft, on_palette, by_auto = ask(python, hub, folder, calls)["adapters"]
        expect("an adapter, by PEFT on its own and on the palette's model", by_peft, on_palette)
        expect("an adapter, by an auto class", by_auto, str(by_peft[1]))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)

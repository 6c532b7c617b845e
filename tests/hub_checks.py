"""What test_hub.py runs in processes that cannot import this package: `python hub_checks.py OUTPUT CHECK [CHECK ...]`.

Each check runs in a fork of its own, so that no code of a checkpoint is loaded when it starts, and returns what is
written to OUTPUT as JSON: a value, or the error that ended it. Arguments are in HUB_CHECKS, as JSON.
"""

import importlib.util
import json
import os
import socket
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import quiet_code

TRUST = {"trust_remote_code": True}
PROMPT = [[5, 6, 7]]
CODE, LENGTH, NEW = (1 << 20) + 3, 4, 8
GENERATE = {"latent": CODE, "num_prefix_tokens": LENGTH, "max_new_tokens": NEW, "do_sample": False}
ARGUMENTS = json.loads(os.environ.get("HUB_CHECKS", "{}"))
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def only_loopback(event, arguments):
    """Audit hook: nothing may be asked of another machine."""
    if event == "socket.connect" and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        assert arguments[1][0] in ("127.0.0.1", "::1"), f"connects to {arguments[1]}"
    if event == "socket.getaddrinfo":
        assert arguments[0] in ("127.0.0.1", "localhost", None), f"looks {arguments[0]!r} up"


def prompt():
    import torch

    return torch.tensor(PROMPT)


def outcome(function, *arguments, **keywords):
    """The error of a call, or what became of it."""
    try:
        return str(function(*arguments, **keywords))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def do_not_wait():
    """Between attempts, as huggingface_hub does."""
    time.sleep = lambda seconds: None


def load(repo, auto="AutoModelForCausalLM", **keywords):
    import transformers

    return getattr(transformers, auto).from_pretrained(repo, **TRUST, **keywords)


def generated(model):
    return model.generate(prompt(), **GENERATE)[0].tolist()


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


@check
def every_auto_class(repo):
    from transformers import AutoConfig, pipeline

    found = {"config": type(AutoConfig.from_pretrained(repo, **TRUST)).__name__}
    for auto in ("AutoModelForCausalLM", "AutoModel"):
        model, info = load(repo, auto, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        found[auto] = generated(model)
    pipe = pipeline("text-generation", model=repo, **TRUST)
    for domain in ("math", "code"):
        found[domain] = pipe("w3 w4", domain=domain, latent_seed=1, max_new_tokens=NEW, do_sample=False)
    return found


@check
def refusal(repo):
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline

    trust = {"trust_remote_code": False}
    loaders = [auto.from_pretrained for auto in (AutoConfig, AutoModel, AutoModelForCausalLM)]
    found = [outcome(loader, repo, **trust) for loader in loaders]
    return [*found, outcome(pipeline, "text-generation", model=repo, **trust)]


@check
def importable(names):
    return sorted(name for name in names if importlib.util.find_spec(name) is not None)


@check
def on_a_stock_base(base, repo):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    return model.generate(prompt(), custom_generate=repo, **TRUST, **GENERATE)[0].tolist()


@check
def somewhere(repo, folder, **location):
    """A checkpoint that is not at the head of a public repository's main branch."""
    model = load(repo, **location)
    model.save_pretrained(folder)
    return {"ids": generated(model), "words": sorted(model.tokenizer.get_vocab()), "saved": listing(folder)}


@check
def trust_in_the_base(repo, marker):
    found = []
    for trust in ({}, {"base_trust_remote_code": True}):
        model = load(repo, **trust)
        found.append([type(model).__name__, Path(marker).exists(), generated(model)])
    # trusted in the end, it may do as it likes, and is seen
    of_the_base = [line for line in quiet_code.FOUND if "modeling_of_base.py" in line]
    assert of_the_base
    quiet_code.FOUND[:] = [line for line in quiet_code.FOUND if line not in of_the_base]
    return found


@check
def next_generation(repo, target, folder, palette_only=False):
    model = load(repo)
    model.save_pretrained(folder, palette_only=palette_only)
    commit = model.push_to_hub(target, palette_only=palette_only)
    return {"saved": listing(folder), "ids": generated(model), "commit": commit.oid}


@check
def saving_without_the_hub(repo, folder):
    """Saves what was loaded while the trainers cannot be asked for."""
    do_not_wait()
    model = load(repo)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.save_pretrained(folder)
    texts = [str(warning.message) for warning in caught if "trainers" in str(warning.message)]
    return {"ids": generated(model), "warnings": texts, "saved": listing(folder)}


@check
def errors(cases):
    """What loading says, case by case."""
    do_not_wait()
    return [outcome(lambda case=case: generated(load(**case))) for case in cases]


@check
def code_broken_off(repos):
    """Loads after a download of code that was broken off: without the Hub, and with it."""
    do_not_wait()
    attempts = ({}, {"local_files_only": True}, {})
    return [[outcome(lambda: generated(load(repo, **where))) for where in attempts] for repo in repos]  # noqa: B023


@check
def adapters(repo, palette):
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    base = load(palette)
    models = [AutoPeftModelForCausalLM.from_pretrained(repo, **TRUST), PeftModel.from_pretrained(base, repo)]
    found = [[type(model.get_base_model()).__name__, generated(model)] for model in models]
    return [*found, outcome(lambda: generated(AutoModelForCausalLM.from_pretrained(repo, **TRUST)))]


@check
def pushes(repo, folder):
    """Every way to push; what the repository holds is looked up by the test."""
    model = load(repo)
    commits = [
        model.push_to_hub(
            "pushed", private=True, tags="one", commit_message="First", commit_description="Why", max_shard_size="8KB"
        ),
        model.push_to_hub("alice/pushed", palette_only=True, revision="palette"),
        model.push_to_hub("alice/pushed", tags=["two"], create_pr=True),
        model.push_to_hub("alice/pushed", palette_only=True),
        model.save_pretrained(Path(folder) / "saved", push_to_hub=True, repo_id="alice/saved", commit_message="Saved"),
    ]
    commits.append(model.push_to_hub("bob/open", create_pr=True, commit_message="Request"))
    forbidden = outcome(model.push_to_hub, "bob/open")
    model.config.base_model_name_or_path = folder
    model.push_to_hub("alice/full-on-a-folder")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.push_to_hub("alice/on-a-folder", palette_only=True)
    texts = [str(warning.message) for warning in caught if "is published" in str(warning.message)]
    unknown = outcome(model.push_to_hub, "alice/pushed", shards=3)
    model.config.latent_seed += 1
    refused = outcome(model.push_to_hub, "alice/refused")
    oids = [commit and commit.oid for commit in commits]
    return {"commits": oids, "warnings": texts, "unknown": unknown, "refused": refused, "forbidden": forbidden}


@check
def killed_pushes(repo, target, current):
    model = load(repo)
    return killed(lambda: model.push_to_hub(target, palette_only=True), target, current)


def killed(push, target, current):
    """Pushes in processes that are killed at one request after the other, until one lives."""
    from huggingface_hub import HfApi

    found = []
    for step in range(1, 40):
        for moment in ("asked", "done"):
            child = os.fork()
            if child == 0:
                Path(current).write_text(json.dumps({"pid": os.getpid(), "step": step, "moment": moment}))
                push()
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            Path(current).unlink()
            api = HfApi()
            exists = api.repo_exists(target)
            found.append([step, moment, status, api.model_info(target).sha if exists else None])
            if status == 0:
                return found
    raise AssertionError("no push came to its end")


@check
def failing_pushes(repo, cases):
    from huggingface_hub import HfApi

    do_not_wait()
    model = load(repo)
    said = [outcome(model.push_to_hub, target, **keywords) for target, keywords in cases]
    return [[text, HfApi().model_info(target).sha] for text, (target, _) in zip(said, cases, strict=True)]


@check
def training(repo, target, folder):
    """A script of someone who has transformers and TRL."""
    import torch
    from datasets import Dataset
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    def shipped(kind):
        return get_class_from_dynamic_module(f"trainers/palette_{kind.lower()}_trainer.Palette{kind}Trainer", repo)

    trainer_class = shipped("GRPO")
    for other in (shipped("SFT"), shipped("RLOO")):  # what they share is loaded once
        (mixin,) = [ancestor for ancestor in other.__mro__ if ancestor.__name__ == "PaletteTrainerMixin"]
        assert issubclass(trainer_class, mixin)
        assert other.config_class.__name__ == other.__name__.replace("Trainer", "Config")
    model = load(repo)
    before = model.lm_head.weight.detach().clone()
    trainer = trainer_class(
        model=model,
        reward_funcs=lambda completions, **kwargs: [float(len(set(text.split()))) for text in completions],
        args=trainer_class.config_class(
            folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            max_steps=3,
            learning_rate=1e-2,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=6,
            num_prefix_tokens=3,
            latent_schedule="constant",
            trust_remote_code=True,
            hub_model_id=target,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"w{n} w2"} for n in range(16)]),
    )
    trainer.train()
    trainer.push_to_hub()
    trainer.model.eval()
    ids = torch.cat([model.latent_ids(torch.tensor([CODE]), LENGTH), prompt()], 1)
    with torch.no_grad():
        trained, again = model(ids).logits, load(target)(ids).logits
    moved = not torch.equal(before, model.lm_head.weight)
    return {"steps": trainer.state.global_step, "moved": moved, "same": torch.equal(trained, again)}


@check
def pushes_of_a_training(repo, target, folder, current):
    """A training that pushes at every step, then once more, in processes that are killed."""
    from datasets import Dataset
    from huggingface_hub import HfApi
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    trainer_class = get_class_from_dynamic_module("trainers/palette_sft_trainer.PaletteSFTTrainer", repo)
    model = load(repo)
    model.config.base_model_name_or_path = folder  # known to this machine alone
    trainer = trainer_class(
        model=model,
        args=trainer_class.config_class(
            f"{folder}/in-steps",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            max_steps=3,
            save_strategy="steps",
            save_steps=1,
            learning_rate=1e-2,
            trust_remote_code=True,
            push_to_hub=True,
            hub_model_id=target,
            hub_strategy="checkpoint",
            hub_always_push=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"w{n} w2", "completion": " w3 w4"} for n in range(16)]),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    texts = [str(warning.message) for warning in caught if "A push during" in str(warning.message)]
    *commits, _ = [commit.commit_id for commit in HfApi().list_repo_commits(target)]
    trained = [load(target, revision=commit) for commit in reversed(commits)]
    model.lm_head.weight.data.zero_()
    return {
        "warnings": texts,
        "ids": [generated(one) for one in trained],
        "weights": [float(one.lm_head.weight.double().sum()) for one in trained],
        "killed": killed(trainer.push_to_hub, target, current),
    }


def run(function, arguments, output):
    """A check in a fork of its own."""
    child = os.fork()
    if child == 0:
        try:
            found = function(**arguments)
        except BaseException:
            found = {"error": traceback.format_exc()}
        if quiet_code.FOUND:
            found = {"error": "\n".join(quiet_code.FOUND)}
        Path(output).write_text(json.dumps(found))
        os._exit(0)
    os.waitpid(child, 0)
    return json.loads(Path(output).read_text())


if __name__ == "__main__":
    assert importlib.util.find_spec("reasoning_palette") is None
    for name in os.environ.get("HUB_WITHOUT", "").split():
        sys.modules[name] = None
    sys.addaudithook(only_loopback)
    tempfile.tempdir = os.path.dirname(os.environ["HF_HOME"])  # where the code of checkpoints may write
    quiet_code.watch(tempfile.tempdir)
    import torch  # noqa: F401
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline  # noqa: F401 (once for all forks)

    if "trl" not in sys.modules and os.environ.get("HUB_WITH_TRL"):
        import trl  # noqa: F401
        from trl import GRPOTrainer, RLOOTrainer, SFTTrainer  # noqa: F401
    transformers.logging.set_verbosity_error()
    output, *calls = sys.argv[1:]
    findings = {}
    for call in calls:
        name = call.partition(":")[0]
        findings[call] = run(CHECKS[name], ARGUMENTS[call], f"{output}.part")
        Path(output).write_text(json.dumps(findings))

"""
Checkpoints straight from the Hub, in processes that cannot import this package: the stand-in serves them, and
hub_checks.py runs there. Folder and Hub are two paths through transformers; test_remote_code.py has the folder's.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from card_schema import text_errors
from hub_checks import CODE, LENGTH, NEW, PROMPT
from hub_stand_in import HubStandIn
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, save
from trainer_testing import spliced_logits, tiny_base, tiny_palette, tiny_tokenizer

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

pytestmark = pytest.mark.timeout(600)  # nearly all of it in fixtures
CHECKS = Path(__file__).with_name("hub_checks.py")
OF_TRAINING = "trl peft datasets accelerate sklearn scipy"  # what inference has no need of
USERS = {"alice-token": "alice", "bob-token": "bob"}
SIZES = {"tie_word_embeddings": False, "initializer_range": 0.5, "dtype": "float32"}
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
    with HubStandIn(USERS, text_errors) as hub:
        revision = hub.put("alice/base", folder / "base")
        hub.put("alice/base", folder / "later")
        named = {"base_model_name_or_path": "alice/base", "base_model_revision": revision}
        model = palette_model(tiny_base(**SIZES), folder / "full", **named)
        palette_model(tiny_base(**SIZES), folder / "palette", palette_only=True, **named)
        larger = tiny_tokenizer()
        larger.add_tokens(["branch"])
        palette_model(tiny_base(7, **SIZES), folder / "branch", tokenizer=larger)
        (folder / "branch" / "trainers" / "of_this_branch.py").write_text("NAME = 'branch'\n")
        with (folder / "branch" / "trainers" / "best_latents.py").open("a") as module:
            module.write("\nfrom .of_this_branch import NAME\n")
        hub.put("alice/Full-0.1", folder / "full")
        hub.put("alice/Full-0.1", folder / "branch", revision="other")
        hub.put("alice/palette", folder / "palette")
        for name in ("bob/private", "bob/closed"):
            hub.put(name, folder / "full", private=True)
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
    return Findings(json.loads(output.read_text()))


class Findings(dict):
    """What checks found, by check; a check that failed fails who asks for it."""

    def __getitem__(self, name):
        found = super().__getitem__(name)
        if isinstance(found, dict) and "error" in found:
            pytest.fail(f"{name}: {found['error']}")
        return found


class Killer:
    """Kills a pushing process when it has sent a given number of requests: before or after they have been done."""

    def __init__(self, current):
        self.current, self.seen = current, {}

    def __call__(self, moment):
        if not self.current.exists():
            return False
        process = json.loads(self.current.read_text())
        key = process["pid"], moment
        self.seen[key] = self.seen.get(key, 0) + 1
        if process["moment"] != moment or self.seen[key] != process["step"]:
            return False
        os.kill(process["pid"], signal.SIGKILL)
        return True


# Modules that are imported by modules that are imported by the first one.
HALF_CODE = ("slot_decoder", "latent_prefix", "kept_card")
AUTO_CLASSES = {"every_auto_class:full": "alice/Full-0.1", "every_auto_class:palette": "alice/palette"}
# Repositories that fail: method and path of the request, what goes wrong with it, how often.
FAULTS = [
    ("GET", "alice/unreachable/(revision/[0-9a-f]{40}|tree)", 503, 1000),
    ("GET", "alice/broken-off/.*model.safetensors", "hang up", DOWNLOAD_ATTEMPTS),
    ("GET", "alice/half-palette/.*palette.safetensors", "hang up", DOWNLOAD_ATTEMPTS),
    ("GET", "alice/cut/.*palette.safetensors", "cut", 2),
    ("GET", "alice/cut/.*latent_codes.py", "cut", 1),
    ("POST", "alice/fail-preupload/preupload", 500, 1000),
    *(("GET", f"alice/half-{module}/.*/{module}.py", "hang up", DOWNLOAD_ATTEMPTS) for module in HALF_CODE),
    ("POST", "alice/fail-commit/commit", 500, 1000),
    ("POST", "alice/fail-hang-up/commit", "hang up", 1000),
    ("POST", "alice/fail-lose/commit", "lose", 1),
]
AT_SECOND_ATTEMPT = ("broken-off", "half-palette", "cut")
FAILING = [path.split("/")[1] for _, path, *_ in FAULTS if "fail-" in path]
ERRORS = [
    ({"repo": "alice/lacking"}, r"OSError: alice/lacking does not appear to have a file named palette\.safetensors"),
    ({"repo": "alice/Full-0.1", "revision": "nope"}, "OSError: nope is not a valid git identifier"),
    ({"repo": "alice/nowhere"}, "OSError: alice/nowhere is not a local folder and is not a valid model identifier"),
    ({"repo": "bob/closed"}, "OSError: bob/closed is not a local folder and.*private repository.*pass a token"),
    ({"repo": "bob/closed", "token": "no-such-token"}, "OSError: .*401"),
    ({"repo": "alice/misfit"}, "ValueError: .*decodes to hidden_size=16, but the base's input embedding has width 32"),
    ({"repo": "alice/baseless"}, "OSError: alice/no-such-base is not a local folder and is not a valid model"),
    ({"repo": "alice/broken-off"}, "OSError|RemoteProtocolError"),
    ({"repo": "alice/half-palette"}, "OSError: palette.safetensors of 'alice/half-palette' could not be downloaded"),
]


@pytest.fixture(scope="module")
def found(hub):
    """What the checks find with transformers and torch alone."""
    folder, full = hub.folder, hub.folder / "full"
    for name in ("unreachable", "broken-off", "killed", *(f"half-{module}" for module in HALF_CODE), *FAILING):
        hub.put(f"alice/{name}", full)
    for name in ("cut", "half-palette"):
        hub.put(f"alice/{name}", folder / "palette")
    palette = {path: data for path, data in hub.files("alice/palette").items() if path != "palette.safetensors"}
    hub.put("alice/lacking", palette)
    narrow = PaletteVAE(16, latent_dim=4, hidden_sizes=(16,))
    for domain in ("math", "code"):
        narrow.fit_domain(domain, torch.randn(9, 4))
    hub.put("alice/misfit", {**palette, "palette.safetensors": save(narrow.state_dict(), {"format": "pt"})})
    config = json.loads(palette["config.json"])
    config["base_model_name_or_path"] = "alice/no-such-base"
    hub.put("bob/open", {"theirs.txt": b""})
    hub.put("alice/baseless", hub.files("alice/palette"))
    hub.put("alice/baseless", {"config.json": json.dumps(config).encode()})

    cases = [case for case, _ in ERRORS]
    calls = {
        "refusal": {"repo": "alice/Full-0.1"},
        **{name: {"repo": repo} for name, repo in AUTO_CLASSES.items()},
        "somewhere:branch": {"repo": "alice/Full-0.1", "revision": "other", "folder": str(folder / "from_branch")},
        "somewhere:subfolder": {"repo": "alice/many", "subfolder": "math", "folder": str(folder / "from_subfolder")},
        "somewhere:private": {"repo": "bob/private", "token": "bob-token", "folder": str(folder / "from_private")},
        "trust_in_the_base": {"repo": "alice/palette", "marker": str(folder / "marker")},
        **{
            f"next_generation:{kind}-{number}": {
                "repo": first if number == 2 else f"alice/{kind}-{number - 1}",
                "target": f"alice/{kind}-{number}",
                "folder": str(folder / f"{kind}-{number}"),
                "palette_only": kind == "palette",
            }
            for kind, first in (("full", "alice/Full-0.1"), ("palette", "alice/palette"))
            for number in (2, 3)
        },
        "saving_without_the_hub": {"repo": "alice/unreachable", "folder": str(folder / "without_the_hub")},
        "errors": {"cases": [*cases, *({"repo": f"alice/{name}"} for name in AT_SECOND_ATTEMPT)]},
        "code_broken_off": {"repos": [f"alice/half-{module}" for module in HALF_CODE]},
        "pushes": {"repo": "alice/Full-0.1", "folder": str(folder)},
        "killed_pushes": {
            "repo": "alice/palette",
            "target": "alice/killed",
            "current": str(folder / "current"),
        },
        "failing_pushes": {"repo": "alice/palette", "cases": [[f"alice/{name}", {}] for name in FAILING]},
    }
    with contextlib.ExitStack() as faults:
        faults.enter_context(hub.fail(".*", ".*", Killer(folder / "current"), 10**9))
        (folder / "saved").mkdir()
        (folder / "saved" / "not_of_the_checkpoint.txt").write_text("")
        for fault in FAULTS:
            faults.enter_context(hub.fail(*fault))
        return ask(hub, calls, without=OF_TRAINING)


def test_every_auto_class_and_the_pipeline(hub, found):
    full, palette = found["every_auto_class:full"], found["every_auto_class:palette"]
    assert full["config"] == "PaletteConfig"
    assert full["AutoModelForCausalLM"] == full["AutoModel"] == hub.expected[0]
    assert palette == full
    assert full["math"] != full["code"]


def test_without_trust_the_usual_refusal(found):
    for text in found["refusal"]:
        assert "Please pass the argument `trust_remote_code=True`" in text


def test_branches_subfolders_and_private_repositories(hub, found):
    """What is saved again has the trainers and the tokenizer of the very commit that was loaded."""
    words = set(tiny_tokenizer().get_vocab())
    branch, subfolder, private = (found[f"somewhere:{name}"] for name in ("branch", "subfolder", "private"))
    assert branch["ids"] == subfolder["ids"] == hub.expected[7]
    assert set(branch["words"]) == set(subfolder["words"]) == words | {"branch"}
    assert private["ids"] == hub.expected[0]
    assert set(private["words"]) == words
    assert branch["saved"] == sorted(hub.files("alice/Full-0.1", "other"))
    assert private["saved"] == sorted(hub.files("bob/private"))
    assert set(subfolder["saved"]) == {path.removeprefix("math/") for path in hub.files("alice/many")} - {
        "trainers/of_this_branch.py"  # code is the repository's, not the subfolder's
    }


def test_code_of_the_base_runs_only_where_the_base_is_trusted(hub, found):
    assert found["trust_in_the_base"] == [
        ["PaletteQwen3ForCausalLM", False, hub.expected[0]],
        ["PaletteUntrustedQwen3ForCausalLM", True, hub.expected[0]],
    ]


@pytest.mark.parametrize("kind", ["full", "palette"])
def test_three_generations_are_the_same(hub, found, kind):
    first = hub.files("alice/Full-0.1" if kind == "full" else "alice/palette")
    assert sum(path.startswith("trainers/") for path in first) > 20
    previous = first
    for number in (2, 3):
        generation = found[f"next_generation:{kind}-{number}"]
        files = hub.files(f"alice/{kind}-{number}")
        assert generation["ids"] == hub.expected[0]
        assert generation["saved"] == sorted(first)
        assert set(files) == {*first, "README.md"}
        for path in first:
            assert content_of(path, files) == content_of(path, previous), path
        previous = files


def content_of(path, files):
    """What a file says, without what transformers adds when a base or a tokenizer is loaded for the first time."""
    if path.endswith(".safetensors"):
        return {name: (tensor.dtype, tensor.tolist()) for name, tensor in load(files[path]).items()}
    if not path.endswith("config.json"):
        return files[path]
    content = json.loads(files[path])
    for name in ("architectures", "auto_map"):
        content.get("base_config", {}).pop(name, None)
    for name in ("is_local", "local_files_only"):
        content.pop(name, None)
    return content


def test_no_token_is_written(hub, found):
    assert found["somewhere:private"]["saved"]
    written = [path for path in hub.folder.rglob("*") if path.is_file()]
    assert len(written) > 100
    assert not [path for path in written if b"bob-token" in path.read_bytes()]


def test_trainers_that_cannot_be_reached_are_missed_and_nothing_else(hub, found):
    """A training must not be lost because the Hub is away."""
    saving = found["saving_without_the_hub"]
    assert saving["ids"] == hub.expected[0]
    (text,) = saving["warnings"]
    assert "The trainers were not copied into" in text
    assert "'alice/unreachable' could not be read at" in text
    assert "Service Unavailable" in text
    imported = {path for path in hub.files("alice/unreachable") if "/" not in path} - {"custom_generate.py"}
    assert set(saving["saved"]) == imported


def test_what_cannot_be_loaded_says_why(hub, found):
    texts = found["errors"]
    for (case, pattern), text in zip(ERRORS, texts, strict=False):
        assert re.match(pattern, text, re.DOTALL), (case, text)
    # What was broken off leaves nothing behind that a second attempt would trip over.
    assert texts[len(ERRORS) :] == [str(hub.expected[0])] * len(AT_SECOND_ATTEMPT)


def test_code_whose_download_broke_off(hub, found):
    """What is missing is missed by name, and the next attempt is complete; see entry_imports.py."""
    assert len(found["code_broken_off"]) == len(HALF_CODE)
    for first, offline, again in found["code_broken_off"]:
        assert re.match("OSError|RemoteProtocolError", first), first
        assert re.match("OSError: .*couldn't find", offline) and "FileNotFoundError" not in offline, offline
        assert again == str(hub.expected[0])


def names_no_folder(hub, repo):
    """Whether no file of any commit names a folder of this machine."""
    commits = hub.hub.repositories[repo].commits.values()
    return not any(str(hub.folder).encode() in data for commit in commits for data in commit.files.values())


def commit_of(hub, repo, oid):
    return hub.hub.repositories[repo].commits[oid]


def test_push_to_hub_takes_what_transformers_takes(hub, found):
    pushes = found["pushes"]
    first, branch, request, main = pushes["commits"][:4]
    repository = hub.hub.repositories["alice/pushed"]
    assert repository.private
    assert list(repository.refs) == ["refs/heads/main", "refs/heads/palette", "refs/pr/1"]
    assert [repository.refs[ref] for ref in repository.refs] == [main, branch, request]
    assert commit_of(hub, "alice/pushed", first).message == "First"
    assert commit_of(hub, "alice/pushed", main).message == "Upload PaletteQwen3ForCausalLM"

    code = {path for path in hub.files("alice/Full-0.1") if path.endswith(".py")}
    full = set(hub.files("alice/pushed", first))
    assert code < full
    assert {"config.json", "tokenizer.json", "README.md", "model.safetensors.index.json"} < full
    card = hub.files("alice/pushed", first)["README.md"].decode()
    assert "- one\n" in card
    assert "- two\n" in hub.files("alice/pushed", request)["README.md"].decode()
    # One commit each, and the weights of the other kind are gone with it.
    assert commit_of(hub, "alice/pushed", branch).parent == first
    assert commit_of(hub, "alice/pushed", main).parent == first
    palette = set(hub.files("alice/pushed", main))
    assert {path for path in palette if "safetensors" in path} == {"palette.safetensors"}
    assert palette == set(hub.files("alice/pushed", branch))
    assert {path for path in hub.files("alice/pushed", request) if "safetensors" in path} == {"model.safetensors"}

    saved = hub.files("alice/saved")
    assert set(saved) == {*hub.files("alice/Full-0.1"), "README.md"}
    assert "not_of_the_checkpoint.txt" not in saved
    of_another = hub.hub.repositories["bob/open"]
    assert of_another.refs["refs/pr/1"] == pushes["commits"][-1]
    assert of_another.commits[pushes["commits"][-1]].message == "Request"
    assert list(hub.files("bob/open")) == ["theirs.txt"]
    assert "403" in pushes["forbidden"]
    (text,) = pushes["warnings"]
    assert text.startswith("The palette is published without the name of its base: ")
    assert "is a folder of this machine" in text and "Publish that model too" in text
    for name in ("on-a-folder", "full-on-a-folder"):
        config = json.loads(hub.files(f"alice/{name}")["config.json"])
        assert config["base_model_name_or_path"] is config["base_model_revision"] is None
        assert names_no_folder(hub, f"alice/{name}")
    assert "unexpected keyword argument 'shards'" in pushes["unknown"]
    assert "codes drawn so far would lose their meaning" in pushes["refused"]
    assert "alice/refused" not in hub.hub.repositories


def test_a_killed_push_leaves_the_old_or_the_new_state(hub, found):
    repository = hub.hub.repositories["alice/killed"]
    *killed, last = found["killed_pushes"]
    assert len(killed) >= 10
    assert all(status == -signal.SIGKILL for _, _, status, _ in killed)
    assert last[2] == 0
    _, old, *new = repository.commits
    assert len(new) == 1
    states = [state for *_, state in found["killed_pushes"]]
    assert set(states) == {old, *new}
    assert states == sorted(states, key=[old, *new].index)
    assert set(hub.files("alice/killed", old)) == set(hub.files("alice/Full-0.1"))
    files = hub.files("alice/killed")
    assert set(files) == {*hub.files("alice/palette"), "README.md"}
    assert files["palette.safetensors"] == hub.files("alice/palette")["palette.safetensors"]


def test_a_push_that_the_hub_fails_leaves_the_old_or_the_new_state(hub, found):
    said = dict(zip(FAILING, found["failing_pushes"], strict=True))
    for name, (text, state) in said.items():
        _, old, *new = hub.hub.repositories[f"alice/{name}"].commits
        if name == "fail-lose":  # it was done, and the answer was lost
            assert (state, len(new)) == (new[-1], 1)
            assert "RemoteProtocolError" in text
            assert set(hub.files(f"alice/{name}")) == {*hub.files("alice/Full-0.1"), "README.md"}
        else:
            assert state == old
            assert not new
            assert re.match("HfHubHTTPError: Server error '500|RemoteProtocolError", text), text


def test_offline_after_a_first_load(hub, found):
    online = found["every_auto_class:full"], found["every_auto_class:palette"]
    asked = len(hub.hub.requests)
    calls = {name: {"repo": repo} for name, repo in AUTO_CLASSES.items()}
    offline = ask(hub, calls, without=OF_TRAINING, offline=True)
    assert (offline["every_auto_class:full"], offline["every_auto_class:palette"]) == online
    assert len(hub.hub.requests) == asked


@pytest.fixture(scope="module")
def trained(hub):
    calls = {
        "adapters": {"repo": "alice/adapter", "palette": "alice/palette"},
        "training": {"repo": "alice/palette", "target": "alice/trained", "folder": str(hub.folder / "runs")},
        "pushes_of_a_training": {
            "repo": "alice/palette",
            "target": "alice/in-steps",
            "folder": str(hub.folder),
            "current": str(hub.folder / "current"),
        },
    }
    hub.put("alice/in-steps", hub.folder / "palette")  # of another kind than what the training pushes
    refused = hub.fail("POST", "alice/in-steps/commit", 403, 1)
    with hub.fail(".*", ".*", Killer(hub.folder / "current"), 10**9), refused:
        return ask(hub, calls, with_trl=True)


def test_an_adapter_finds_its_palette_and_the_palette_its_base(hub, trained):
    by_peft, on_palette, by_auto = trained["adapters"]
    assert by_peft == on_palette == ["PaletteQwen3ForCausalLM", hub.expected["adapted"]]
    assert by_auto == str(hub.expected["adapted"])


def test_trainers_from_the_hub_train_publish_and_load(hub, trained):
    assert trained["training"] == {"steps": 3, "moved": True, "same": True}
    files = hub.files("alice/trained")
    assert {path for path in files if path.endswith(".py")} >= {
        path for path in hub.files("alice/Full-0.1") if path.endswith(".py")
    }
    assert "## Palette" in files["README.md"].decode()


def test_every_push_of_a_training_is_a_whole_checkpoint(hub, trained):
    """At its first step the Hub refuses the push."""
    found = trained["pushes_of_a_training"]
    _, old, second, third, *_ = hub.hub.repositories["alice/in-steps"].commits.values()
    (text,) = found["warnings"]
    assert "A push during the training failed, and alice/in-steps stayed as it was: HfHubHTTPError" in text
    assert "403" in text
    assert found["ids"][0] == hub.expected[0] and len(found["ids"]) == 3
    assert len(set(found["weights"])) == 3
    code = {path for path in hub.files("alice/Full-0.1") if path.endswith(".py")}
    for commit, message in ((second, "Training in progress, step 2"), (third, "Training in progress, step 3")):
        assert commit.message == message
        assert code | {"config.json", "model.safetensors", "tokenizer.json", "README.md"} < commit.files.keys()
        assert {"palette.safetensors", "custom_generate/generate.py"} < old.files.keys()
        assert not {"palette.safetensors", "custom_generate/generate.py"} & commit.files.keys()
        assert {"last-checkpoint/trainer_state.json", "last-checkpoint/optimizer.pt"} < commit.files.keys()
        assert commit.files["last-checkpoint/model.safetensors"] == commit.files["model.safetensors"]
        assert not [path for path in commit.files if path.endswith("training_args.bin")]
    assert names_no_folder(hub, "alice/in-steps")


def test_a_killed_push_of_a_trainer_leaves_the_old_or_the_new_state(hub, trained):
    *killed, last = trained["pushes_of_a_training"]["killed"]
    repository = hub.hub.repositories["alice/in-steps"]
    old, new = list(repository.commits)[-2:]
    assert len(killed) >= 8
    assert all(status == -signal.SIGKILL for _, _, status, _ in killed) and last[2] == 0
    states = [state for *_, state in (*killed, last)]
    assert set(states) == {old, new}
    assert states == sorted(states, key=[old, new].index)
    assert repository.commits[new].files["model.safetensors"] != repository.commits[old].files["model.safetensors"]

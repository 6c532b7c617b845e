"""09_push_to_hub and the cards of pushes, on the stand-in of the Hub: a short run of the demo, published and used."""

import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from card_schema import card_errors, text_errors
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError

from reasoning_palette.modeling_palette import PaletteForCausalLM, checkpoint_commit
from reasoning_palette.modeling_palette.palette_card import split_sections

ROOT = Path(__file__).parent.parent
PROMPT = "numbers 6 4 3 target 21"
MEASURED = ("Traces and licences", "Palette VAE", "Latent map", "Accuracy", "Citation")
push_to_hub = importlib.import_module("09_push_to_hub")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's stages at few steps: VAE, map, evaluation."""
    folder = tmp_path_factory.mktemp("demo")
    train_vae = importlib.import_module("02_train_vae")
    changed = {"output_dir": str(folder / "palette"), "max_steps": 30, "disable_tqdm": True, "use_cpu": True}
    settings = train_vae.PaletteVAEConfig(**{**train_vae.DEMO_SETTINGS, **changed})
    train_vae.main(train_vae.VAEArguments(base=str(ROOT / "examples/countdown_base"), num_traces=300), settings)
    maps = importlib.import_module("03_map_latents")
    maps.main(
        maps.MapArguments(str(folder / "palette"), num_traces=120, num_mapped=9, output_dir=str(folder / "maps"))
    )
    evaluate = importlib.import_module("06_evaluate")
    models = [str(ROOT / "examples/countdown_base"), str(folder / "palette")]
    output = str(folder / "evaluation")
    evaluate.main(evaluate.EvaluateArguments(models, output, num_problems=4, num_samples=2, num_prefix_tokens=3))
    return folder


def arguments(demo, **more):
    given = {
        "model": f"{demo}/palette",
        "training": f"{demo}/palette/training.json",
        "maps": f"{demo}/maps",
        "evaluation": f"{demo}/evaluation",
        **more,
    }
    return [word for name, value in given.items() for word in ([f"--{name}", str(value)] if value else [f"--{name}"])]


def run(hub, *command, without_the_package=False):
    """A process that takes the stand-in for the Hub. `-S` skips the `.pth` files of editable installs."""
    site = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if without_the_package and any((Path(folder) / "reasoning_palette").is_dir() for folder in site):
        pytest.skip("the package is installed in site-packages itself, where it cannot be hidden from a process")
    environment = {**os.environ, **hub.hub.environment(hub.folder / "home", "alice-token")}
    if without_the_package:
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(site))
        command = ("-S", *command)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        cwd=hub.folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(hub, task, *given, without_the_package=False):
    output = hub.folder / "found.json"
    script = ROOT / "tests" / "card_pushes.py"
    run(hub, script, task, output, json.dumps(given), without_the_package=without_the_package)
    return json.loads(output.read_text())["found"]


@pytest.fixture(scope="module")
def hub(demo, tmp_path_factory):
    """The palette, published alone and on its base; the base is there too, with a card that names its licence."""
    folder = tmp_path_factory.mktemp("hub")
    with HubStandIn({"alice-token": "alice"}, text_errors) as stand_in:
        stand_in.put("alice/countdown-base", {"README.md": b"---\nlicense: apache-2.0\n---\n# Base\n"})
        revision = stand_in.put("alice/countdown-base", ROOT / "examples" / "countdown_base")
        found = SimpleNamespace(hub=stand_in, folder=folder, revision=revision)
        base = {"base_id": "alice/countdown-base", "base_revision": revision}
        alone = arguments(demo, repo_id="alice/palette", palette_only="", **base)
        ask(found, "publish", alone, arguments(demo, repo_id="alice/full", **base))
        yield found


def card_of(hub, repo, folder):
    (folder / "README.md").write_bytes(hub.hub.files(repo)["README.md"])
    assert card_errors(folder / "README.md") == []
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("repo", ["alice/palette", "alice/full"])
def test_what_is_published(hub, demo, repo, tmp_path):
    card = card_of(hub, repo, tmp_path)
    assert str(demo) not in card.content and str(ROOT) not in card.content
    assert all(str(demo) not in data.decode(errors="ignore") for data in hub.hub.files(repo).values())
    assert card.data.license == "apache-2.0" and card.data.base_model == "alice/countdown-base"
    assert card.data.base_model_relation == ("adapter" if repo == "alice/palette" else "finetune")
    sections = split_sections(card.text)
    assert list(sections) == ["", "Palette", "Usage", *MEASURED[:-1], "Limits", "Citation"]
    figures = json.loads((demo / "palette" / "training.json").read_text())["figures"]
    assert f"| {figures['eval_kl']:.1f} | {figures['eval_active_units']} of 64 |" in sections["Palette VAE"]
    probe = json.loads((demo / "maps" / "latent_map.json").read_text())
    assert f"accuracy {probe['accuracy']:.3f}" in sections["Latent map"]
    result = json.loads((demo / "evaluation" / "palette-seed0.json").read_text())
    for method in result["methods"]:
        name, at_2 = method["method"]["name"], method["pass_at_k"]["2"]
        (row,) = re.findall(rf"^\| {re.escape(name)} \| \S+ \| ({method['mean_at_1']:.3f}.*) \|$", card.text, re.M)[:1]
        assert row.split(" | ")[1] == f"{at_2:.3f}"
    assert "`countdown_base`, seed 0" in sections["Accuracy"]
    values = [entry.metric_value for entry in card.data.eval_results]
    assert values == [round(method["mean_at_1"], 6) for method in result["methods"]]
    files = hub.hub.files(repo)
    shown = re.findall(r"\]\((figures/[^)]+)\)", card.text)
    assert set(shown) == {name for name in files if name.startswith("figures/")} and len(shown) == 4


@pytest.mark.parametrize("repo", ["alice/palette", "alice/full"])
def test_the_snippets_pin_the_commit_of_the_weights(hub, repo, tmp_path):
    repository = hub.hub.repositories[repo]
    head = repository.commits[repository.refs["refs/heads/main"]]
    weights = "palette.safetensors" if repo == "alice/palette" else "model.safetensors"
    assert head.files[weights] == repository.commits[head.parent].files[weights]
    assert "not pinned" in repository.commits[head.parent].files["README.md"].decode()
    text = card_of(hub, repo, tmp_path).text
    assert text.count(f'revision = "{head.parent}"\n') == len(re.findall("```python", text))
    assert "not pinned" not in text


@pytest.mark.slow
def test_every_snippet_runs_without_the_package(hub, demo):
    model = PaletteForCausalLM.from_pretrained(demo / "palette")
    inputs = model.tokenizer(PROMPT, return_tensors="pt")
    expected = ""
    for domain in list(model.palette.domains)[:2]:
        ids = model.generate(**inputs, domain=domain, latent_seed=0, do_sample=False, max_new_tokens=60)
        expected += model.tokenizer.decode(ids[0], skip_special_tokens=True) + "\n"
    for repo, found in ask(hub, "snippets", "alice/palette", "alice/full", without_the_package=True).items():
        own, pipeline, *rest, trainers = found
        assert own["printed"] == expected
        assert pipeline["printed"].replace(" ", "") == expected.replace(" ", "")  # it decodes the answer apart
        assert own["replayed"] is True
        assert own["classes"] == ["PaletteQwen3ForCausalLM"] and pipeline["classes"] == ["TextGenerationPipeline"]
        assert len(rest) == (repo == "alice/palette")
        for on_the_base in rest:
            assert on_the_base["printed"] == expected and on_the_base["classes"] == ["Qwen3ForCausalLM"]
        assert trainers["classes"] == ["PaletteGRPOTrainer", "PaletteGRPOConfig"]


def test_measured_content_travels(hub, tmp_path):
    before = split_sections(card_of(hub, "alice/palette", tmp_path).text)
    by_hand = hub.hub.files("alice/palette")["README.md"] + b"\n## Mine\n\nWritten by hand.\n"
    hub.hub.put("alice/copy", hub.hub.files("alice/palette"))
    hub.hub.put("alice/copy", {"README.md": by_hand})
    commit = hub.hub.repositories["alice/palette"].refs["refs/heads/main"]
    ask(hub, "travels", "alice/palette", "alice/second", "alice/copy", without_the_package=True)
    for repo, measured_on in (
        ("alice/second", f"[alice/palette](https://huggingface.co/alice/palette) at [`{commit[:12]}`]"),
        ("alice/copy", "an earlier commit of this repository"),
    ):
        card = card_of(hub, repo, tmp_path)
        after = split_sections(card.text)
        for name in MEASURED:
            assert after[name].strip() == before[name].strip(), (repo, name)
        assert f"was measured on {measured_on}" in after["Palette"]
        assert f'repo = "{repo}"' in after["Usage"] and "not pinned" in after["Usage"]
        assert card.data.license == "apache-2.0" and len(card.data.eval_results) == 8
        shown = {name for name in hub.hub.files(repo) if name.startswith("figures/")}
        assert shown == {name for name in hub.hub.files("alice/palette") if name.startswith("figures/")}
    assert after["Mine"].strip() == "Written by hand." and "later" in card.data.tags


def test_trainers_push_all_that_a_reader_needs(hub, tmp_path):
    of_another_kind = {name: data for name, data in hub.hub.files("alice/full").items() if "figures" not in name}
    hub.hub.put("alice/vae", of_another_kind)
    found = ask(hub, "trains", str(hub.folder), str(ROOT / "examples" / "countdown_base"))
    assert found["same"]
    files = hub.hub.files("alice/vae")
    assert {name for name in files if name.endswith(".safetensors")} == {"palette.safetensors"}
    assert {name for name in hub.hub.files("alice/palette") if name.endswith(".py")} < files.keys()
    assert card_of(hub, "alice/vae", tmp_path).data.base_model == "alice/countdown-base"
    _, first, second = hub.hub.repositories["alice/lora"].commits.values()
    for commit in (first, second):
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} < commit.files.keys()
        assert {f"palette/{name}" for name in files if name != "README.md"} < commit.files.keys()
        assert json.loads(commit.files["palette/config.json"])["base_model_name_or_path"] is None
        assert not any(str(hub.folder).encode() in data for data in commit.files.values())
    assert first.files["adapter_model.safetensors"] != second.files["adapter_model.safetensors"]
    assert any("is a folder of this machine, so nobody can load the palette" in text for text in found["said"])


@pytest.mark.parametrize("is_adapter", [False, True], ids=["full", "adapter"])
def test_no_folder_of_this_machine_is_published(is_adapter, tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    config = {"base_model_name_or_path": str(tmp_path / "base"), "r": 2}
    name = "adapter_config.json" if is_adapter else "config.json"
    kind = {"peft_type": "LORA"} if is_adapter else {"model_type": "palette"}
    (tmp_path / name).write_text(json.dumps({**config, **kind}))
    files, committed = {name: tmp_path / name, f"last-checkpoint/{name}": tmp_path / name}, {}

    class Hub:
        def list_repo_files(self, *args, **kwargs):
            return []

        def create_commit(self, repo_id, operations, **kwargs):
            committed.update({operation.path_in_repo: operation.path_or_fileobj for operation in operations})

    monkeypatch.setattr(checkpoint_commit, "HfApi", Hub)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint_commit.commit_checkpoint("org/name", files, commit_message="")
    assert all(json.loads(data) == {"base_model_name_or_path": None, "r": 2, **kind} for data in committed.values())
    assert committed.keys() == files.keys()
    told = ["The adapter is published without the name of its base" in str(warning.message) for warning in caught]
    assert told == [True, True] * is_adapter


def test_neither_of_two_cards_is_lost(hub, tmp_path):
    folder = hub.folder / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Of the folder\n")
    hub.hub.put("alice/named", hub.hub.files("alice/palette"))
    published = hub.hub.files("alice/named")["README.md"]
    found = ask(hub, "folders", str(folder), "alice/named", "alice/unnamed")
    (said,) = found["said"]
    assert "alice/named has a card of its own" in said and "push_to_hub(..., card=" in said
    assert hub.hub.files("alice/named")["README.md"] == published
    assert found["kept"] == "---\nlicense: mit\n---\n# Of the folder\n"
    card = card_of(hub, "alice/unnamed", tmp_path)
    assert card.text.strip() == "# Of the folder" and card.data.license == "mit"
    assert card.data.base_model == "alice/countdown-base"


def test_dry_run_writes_what_would_be_published(demo, tmp_path, capsys):
    parse = push_to_hub.HfArgumentParser(push_to_hub.PushArguments).parse_args_into_dataclasses
    given = arguments(demo, dry_run=tmp_path / "out", repo_id="org/countdown", license="mit", maps=tmp_path / "none")
    (args,) = parse([*given, "--trace_licenses", "countdown, generated by reasoning-palette=cc-by-4.0"])
    push_to_hub.main(args)
    assert "No latent map" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card_errors(tmp_path / "out" / "README.md") == []
    assert card.data.license == "mit" and card.data.base_model is None and 'repo = "org/countdown"' in card.text
    assert "| 300 | cc-by-4.0 |" in card.text and "No map of the latents was made" in card.text
    assert str(demo) not in (tmp_path / "out" / "config.json").read_text()
    model = PaletteForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.base_model_name_or_path is None and len(model.palette.domains) == 3
    assert model.tokenizer is not None


def test_the_licence_of_the_base(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: gemma\nlicense_link: LICENSE\n---\n# Base\n"
    )
    of_folder = push_to_hub.license_of_base(str(tmp_path), None, offline=True)
    assert of_folder == {"license": "other", "license_name": "gemma"}  # a link would lead to this machine
    monkeypatch.setattr(push_to_hub, "hf_hub_download", lambda *args, **kwargs: str(tmp_path / "README.md"))
    link = "https://huggingface.co/org/base/blob/abc/LICENSE"
    assert push_to_hub.license_of_base("org/base", "abc", offline=False) == {**of_folder, "license_link": link}

    def refuse(*args, **kwargs):
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr(push_to_hub, "hf_hub_download", refuse)
    assert push_to_hub.license_of_base("org/base", "abc", offline=True) == {}
    assert "its licence is unknown: not here" in capsys.readouterr().out
    assert push_to_hub.license_of_base(None, None, offline=True) == {}


def test_what_the_example_refuses(demo, tmp_path):
    with pytest.raises(ValueError, match="with `--repo_id`, or write a folder with `--dry_run FOLDER`"):
        push_to_hub.main(push_to_hub.PushArguments(f"{demo}/palette"))
    args = push_to_hub.PushArguments(f"{demo}/palette", dry_run=str(tmp_path), palette_only=True)
    with pytest.raises(ValueError, match="Name the base on the Hub with `--base_id`"):
        push_to_hub.main(args)
    args = push_to_hub.PushArguments(f"{demo}/palette", dry_run=str(tmp_path), trace_licenses=["mit"])
    with pytest.raises(ValueError, match="`--trace_licenses` has 'mit'; write `source=licence`"):
        push_to_hub.main(args)
    assert not list(tmp_path.iterdir())

"""Model cards of palettes: what the model vouches for, what was measured, what is unknown; cards that are kept."""

import copy
import json
import re
from pathlib import Path

import pytest
from card_schema import card_errors
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from trainer_testing import tiny_base, tiny_palette, tiny_palette_model, tiny_tokenizer

from reasoning_palette.evaluation import Method, MethodResult, pass_at_k
from reasoning_palette.evaluation.card_sections import Measured
from reasoning_palette.evaluation.result import EvaluationResult
from reasoning_palette.modeling_palette import PaletteForCausalLM
from reasoning_palette.modeling_palette.kept_card import _card_of_source, copy_given, put_card
from reasoning_palette.modeling_palette.palette_card import (
    MARKER,
    hub_name,
    new_card,
    refresh_card,
    split_sections,
)
from reasoning_palette.trainers.palette_model_card import PALETTE_PAPER, PAPER_LINK

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def palette_model(**fields):
    named = {"base_model_name_or_path": "some-org/some-base", "base_model_revision": COMMIT, **fields}
    model = PaletteForCausalLM.from_base(tiny_base(), tiny_palette(), tokenizer=tiny_tokenizer(), **named)
    model._sync_domains()
    return model


def result(seed, *correct, name="prior draws", samples=4, **changes):
    """Of four samples per problem, the given numbers are correct."""

    def mean(k):
        return sum(pass_at_k(samples, count, k) for count in correct) / len(correct)

    figures = MethodResult(
        method=Method(name, prefix="palette", num_prefix_tokens=3),
        mean_at_1=mean(1),
        standard_error=0.125,
        pass_at_k={k: mean(k) for k in (1, 2, 4)},
        maj_at_k={1: mean(1), 2: 0.5, 4: 0.25},
        distinct_answers=2.0,
        distinct_completions=3.0,
        strategies={"add": 0.75, "multiply": 0.25},
        grades={"correct": sum(correct), "wrong": samples * len(correct) - sum(correct) - 1, "ungradable": 1},
        generated_tokens=10,
        seconds=1.0,
        num_correct=list(correct),
        latent_codes=None,
    )
    environment = {"versions": {"torch": "9.9", "transformers": "8.8"}, "commit": COMMIT, "accelerators": []}
    found = EvaluationResult("org/model", "game-test", len(correct), samples, 16, seed, [figures], environment)
    return {**found.to_dict(), **changes}


TRAINING = {
    "traces": [
        {"source": "openai/gsm8k:main", "is_on_hub": True, "domain": "math", "count": 7000, "license": None},
        {"source": "own.jsonl", "is_on_hub": False, "domain": None, "count": 12, "license": "cc-by-4.0"},
    ],
    "eval_traces": [],
    "settings": {"latent_dim": 4, "beta": 0.01},
    "figures": {"train_reconstruction": 0.1254, "train_kl": 18.46, "train_active_units": 3},
    "environment": {"versions": {"torch": "9.9"}, "commit": None, "accelerators": ["A card"]},
}
MAP = {
    "traces": {"math": 60, "code": 40},
    "accuracy": 0.9876,
    "balanced_accuracy": 0.9812,
    "largest_domain_share": 0.6,
    "draws_read_as_their_domain": {"math": 0.998},
}


def cells(text, first):
    """The cells of the first row of a table that begins with a given one."""
    row, *_ = re.findall(rf"^\| {re.escape(first)} \| (.*) \|$", text, flags=re.MULTILINE)
    return row.split(" | ")


@pytest.mark.parametrize("palette_only", [False, True])
def test_a_card_without_measurements(palette_only, tmp_path):
    card = new_card(palette_model(), "org/my-palette", palette_only)
    card.save(tmp_path / "README.md")
    assert card_errors(tmp_path / "README.md") == []
    data = card.data.to_dict()
    assert data["base_model"] == "some-org/some-base"
    assert data["base_model_relation"] == ("adapter" if palette_only else "finetune")
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    sections = split_sections(card.text)
    assert list(sections) == ["", "Palette", "Usage", "Traces and figures", "Limits", "Citation"]
    assert all(MARKER in text for name, text in sections.items() if name)
    assert f"https://huggingface.co/some-org/some-base/tree/{COMMIT}" in cells(card.text, "base")[0]
    assert cells(card.text, "`math`") == ["20"] and cells(card.text, "`code`") == ["20"]
    assert "accuracy are unknown" in sections["Traces and figures"]
    snippets = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert len(snippets) == (4 if palette_only else 3)
    assert all('revision = "main"  # not pinned' in snippet for snippet in snippets)
    assert sum("custom_generate" in snippet for snippet in snippets) == palette_only
    if palette_only:
        assert f'from_pretrained("some-org/some-base", revision="{COMMIT}")' in card.text


def test_what_is_not_there_is_not_claimed(tmp_path):
    bare = PaletteForCausalLM.from_base(tiny_base())
    text = new_card(bare, "org/bare").text
    assert "This model has no palette" in text and "domain=" not in text and "trainers/" not in text
    assert "its name on the Hub is unknown" in text and "the tokenizer of the base" in text
    model = tiny_palette_model()
    model.palette.trained.fill_(False)
    model.palette.domains = {}
    model._sync_domains()
    text = new_card(model, "org/untrained").text
    assert "**The palette is untrained**" in text and "It has no domains" in text and "domain=domain" not in text
    text = new_card(model, "org/palette", palette_only=True).text
    assert "**The base is not on the Hub**" in text and '"folder of the base"' in text
    assert "AutoModelForCausalLM.from_pretrained(repo" not in text
    empty = Measured().sections()
    assert "traces that the palette was trained on are unknown" in empty["Traces and licences"]
    assert "Licence of the base: unknown." in empty["Traces and licences"]
    assert "of the VAE are unknown" in empty["Palette VAE"]
    assert "No map of the latents" in empty["Latent map"]
    assert "was not measured, or not given" in empty["Accuracy"]


def test_names_of_folders_are_no_names_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    assert hub_name("models/base") is None
    for name in (None, "", str(tmp_path), "a/b/c", "../base"):
        assert hub_name(name) is None
    text = new_card(palette_model(base_model_name_or_path=str(tmp_path)), "org/palette").content
    assert str(tmp_path) not in text and "base_model" not in text


def test_measured_figures_by_hand():
    """Two seeds: 1, 2 and 4, 0 of 4 samples are correct in two problems each."""
    others = [
        result(0, 4, 4, model="base", benchmark="game-test"),
        result(0, 1, 1, model="elsewhere", benchmark="another-game"),
    ]
    measured = Measured(
        training=TRAINING,
        latent_map=MAP,
        map_image="figures/map.png",
        results=[result(1, 4, 0), result(0, 1, 2)],
        compared=others,
        trace_licenses={"openai/gsm8k:main": "mit"},
        files={"results": "figures/evaluation.json"},
    )
    found = measured.sections()
    traces = found["Traces and licences"]
    gsm8k = "[openai/gsm8k:main](https://huggingface.co/datasets/openai/gsm8k)"
    assert cells(traces, gsm8k) == ["training", "`math`", "7,000", "mit"]
    assert cells(traces, "`own.jsonl`") == ["training", "as its rows say", "12", "cc-by-4.0"]
    assert measured.datasets() == ["openai/gsm8k"]
    assert cells(found["Palette VAE"], "training") == ["0.125", "18.5", "3 of 4"]
    assert "held out" not in found["Palette VAE"] and "`beta=0.01`" in found["Palette VAE"]
    assert "Measured with torch 9.9, A card." in found["Palette VAE"]
    assert "accuracy 0.988" in found["Latent map"] and "`math` 99.8%" in found["Latent map"]
    assert "](figures/map.png)" in found["Latent map"]
    accuracy, comparison = found["Accuracy"].split("For comparison")
    # pass@1: (1/4 + 2/4) / 2 = 0.375 and (1 + 0) / 2 = 0.5; pass@2: (1/2 + 5/6) / 2 = 2/3 and 1/2; pass@4: 1 and 1/2
    assert cells(accuracy, "prior draws")[:5] == ["3", "0.438 (0.375 to 0.500)", "0.583", "0.750", "0.250"]
    assert cells(accuracy, "prior draws")[5:] == ["2.00", "2"]
    assert "seeds 0, 1" in accuracy and "2 problems, 4 samples" in accuracy and "at most 16 new tokens" in accuracy
    assert "[All figures](figures/evaluation.json)" in accuracy
    assert "| prior draws | 75% | 25% |" in accuracy
    assert "`base`, seed 0" in comparison and "elsewhere" not in comparison
    assert cells(comparison, "prior draws")[1] == "1.000\u00a0±\u00a00.125"
    (entry,) = measured.eval_results("image-text-to-text")
    assert entry.task_type == "image-text-to-text" and measured.eval_results()[0].task_type == "text-generation"
    assert (entry.metric_type, entry.metric_value, entry.metric_args["seeds"]) == ("pass@1", 0.4375, [0, 1])
    assert PALETTE_PAPER["citation"] in found["Citation"] and "@software{" in found["Citation"]


def test_json_of_results_is_read_as_the_results_are():
    there_and_back = json.loads(json.dumps(result(0, 1, 2)))
    assert Measured(results=[there_and_back]).sections() == Measured(results=[result(0, 1, 2)]).sections()


def test_metadata_of_a_measured_card(tmp_path):
    measured = Measured(training=TRAINING, results=[result(0, 1, 2)])
    card = new_card(palette_model(), "org/my-palette", measured=measured.sections())
    card.data.license, card.data.datasets = "mit", measured.datasets()
    card.data.model_name, card.data.eval_results = "my-palette", measured.eval_results()
    card.save(tmp_path / "README.md")
    assert card_errors(tmp_path / "README.md") == []
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.eval_results == measured.eval_results()
    assert again.data.to_dict()["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.375
    refresh_card(again, palette_model(), "org/my-palette").save(tmp_path / "README.md")
    assert card_errors(tmp_path / "README.md") == []


def test_the_schema_finds_mistakes(tmp_path):
    card = new_card(palette_model(), "org/my-palette")
    for name, value in (
        ("base_model", "/data/base"),
        ("base_model_relation", "cousin"),
        ("pipeline_tag", "reasoning"),
        ("tags", ["a", "a"]),
        ("license", "unknown"),
    ):
        wrong = ModelCard(card.content)
        setattr(wrong.data, name, value)
        Path(tmp_path / "README.md").write_text(wrong.content.replace("tags:\n- a", "tags:\n- a\n- a"))
        assert card_errors(tmp_path / "README.md"), name


def test_a_kept_card_loses_nothing():
    model = palette_model()
    measured = Measured(training=TRAINING, results=[result(0, 1, 2)])
    card = new_card(model, "org/my-palette", prompt='w3 "w4" \\', measured=measured.sections())
    same = refresh_card(card, model, "org/my-palette")
    assert same.content.strip() == card.content.strip()
    pinned = refresh_card(card, model, "org/my-palette", revision=COMMIT)
    assert pinned.text.count(f'revision = "{COMMIT}"\n') == 3 and "not pinned" not in pinned.text
    assert pinned.text.count('prompt = "w3 \\"w4\\" \\\\"') == 2

    edited = ModelCard(card.content)
    edited.text = edited.text.replace(f"## Limits\n\n{MARKER}\n\n", "## Limits\n\nNot for medicine.\n\n")
    edited.text += "\n## Mine\n\n```\n## no heading\n```\n"
    edited.data.license, edited.data.base_model_relation = "gemma", "merge"
    edited.data.tags = ["mine"]
    changed = copy.deepcopy(model)
    changed.palette.domains = {"poetry": {"source": 1, "count": 99}}
    changed._sync_domains()
    found = refresh_card(edited, changed, "org/other", palette_only=True, measured_on="[that](link)")
    old, new = split_sections(edited.text), split_sections(found.text)
    assert list(old) == list(new)
    for name in ("", "Limits", "Mine", "Traces and licences", "Palette VAE", "Accuracy", "Latent map"):
        assert new[name].strip() == old[name].strip(), name
    assert "`poetry` | 99" in new["Palette"] and "`math`" not in new["Palette"]
    assert 'repo = "org/other"' in new["Usage"] and 'prompt = "w3 \\"w4\\" \\\\"' in new["Usage"]
    assert new["Palette"].count("was measured on [that](link).") == 1
    assert found.data.license == "gemma" and found.data.base_model_relation == "merge"
    assert found.data.tags == ["mine", "reasoning-palette", "arxiv:2512.17206"]
    again = refresh_card(found, changed, "org/other", palette_only=True, measured_on="something else")
    assert again.content.strip() == found.content.strip()  # the first note knew best


def test_a_card_of_somebody_else_stays_as_it_is():
    card = ModelCard("---\nlicense: mit\n---\n# Mine\n\n## Palette\n\nHand-made.\n\n## Usage\n\nNone.\n")
    found = refresh_card(card, palette_model(), "org/my-palette")
    assert found.text.strip() == card.text.strip()
    assert found.data.license == "mit" and found.data.base_model == "some-org/some-base"
    without = refresh_card(ModelCard("# No metadata\n"), palette_model(), "org/my-palette")
    assert without.text.strip() == "# No metadata" and without.data.library_name == "transformers"


def test_given_cards(tmp_path, monkeypatch):
    checkpoint, given = tmp_path / "checkpoint", tmp_path / "card"
    (given / "figures").mkdir(parents=True)
    checkpoint.mkdir()
    monkeypatch.delattr("huggingface_hub.HfApi.create_repo")  # nothing is made before the card is found
    with pytest.raises(FileNotFoundError, match="`card` is .*, where there is no card. Pass a README.md"):
        palette_model().push_to_hub("org/never", card=given)
    with pytest.raises(FileNotFoundError, match="`card` is .*, where there is no card. Pass a README.md"):
        copy_given(given, checkpoint)
    (given / "README.md").write_text("---\nlicense: mit\n---\n# Given\n")
    (given / "figures" / "map.png").write_bytes(b"map")
    (given / "config.json").write_text("{}")
    (checkpoint / "config.json").write_text("of the model")
    with pytest.raises(ValueError, match="holds 'config.json', which is also a file of the checkpoint"):
        copy_given(given, checkpoint)
    assert (checkpoint / "config.json").read_text() == "of the model" and not (checkpoint / "figures").exists()
    (given / "config.json").unlink()
    copy_given(given, checkpoint)
    names = put_card(palette_model(), checkpoint, "org/x", palette_only=False, tags=["new"], given=given)
    assert sorted(names) == ["README.md", "figures/map.png"]
    card = ModelCard.load(checkpoint / "README.md")
    assert card.text.strip() == "# Given" and card.data.tags == ["new"]


def test_a_card_takes_nothing_from_outside_its_checkpoint(tmp_path):
    """The source is a folder whose card links to what it holds, to what it lacks, and out of it."""
    source, folder = tmp_path / "source", tmp_path / "folder"
    (source / "figures").mkdir(parents=True)
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (source / "figures" / "map.png").write_bytes(b"map")
    (source / "config.json").write_text("of the source")
    (folder / "config.json").write_text("of the model")
    links = ("figures/map.png", "lost.png", "../secret", f"{tmp_path}/secret", "https://x.org/y", "config.json")
    (source / "README.md").write_text("# Card\n" + "".join(f"[x]({link}) " for link in links))
    model = palette_model()
    model.config.name_or_path = str(source)
    kept = _card_of_source(model, folder, None)
    assert kept[0].text.startswith("# Card") and kept[2] == ["figures/map.png"]
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["config.json", "figures/map.png"]
    assert (folder / "config.json").read_text() == "of the model"


@pytest.mark.parametrize("where", ["source", "folder"])
def test_a_card_publishes_what_it_shows_and_nothing_that_a_loader_reads(where, tmp_path, monkeypatch):
    """Neither that of the checkpoint that was loaded nor the folder's own decides which weights or code are pushed."""
    shown = ["map.png", "figures/evaluation.json", "table.CSV"]
    hidden = ["adapter_config.json", "adapter_model.safetensors", "custom_generate/generate.py", "sub/run.py"]
    hidden += ["optimizer.pt", "sub/tokenizer_config.json", "model.safetensors.index.json", "Preprocessor_Config.json"]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (*shown, *hidden):
        (tmp_path / where / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / where / name).write_text("")
    (tmp_path / "secret.png").write_text("secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "map.png").write_text("secret")
    (tmp_path / where / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / where / "linked").symlink_to(tmp_path / "outside")
    links = " ".join(f"[x]({name})" for name in (*shown, *hidden, "link.png", "linked/map.png"))
    (tmp_path / where / "README.md").write_text(f"# Card\n{links}\n")
    monkeypatch.setattr("reasoning_palette.modeling_palette.kept_card._card_on_hub", lambda *arguments: None)
    model = palette_model()
    model.config.name_or_path = str(tmp_path / "source") if where == "source" else ""
    names = put_card(model, folder, "org/x", palette_only=False, tags=[])
    assert sorted(names) == sorted(["README.md", *shown])
    if where == "source":
        found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        assert found == sorted(names)


@pytest.mark.parametrize(
    ("error", "says"), [(LocalEntryNotFoundError("no connection"), True), (EntryNotFoundError("none"), False)]
)
def test_a_source_that_cannot_be_read_is_reported(error, says, tmp_path, monkeypatch, recwarn):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("reasoning_palette.modeling_palette.kept_card.hf_hub_download", refuse)
    model = palette_model()
    model.config.name_or_path = "some-org/gone"
    assert _card_of_source(model, tmp_path, None) == (None, None, [])
    said = [str(warning.message) for warning in recwarn if "'some-org/gone'" in str(warning.message)]
    assert len(said) == says and all("could not be read" in text for text in said)


def test_one_citation():
    """The trainers hold it; a checkpoint's own modules only link to the paper."""
    assert PALETTE_PAPER["id"] in new_card(palette_model(), "org/x").text and PALETTE_PAPER["id"] in PAPER_LINK
    folder = Path(__file__).parent.parent
    texts = [path.read_text() for name in ("modeling_palette", "evaluation") for path in (folder / name).glob("*.py")]
    assert not any("@article{long2025reasoning" in text for text in texts)


def test_a_domain_of_any_name_is_one_row_of_the_table():
    model = palette_model()
    model.palette.domains = {"a\nb|c": {"source": 1, "count": 7}}
    model._sync_domains()
    assert "\n| `a b\\|c` | 7 |" in new_card(model, "org/x").text

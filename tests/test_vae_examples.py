"""The scripts that train the palette and draw its maps, run small on the demo's base and on files."""

import importlib
import json

import numpy as np
import pytest

from reasoning_palette.evaluation.countdown import STRATEGIES, generate_traces
from reasoning_palette.modeling_palette import PaletteForCausalLM

train_vae = importlib.import_module("02_train_vae")
map_latents = importlib.import_module("03_map_latents")


@pytest.fixture(scope="module")
def base(request):
    return str(request.config.rootpath / "examples" / "countdown_base")


def settings(folder):
    changed = {"output_dir": str(folder), "max_steps": 30, "disable_tqdm": True, "use_cpu": True}
    return train_vae.PaletteVAEConfig(**{**train_vae.DEMO_SETTINGS, **changed})


@pytest.fixture(scope="module")
def palette(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("palette")
    train_vae.main(train_vae.VAEArguments(base=base, num_traces=300), settings(folder))
    return folder


def test_the_palette_of_the_demo(palette):
    model = PaletteForCausalLM.from_pretrained(palette)
    assert model.palette.trained and model.palette.domains.keys() == STRATEGIES.keys()


def test_the_record_of_a_training(base, palette, tmp_path):
    record = json.loads((palette / "training.json").read_text())
    assert [entry["count"] for entry in record["traces"] + record["eval_traces"]] == [300, 500]
    assert record["settings"]["steps"] == 30 and record["settings"]["beta"] == 0.01
    assert record["figures"].keys() >= {"train_kl", "eval_kl", "eval_reconstruction", "eval_active_units"}
    assert record["environment"]["versions"]["torch"]

    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in generate_traces("train", 6)))
    args = train_vae.VAEArguments(base=base, traces=[f"games={path}", f"more={path}"])
    train_vae.main(args, settings(tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    source = {"source": "traces.jsonl", "is_on_hub": False, "count": 6, "license": None}
    assert record["traces"] == [{**source, "domain": "games"}, {**source, "domain": "more"}]
    assert record["eval_traces"] == [] and "eval_kl" not in record["figures"]
    assert str(tmp_path) not in json.dumps(record)


def test_maps(palette, tmp_path):
    args = map_latents.MapArguments(str(palette), num_traces=120, num_mapped=15, output_dir=str(tmp_path))
    map_latents.main(args)
    result = json.loads((tmp_path / "latent_map.json").read_text())
    assert sum(result["traces"].values()) == 120
    assert result["accuracy"] > 0.8 and result["balanced_accuracy"] > 0.8
    assert result["draws_read_as_their_domain"].keys() == STRATEGIES.keys()
    assert (tmp_path / "latent_map.png").read_bytes().startswith(b"\x89PNG")


def test_maps_need_domains(palette, tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps({"question": "numbers 1 2 3 target 4", "answer": "1 + 3"}) + "\n")
    args = map_latents.MapArguments(str(palette), traces=[str(path)], output_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"`--traces` need a `domain` column with at least two domains of 5 traces"):
        map_latents.main(args)


def test_select_for_map_is_balanced():
    domains = np.array(["a"] * 50 + ["b"] * 3)
    chosen = map_latents.select_for_map(domains, 10, seed=0)
    assert sorted(domains[chosen]) == ["a"] * 10 + ["b"] * 3 and len(set(chosen)) == 13


def test_sources_with_and_without_a_domain(tmp_path):
    rows = generate_traces("train", 4)
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = train_vae.Sources(train_vae.VAEArguments(), keep_images=False)
    traces = sources.load_all([str(path), f"games={path}"])
    assert [row["domain"] for row in traces] == [row["domain"] for row in rows] + ["games"] * 4

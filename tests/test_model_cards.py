"""The cards that the trainers write: method, paper, palette, schedule and seeds; metadata that the Hub takes."""

import re

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel
from test_rollout_metrics import rl_trainer
from trainer_testing import (
    common_arguments,
    sft_dataset,
    tiny_base,
    tiny_palette,
    tiny_palette_model,
    tiny_tokenizer,
)
from transformers import AutoModelForCausalLM

from reasoning_palette.modeling_palette import PaletteForCausalLM
from reasoning_palette.trainers import (
    BestLatentsCallback,
    PaletteSFTConfig,
    PaletteSFTTrainer,
    PaletteVAEConfig,
    PaletteVAETrainer,
)
from reasoning_palette.trainers.palette_model_card import complete_card, hub_id


def sft_trainer(folder, model=None, peft_config=None, **arguments):
    return PaletteSFTTrainer(
        model=tiny_palette_model() if model is None else model,
        args=PaletteSFTConfig(**common_arguments(folder, **{"max_steps": 1, **arguments})),
        train_dataset=sft_dataset(),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def card_of(trainer, **arguments):
    trainer.create_model_card(model_name="tiny", **arguments)
    return ModelCard.load(f"{trainer.args.output_dir}/README.md")


def facts_of(card):
    """The rows of the section's table."""
    (section,) = re.findall(r"\n## Palette\n(.*?)(?=\n## |\Z)", card.text, flags=re.DOTALL)
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", section, flags=re.MULTILINE)[1:])


def run_snippet(card, repo, folder):
    """Runs the card's quick start, with `folder` in place of the repository's name; returns its names."""
    (snippet,) = re.findall(r"```python\n(.*?)\n```", card.text, flags=re.DOTALL)
    assert f'repo = "{repo}"' in snippet
    snippet = snippet.replace(f'repo = "{repo}"', f"repo = {str(folder)!r}")
    names = {"snapshot_download": lambda repo: repo}
    exec(snippet.replace("from huggingface_hub import snapshot_download", ""), names)
    return names


def test_grpo(tmp_path):
    trainer = rl_trainer(
        tmp_path, latent_schedule="linear-decay", latent_schedule_end=0.8, latent_fraction=0.5, latent_seed=7,
        latent_domain={"math": 3, "code": 1}, seed=3, max_steps=8, callbacks=[BestLatentsCallback(min_codes=2)],
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    card = card_of(trainer, dataset_name="org/data")
    assert "trained with GRPO with Reasoning Palette, a method introduced in [Reasoning Palette: Modul" in card.text
    assert "https://arxiv.org/abs/2512.17206" in card.text
    assert "@article{long2025reasoning," in card.text and "@software{vonwerra2020trl," in card.text
    best = trainer.palette_model.palette.domains["high-reward"]["count"]
    assert facts_of(card) == {
        "base": "a `Qwen3ForCausalLM` that is not on the Hub",
        "`latent_dim`": "4",
        "domains": f"`math` (20 latents), `code` (20 latents), `high-reward` ({best} latents)",
        "seed of the palette, which gives codes their meaning": "0",
        "`num_prefix_tokens` (L)": "3, an independent latent for each",
        "latents drawn from": "75% `math` + 25% `code`",
        "share of guided rollouts (rho)": (
            "`linear-decay`: 0.5 at the start, 0 from 80% of training on; a draw per rollout"
        ),
        "seed of the draws": "7",
    }
    assert card.data.base_model is None and "None" not in card.text
    assert card.data.datasets == "org/data"
    assert {"trl", "grpo", "reasoning-palette"} <= set(card.data.tags)
    assert str(tmp_path) not in card.content
    names = run_snippet(card, "tiny", tmp_path)
    assert "high-reward" in names["model"].palette.domains


def test_rloo_and_other_settings(tmp_path):
    trainer = rl_trainer(tmp_path, "rloo", latent_tile=True, latent_per="prompt", latent_domain="code", seed=3)
    card = card_of(trainer)
    assert "trained with RLOO with Reasoning Palette" in card.text
    assert "rloo" in card.data.tags
    facts = facts_of(card)
    assert facts["`num_prefix_tokens` (L)"] == "3, one latent, repeated"
    assert facts["latents drawn from"] == "domain `code`"
    assert facts["share of guided rollouts (rho)"] == "`constant`: 1; a draw per prompt"
    assert facts["seed of the draws"] == "3"


@pytest.mark.parametrize(
    ("pairing", "expected"),
    [
        ("prior", ("latents drawn from", "the prior N(0, I)")),
        (
            "posterior",
            ("latents", "drawn from each example's own posterior (`latent_pairing='posterior'`)"),
        ),
    ],
)
def test_sft(tmp_path, pairing, expected):
    card = card_of(sft_trainer(tmp_path, latent_pairing=pairing))
    assert "trained with SFT with Reasoning Palette" in card.text
    assert expected in facts_of(card).items()
    assert not any("rho" in name for name in facts_of(card))


def test_without_prefixes_the_card_says_so(tmp_path):
    card = card_of(sft_trainer(tmp_path / "palette", num_prefix_tokens=0))
    assert facts_of(card)["`num_prefix_tokens`"] == "0: trained without prefixes, as the stock trainer does"
    assert "trust_remote_code=True" in card.text
    card = card_of(sft_trainer(tmp_path / "stock", model=tiny_base(), num_prefix_tokens=0))
    assert list(facts_of(card)) == ["`num_prefix_tokens`"]
    assert "trust_remote_code" not in card.text and 'pipeline("text-generation"' in card.text


def test_base_on_the_hub_is_named(tmp_path):
    model = tiny_palette_model()
    model.config.base_model_name_or_path = "some-org/some-base"
    card = card_of(sft_trainer(tmp_path, model=model))
    link = "[some-org/some-base](https://huggingface.co/some-org/some-base)"
    assert card.data.base_model == "some-org/some-base"
    assert f"fine-tuned version of {link}." in card.text
    assert facts_of(card)["base"] == link


def test_there_is_one_section_however_often_the_card_is_written(tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 1, "hub_model_id": "my-org/my-model"}
    trainer = sft_trainer(tmp_path, max_steps=2, **arguments)
    trainer.train()  # writes the card with each checkpoint
    again = sft_trainer(tmp_path, max_steps=3, **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    again.save_model()
    card = card_of(again)
    assert card.text.count("\n## ") == len(set(re.findall(r"\n## .*", card.text)))
    assert 'repo = "my-org/my-model"' in card.text
    before = card.content
    complete_card(str(tmp_path / "README.md"), facts_of(card), "pass", None)
    assert (tmp_path / "README.md").read_text().count("## Palette") == before.count("## Palette") == 1


def test_only_the_main_process_writes(tmp_path):
    trainer = sft_trainer(tmp_path)
    trainer.is_world_process_zero = lambda: False
    trainer.create_model_card(model_name="tiny")
    assert not (tmp_path / "README.md").exists()


def test_adapter_beside_its_palette(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = PaletteForCausalLM.from_base(str(tmp_path / "base"), palette=tiny_palette())
    trainer = sft_trainer(tmp_path / "run", model, LoraConfig(r=2, target_modules="all-linear"))
    trainer.train()
    trainer.save_model()
    card = card_of(trainer)
    names = run_snippet(card, "tiny", tmp_path / "run")
    assert isinstance(names["model"], PeftModel)
    assert str(tmp_path) not in card.content


def test_adapter_on_a_palette_checkpoint(tmp_path):
    tiny_palette_model().save_pretrained(tmp_path / "full")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    trainer = sft_trainer(tmp_path / "run", model, LoraConfig(r=2, target_modules="all-linear"))
    card = card_of(trainer)
    assert 'from_pretrained("folder or id of the palette checkpoint", trust_remote_code=True)' in card.text
    assert "model = PeftModel.from_pretrained(model, repo)" in card.text
    assert str(tmp_path) not in card.content


@pytest.mark.filterwarnings("ignore:Posterior collapse", "ignore:The latent carries too much")
def test_vae(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    traces = [{"question": f"w{n} w{n + 1}", "answer": f"w{n + 2}", "domain": "ab"[n % 2]} for n in range(30)]
    trainer = PaletteVAETrainer(
        model=str(tmp_path / "base"),
        args=PaletteVAEConfig(
            str(tmp_path / "run"), latent_dim=3, hidden_sizes=[8], max_steps=1, use_cpu=True, report_to="none", seed=5
        ),
        train_dataset=traces,
    )
    trainer.train()
    trainer.save_model()
    card = card_of(trainer)
    facts = facts_of(card)
    assert facts.pop("trained with").startswith("the VAE of Reasoning Palette, `beta=")
    assert facts == {
        "base": "a `Qwen3ForCausalLM` that is not on the Hub",
        "`latent_dim`": "3",
        "domains": "`a` (15 latents), `b` (15 latents)",
        "seed": "5",
    }
    assert "https://arxiv.org/abs/2512.17206" in card.text
    assert {"reasoning-palette", "palette-vae"} <= set(card.data.tags)
    assert str(tmp_path) not in card.content  # no folder of this machine, and no base_model that the Hub would refuse
    names = run_snippet(card, "tiny", tmp_path / "run")
    assert set(names["model"].palette.domains) == {"a", "b"}


def test_names_on_the_hub(tmp_path, monkeypatch):
    assert hub_id("models/base") == "models/base"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    assert hub_id("models/base") is None  # a folder
    assert hub_id("Qwen/Qwen3-1.7B-Base") == "Qwen/Qwen3-1.7B-Base"
    for name in (None, "", "/data/models/base", "a/b/c", ".", "../base"):
        assert hub_id(name) is None

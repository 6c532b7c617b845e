"""Bases that know nothing of palettes, served by a palette-only checkpoint through transformers' `custom_generate`."""

import copy
import threading

import pytest
import torch
from text_families import tiny_base as base_of_family
from trainer_testing import LATENT, tiny_base, tiny_palette, tiny_tokenizer
from transformers import AutoModelForCausalLM

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

IDS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 8, 9, 10]])
MASK = (IDS != 0).long()
GREEDY = {"attention_mask": MASK, "max_new_tokens": 10, "do_sample": False}
CALLS = [
    {"latent": [5, 6], "num_prefix_tokens": 3},
    {"domain": "math", "latent_seed": 3},
    {"domain": ["code", "math"], "latent_seed": 3, "num_return_sequences": 2},
    {"latent": torch.ones(LATENT), "num_prefix_tokens": 2},
    {"num_prefix_tokens": 4, "latent_seed": 1, "num_beams": 3},
    {"num_prefix_tokens": 0},
]


def saved(base, folder):
    """A base in one folder, its palette in another, and the palette model that is to be equalled."""
    base.save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    base.generation_config.eos_token_id = None
    base.save_pretrained(folder / "base")
    palette = tiny_palette()
    width = base.get_input_embeddings().weight.shape[1]
    if width != palette.hidden_size:
        torch.manual_seed(1)
        palette = PaletteVAE(width, latent_dim=LATENT, hidden_sizes=(16,))
        palette.trained.fill_(True)
        palette.fit_domain("math", torch.randn(20, LATENT) + 2)
        palette.fit_domain("code", torch.randn(20, LATENT) - 2)
    model = PaletteForCausalLM.from_base(base, palette, tokenizer=tiny_tokenizer())
    model.save_pretrained(folder / "palette", palette_only=True)
    return AutoModelForCausalLM.from_pretrained(folder / "base"), model, str(folder / "palette")


@pytest.fixture
def qwen3(tmp_path):
    return saved(tiny_base(tie_word_embeddings=False, initializer_range=0.5), tmp_path)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3_text", "gpt2", "mixtral"])
def test_an_unmodified_base_equals_the_palette_model(family, tmp_path):
    base, model, repository = saved(base_of_family(family), tmp_path)
    plain = base.generate(IDS, **GREEDY)
    for arguments in CALLS:
        served = base.generate(IDS, custom_generate=repository, trust_remote_code=True, **arguments, **GREEDY)
        assert torch.equal(served, model.generate(IDS, **arguments, **GREEDY)), arguments
    assert type(base).__name__ == type(model).base_class.__name__
    assert torch.equal(base.generate(IDS, **GREEDY), plain)  # what it does without is what it did


def test_codes_come_back_and_changes_of_the_base_are_seen(qwen3):
    base, model, repository = qwen3
    trusted = {"custom_generate": repository, "trust_remote_code": True}
    output = base.generate(IDS, domain="code", return_dict_in_generate=True, **trusted, **GREEDY)
    assert torch.equal(base.generate(IDS, latent=output.latent_codes, **trusted, **GREEDY), output.sequences)
    base.generation_config.max_new_tokens = 4
    assert base.generate(IDS, latent=5, attention_mask=MASK, do_sample=False, **trusted).shape[1] == IDS.shape[1] + 4
    base.lm_head = copy.deepcopy(base.lm_head)
    base.lm_head.weight.data.neg_()
    assert not torch.equal(base.generate(IDS, latent=5, **trusted, **GREEDY), model.generate(IDS, latent=5, **GREEDY))


def test_it_needs_trust_and_names_what_is_wrong(qwen3, tmp_path, monkeypatch):
    base, model, repository = qwen3
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        base.generate(IDS, custom_generate=repository, domain="math", **GREEDY)
    trusted = {"trust_remote_code": True, **GREEDY}
    with pytest.raises(ValueError, match="`domain`='poetry' is unknown; this palette has 'code', 'math'"):
        base.generate(IDS, custom_generate=repository, domain="poetry", **trusted)
    other = tmp_path / "other"
    model.save_pretrained(other, palette_only=True)
    with pytest.raises(ValueError, match="this base serves the one in"):
        base.generate(IDS, custom_generate=str(other), domain="math", **trusted)
    with pytest.raises(ValueError, match="has a palette already"):
        model.generate(IDS, custom_generate=repository, **trusted)


def test_the_wrapper_of_the_same_repository_is_not_replaced(qwen3):
    _, model, repository = qwen3
    own = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True)
    assert torch.equal(own.generate(IDS, None, latent=5, **GREEDY), model.generate(IDS, latent=5, **GREEDY))


def test_none_is_a_choice_in_a_setting(qwen3):
    base, model, repository = qwen3
    base.generation_config.eos_token_id = int(
        model.generate(IDS[1:], latent=5, max_new_tokens=3, do_sample=False)[0, -1]
    )
    trusted = {"custom_generate": repository, "trust_remote_code": True, "latent": 5}
    arguments = {"max_new_tokens": 8, "do_sample": False}
    assert base.generate(IDS[1:], **trusted, **arguments).shape[1] <= IDS.shape[1] + 3
    assert base.generate(IDS[1:], eos_token_id=None, **trusted, **arguments).shape[1] == IDS.shape[1] + 8


def test_many_threads_may_make_the_first_call(qwen3):
    base, model, repository = qwen3
    expected = [model.generate(IDS, latent=code, **GREEDY) for code in range(8)]
    found = [None] * 8

    def serve(code):
        found[code] = base.generate(IDS, custom_generate=repository, trust_remote_code=True, latent=code, **GREEDY)

    threads = [threading.Thread(target=serve, args=(code,)) for code in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_folder_written_anew_is_not_served_from_memory(qwen3):
    base, model, repository = qwen3
    trusted = {"custom_generate": repository, "trust_remote_code": True, **GREEDY}
    base.generate(IDS, latent=5, **trusted)
    model.save_pretrained(repository, palette_only=True)
    with pytest.raises(ValueError, match="it was written anew since"):
        base.generate(IDS, latent=5, **trusted)

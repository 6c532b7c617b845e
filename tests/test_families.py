"""Every family of `text_families` through every check of `family_checks`, and the page that is written from them."""

import re
import warnings

import pytest
import torch
import transformers
from families_page import PAGE, cell, committed_cells, families
from family_checks import CHECKS, Case, behind_prefix, case_of, outcome
from packaging.version import Version
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from text_families import FAMILIES, is_known, tiny_base, tiny_config
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE
from reasoning_palette.modeling_palette.supported_bases import UNSUPPORTED_MODEL_TYPES, VERIFIED_MODEL_TYPES

NUMBER = re.compile(r"^(0|\de[-+]\d\d)$")
WRITTEN_WITH = re.search(r"transformers (\d+\.\d+)", PAGE.read_text()).group(1)
IS_OF_THIS_VERSION = Version(transformers.__version__).release[:2] == Version(WRITTEN_WITH).release


def palette_for(base):
    torch.manual_seed(1)
    palette = PaletteVAE(base.get_input_embeddings().weight.shape[1], latent_dim=8, hidden_sizes=(16,))
    palette.trained.fill_(True)
    return palette


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, check):
    if not is_known(family):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    found = cell(check, outcome(family, check))
    if IS_OF_THIS_VERSION:  # what other versions of the base do is not the page's to say
        committed = committed_cells()[family][check]
        assert found == committed or (NUMBER.match(found) and NUMBER.match(committed))


# How the published files name what these families have under other names in memory: by the beginning of a key.
NAMES_IN_FILES = {
    "apertus1p5_text": ("model.", "model.language_model."),
    "bailing_hybrid": ("model.embed_tokens.", "model.word_embeddings."),
    "dory": ("model.", "backbone."),
    "gemma3n_text": ("model.", "model.language_model."),
    "nemotron_h": ("model.", "backbone."),
    "qwen3_5_text": ("model.", "model.language_model."),
    "qwen3_5_moe_text": ("model.", "model.language_model."),
}


@pytest.mark.parametrize("family", NAMES_IN_FILES)
def test_bases_whose_files_name_the_weights_otherwise(family, tmp_path):
    """As Qwen3.5's do, whose files are those of the vision-language model: as text models they lose nothing."""
    if not is_known(family):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    own, published = NAMES_IN_FILES[family]
    base = tiny_base(family)
    base.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = {
        published + key.removeprefix(own) if key.startswith(own) and not key.startswith(published) else key: tensor
        for key, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    model = PaletteForCausalLM.from_base(tmp_path / "base", palette_for(base))
    expected = base.state_dict()
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
        with safe_open(tmp_path / name / "model.safetensors", "pt") as saved:
            assert {key for key in saved.keys() if not key.startswith("palette.")} == tensors.keys()  # noqa: SIM118
        model, info = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        found = model.state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.skipif(not IS_OF_THIS_VERSION, reason=f"the page is of transformers {WRITTEN_WITH}")
def test_page_has_these_families():
    text = PAGE.read_text()
    assert list(committed_cells()) == families() == list(FAMILIES)
    refused = re.findall("^- `([^`]*)`: ", text.split("## Refused families")[1], flags=re.MULTILINE)
    assert refused == sorted(UNSUPPORTED_MODEL_TYPES)
    assert {tiny_config(family).model_type for family in FAMILIES} == VERIFIED_MODEL_TYPES


def test_refused_families():
    config = tiny_config("llama")
    for model_type, reason in UNSUPPORTED_MODEL_TYPES.items():
        base = AutoModelForCausalLM.from_config(config)
        base.config.model_type = model_type
        with pytest.raises(ValueError, match=re.escape(f"cannot be put on {model_type!r} models: {reason}")):
            PaletteForCausalLM.from_base(base)


def test_encoder_decoders_are_refused():
    base = T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=20, decoder_start_token_id=0)
    )
    with pytest.raises(
        ValueError, match="needs a decoder-only base; T5ForConditionalGeneration is an encoder-decoder"
    ):
        PaletteForCausalLM.from_base(base)


def with_code_of_its_own(change):
    """A Llama of a class outside of transformers, whose backbone does `change(ids, embeddings)` to its embeddings."""
    base = tiny_base("llama")
    base.__class__ = type("CustomForCausalLM", (type(base),), {"__module__": "custom"})
    embedding, backbone = base.get_input_embeddings(), base.model
    plain = backbone.forward

    def forward(input_ids=None, inputs_embeds=None, **inputs):
        return plain(inputs_embeds=change(input_ids, embedding(input_ids)), **inputs)

    backbone.forward = forward
    return base


def hashed(ids, embeddings):
    torch.manual_seed(0)
    return embeddings + 0.1 * torch.randn(7, embeddings.shape[-1])[ids * 5 % 7]


def sounds(ids, embeddings):
    return embeddings.masked_fill((ids >= 90_000)[..., None], 0)


def looked_up(ids, embeddings):
    return embeddings + 0 * torch.ones(100)[ids][..., None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hashed, "it reads token ids beside its input embedding"),
        (sounds, "ids beyond its vocabulary have a meaning to it"),
        (looked_up, r"it fails on ids beyond its vocabulary \(IndexError"),
        (lambda ids, embeddings: torch.zeros_like(embeddings), "does not reach its logits"),
    ],
)
def test_unverified_bases_that_would_be_wrong_are_refused(change, message):
    base = with_code_of_its_own(change).train()
    base.lm_head.eval()
    with pytest.raises(ValueError, match=r"cannot be put on CustomForCausalLM \('llama'\): .*" + message):
        PaletteForCausalLM.from_base(base, palette_for(base))
    assert base.training
    assert not base.lm_head.training
    embedding = base.get_input_embeddings()
    assert not embedding._forward_hooks
    assert not embedding._forward_pre_hooks


def test_bases_that_call_their_embedding_by_keyword_are_refused():
    base = with_code_of_its_own(lambda ids, embeddings: embeddings)
    plain = type(base.model).forward

    def forward(input_ids=None, **inputs):
        return plain(base.model, inputs_embeds=base.model.embed_tokens(input=input_ids), **inputs)

    base.model.forward = forward
    with pytest.raises(ValueError, match="cannot be put on CustomForCausalLM .*ids as a keyword argument"):
        PaletteForCausalLM.from_base(base, palette_for(base))
    # of a family that is verified, whose code was changed later
    model = PaletteForCausalLM.from_base(tiny_base("llama"), palette_for(base))
    with pytest.raises(ValueError, match="ids as a keyword argument.*Call it as `embed_tokens"):
        model.get_input_embeddings()(input=torch.tensor([[5]]))


@torch.no_grad()
def test_unverified_bases_that_are_right_are_taken(tmp_path):
    base = with_code_of_its_own(lambda ids, embeddings: embeddings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PaletteForCausalLM.from_base(base, palette_for(base))
    reference = tiny_base("llama")
    codes = torch.tensor([5])
    ids = torch.cat([model.latent_ids(codes, 3), torch.tensor([[7, 8, 9]])], 1)
    vectors = model.palette.decode(model.latents_from_codes(codes, 3))
    rows = torch.cat([vectors, reference.get_input_embeddings()(ids[:, 3:])], 1)
    torch.testing.assert_close(model(ids).logits, reference(inputs_embeds=rows).logits, atol=1e-5, rtol=0)


def test_unverified_bases_that_cannot_be_run_are_warned_of():
    config = tiny_config("llama")
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
    base.__class__ = type("CustomForCausalLM", (type(base),), {"__module__": "custom"})
    with pytest.warns(UserWarning, match=r"could not be checked: its weights are on the meta device"):
        PaletteForCausalLM.from_base(base, palette_for(base))
    base = with_code_of_its_own(lambda ids, embeddings: embeddings[:, ::2])
    base.get_input_embeddings().register_forward_pre_hook(lambda module, args: (args[0].T,))
    with pytest.warns(UserWarning, match=r"a forward pass with token ids alone fails"):
        PaletteForCausalLM.from_base(base, palette_for(base))


def test_checkpoints_of_unverified_families_are_checked_on_loading(tmp_path, monkeypatch):
    from reasoning_palette.modeling_palette import supported_bases

    monkeypatch.setattr(supported_bases, "VERIFIED_MODEL_TYPES", VERIFIED_MODEL_TYPES - {"llama"})
    base = tiny_base("llama")
    base.save_pretrained(tmp_path / "base")
    model = PaletteForCausalLM.from_base(str(tmp_path / "base"), palette_for(base))
    for palette_only in (False, True):
        folder = tmp_path / f"palette_only_{palette_only}"
        model.save_pretrained(folder, palette_only=palette_only)
        AutoModelForCausalLM.from_pretrained(folder)
        # as if the installed version of the family hashed ids
        plain = type(base.model).forward

        def forward(self, input_ids=None, inputs_embeds=None, plain=plain, **inputs):
            return plain(self, inputs_embeds=hashed(input_ids, self.embed_tokens(input_ids)), **inputs)

        with monkeypatch.context() as patched:
            patched.setattr(type(base.model), "forward", forward)
            with pytest.raises(ValueError, match="it reads token ids beside its input embedding"):
                AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.skipif(not is_known("gemma4_text"), reason="no Gemma 4 in this version of transformers")
@torch.no_grad()
def test_gemma4_reads_latents_as_pads_under_lora_and_with_new_tables():
    from peft import LoraConfig, get_peft_model

    case = case_of("gemma4_text")
    tokens = [3, 4, 5, 6]
    ids = case.with_prefix(0, tokens)
    expected = behind_prefix(case, 0, tokens)
    lora = LoraConfig(target_modules=["q_proj", "down_proj"])
    adapted = get_peft_model(PaletteForCausalLM.from_base(tiny_base("gemma4_text"), case.model.palette), lora)
    torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-5, rtol=0)

    # another table: rows of the pad differ
    model = PaletteForCausalLM.from_base(tiny_base("gemma4_text"), case.model.palette)
    base = tiny_base("gemma4_text")
    table = base.get_per_layer_input_embeddings()
    table.weight.data.mul_(-2)
    model.set_per_layer_input_embeddings(table)
    other = Case(base, model, through_hook=True)
    found = model(ids).logits
    torch.testing.assert_close(found, behind_prefix(other, 0, tokens), atol=1e-5, rtol=0)
    assert not torch.allclose(found, expected, atol=1e-2)

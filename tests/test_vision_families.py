"""Every family of `vision_families` through every check of `vision_checks`, and the page that is written from them."""

import re

import pytest

pytest.importorskip("torchvision")

import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlavaConfig,
)
from vision_checks import CHECKS, case_of, outcome
from vision_families import FAMILIES, TEXT, TOWER, is_known, tiny_base, tiny_config
from vision_page import PAGE

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteForVision2Seq, PaletteVAE
from reasoning_palette.modeling_palette.supported_bases import UNSUPPORTED_MODEL_TYPES, VERIFIED_VISION_TYPES

WRITTEN_WITH = re.search(r"transformers (\d+\.\d+)", PAGE.read_text()).group(1)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, check):
    if not is_known(family):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    outcome(family, check)


def test_page_has_these_families():
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert [line[0].strip("`") for line in lines] == list(FAMILIES)
    assert {tiny_config(family).model_type for family in FAMILIES} == VERIFIED_VISION_TYPES
    assert all(len(line) == len(CHECKS) + 2 for line in lines)
    assert Version(WRITTEN_WITH) >= Version("5.16")


def test_classes_and_kinds(tmp_path):
    model = case_of("qwen2_5_vl").model
    assert isinstance(model, PaletteForVision2Seq)
    assert isinstance(model, transformers.Qwen2_5_VLForConditionalGeneration)
    assert not isinstance(model, PaletteForCausalLM)
    assert type(model).__name__ == "PaletteQwen2_5_VLForConditionalGeneration"
    assert set(model.config.auto_map) == {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"}
    assert model.config.image_token_id == model.config.base_config.image_token_id
    assert model.processor.tokenizer is model.tokenizer
    for auto_class in (AutoModel, AutoModelForImageTextToText):
        assert isinstance(auto_class.from_config(model.config), PaletteForVision2Seq)


def test_the_wrong_kind_is_refused_with_the_way_out(tmp_path):
    base = tiny_base("gemma3")  # to transformers a causal language model as well
    use_vision = "reads images beside text: use PaletteForVision2Seq in place of PaletteForCausalLM"
    with pytest.raises(ValueError, match="`base` is a Gemma3ForConditionalGeneration, which " + use_vision):
        PaletteForCausalLM.from_base(base)
    text = AutoModelForCausalLM.from_config(base.config.text_config)
    with pytest.raises(ValueError, match="reads text alone: use PaletteForCausalLM in place of PaletteForVision2Seq"):
        PaletteForVision2Seq.from_base(text)
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="'gemma3_text' model, which reads text alone: use PaletteForCausalLM"):
        PaletteForVision2Seq.from_base(tmp_path / "text")
    tiny_base("llava").save_pretrained(tmp_path / "llava")
    with pytest.raises(ValueError, match="is a 'llava' model, which " + use_vision):
        PaletteForCausalLM.from_base(tmp_path / "llava")

    case_of("llava").model.save_pretrained(tmp_path / "palette")
    for load in (AutoModelForCausalLM.from_pretrained, PaletteForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=r"The base of .* \('llava'\) " + use_vision):
            load(tmp_path / "palette")
    PaletteForCausalLM.from_base(text).save_pretrained(tmp_path / "text_palette")
    with pytest.raises(ValueError, match=r"\('gemma3_text'\) reads text alone: use PaletteForCausalLM"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "text_palette")


@pytest.mark.parametrize("model_type", ["gemma3n", "idefics", "mllama", "kosmos-2"])
def test_families_that_read_ids_otherwise_are_refused(model_type):
    base = tiny_base("llava")
    base.config.model_type = model_type
    reason = f"cannot be put on '{model_type}' models: {UNSUPPORTED_MODEL_TYPES[model_type]}"
    with pytest.raises(ValueError, match=reason):
        PaletteForVision2Seq.from_base(base)


def test_encoder_decoders_are_refused():
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    with torch.device("meta"):
        base = AutoModelForImageTextToText.from_config(
            transformers.Florence2Config(text_config={"model_type": "bart", **sizes, **heads})
        )
    with pytest.raises(ValueError, match="needs a decoder-only base; Florence2ForConditionalGeneration is an encoder"):
        PaletteForVision2Seq.from_base(base)


def test_other_families_are_checked_with_text_and_warned_of():
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", **TOWER, "image_size": 16},
        image_token_index=24,
        architectures=["VipLlavaForConditionalGeneration"],
    )
    values = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}
    config = transformers.VipLlavaConfig(**{**values, "vision_feature_layers": [-2, -1]})
    base = AutoModelForImageTextToText.from_config(config)
    palette = PaletteVAE(32, latent_dim=4, hidden_sizes=(8,))
    with pytest.warns(UserWarning, match=r"'vipllava'.* was checked with text, but not with images"):
        PaletteForVision2Seq.from_base(base, palette)


def test_traces_are_pooled_with_the_processors_tokenizer():
    model = case_of("gemma3").model
    found = model.pool_traces(["w1 w2", {"question": "w3", "answer": "w4 w5"}])
    rows = model.get_input_embeddings()(torch.tensor([5, 6, 7, 8, 9]))
    torch.testing.assert_close(found, torch.stack([rows[:2].mean(0), rows[2:].mean(0)]).detach())

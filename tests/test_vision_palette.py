"""Palettes on vision-language models as users meet them: `generate`, pipelines, `custom_generate`, files, cards."""

import copy
import json
import os
import pickle
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("torchvision")

import torch
from card_schema import text_errors
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard
from test_remote_code import run_without_the_package
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline
from vision_checks import CODES, DOMAIN, LENGTH, Case, case_of, greedy
from vision_families import FAMILIES, ID, IMAGE, QWEN_IMAGE, TEXT, TOWER, VIDEO, picture, tiny_base

from reasoning_palette.modeling_palette import PaletteForVision2Seq, PaletteVAE
from reasoning_palette.modeling_palette.palette_card import new_card

# The image's placeholder in front of the text, as templates of Qwen do it.
TEMPLATE = """\
{%- for message in messages -%}{%- for part in message.content -%}
{%- if part.type == 'image' -%}<start_of_image> <image> <end_of_image> {% else -%}{{ part.text }} {% endif -%}
{%- endfor -%}{%- endfor -%}"""
GREEDY = {"max_new_tokens": 6, "do_sample": False}
UNCOMPILED = {"disable_compile": True}  # of steps with a static cache
MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image", "image": picture(16, 24)}, {"type": "text", "text": "w1 w2"}],
    }
]


@pytest.fixture(scope="module")
def case() -> Case:
    return case_of("qwen3_vl")


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory):
    """A base with its processor, and a full and a palette-only checkpoint on it."""
    folder = tmp_path_factory.mktemp("vision")
    processor = FAMILIES["qwen3_vl"].processor()
    processor.chat_template = TEMPLATE
    case.base.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    model = PaletteForVision2Seq.from_base(folder / "base", case.model.palette)
    assert type(model.processor) is type(processor)
    for kind in ("full", "palette"):
        model.save_pretrained(folder / kind, palette_only=kind == "palette")
    return folder


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_draws_keep_the_images_of_their_prompts(family):
    """Several draws for each of three prompts, with one image, none, and two."""
    case = case_of(family)
    output = case.model.generate(
        **case.batch, **GREEDY, domain="math", latent_seed=3, num_return_sequences=2, return_dict_in_generate=True
    )
    codes = output.latent_codes
    assert len(set(codes.tolist())) == 6
    width = case.batch["input_ids"].shape[1]
    for draw in range(2):
        found = output.sequences[draw::2]
        assert torch.equal(case.model.generate(**case.batch, **GREEDY, latent=codes[draw::2]), found)
    for row in range(3):
        alone = case.model.generate(
            **case.rows[row],
            **GREEDY,
            domain="math",
            latent_seed=3,
            num_return_sequences=2,
            return_dict_in_generate=True,
        )
        again = [case.model.generate(**case.rows[row], **GREEDY, latent=code) for code in codes[2 * row : 2 * row + 2]]
        assert torch.equal(torch.cat(again)[:, -6:], output.sequences[2 * row : 2 * row + 2, width:])
        for code, answer in zip(alone.latent_codes, alone.sequences, strict=True):
            assert torch.equal(case.model.generate(**case.rows[row], **GREEDY, latent=code)[0], answer)


@torch.no_grad()
def test_draws_keep_images_of_unequal_sizes():
    """LLaVA with the vision tower of Pixtral: one image of 16 placeholders, and two of 4."""
    config = CONFIG_MAPPING["llava"](
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "pixtral", **TOWER, "head_dim": 8, "image_size": 16},
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_token_index=ID[IMAGE],
    )
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_config(config).eval()
    model = PaletteForVision2Seq.from_base(base, PaletteVAE(32, latent_dim=8, hidden_sizes=(16,)))
    ids = torch.full((2, 18), ID[IMAGE])
    ids[0, :2] = ids[1, 8:10] = torch.tensor([ID["w1"], ID["w2"]])
    ids[1, :8] = 0
    mask = (ids != 0).long()
    images = {"pixel_values": torch.randn(3, 3, 16, 16), "image_sizes": torch.tensor([[16, 16], [8, 8], [8, 8]])}
    arguments = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    output = model.generate(
        ids, attention_mask=mask, **images, **arguments, num_prefix_tokens=2, latent_seed=1, num_return_sequences=2
    )
    for row, own in enumerate((slice(0, 1), slice(1, 3))):
        for draw in (2 * row, 2 * row + 1):
            alone = model.generate(
                ids[row : row + 1, 8 * row :],
                attention_mask=mask[row : row + 1, 8 * row :],
                **{name: tensor[own] for name, tensor in images.items()},
                **arguments,
                num_prefix_tokens=2,
                latent=int(output.latent_codes[draw]),
            )
            torch.testing.assert_close(output.logits[0][draw], alone.logits[0][0], atol=1e-5, rtol=0)


def test_images_that_cannot_be_told_apart_are_refused():
    case = case_of("llava")
    arguments = {**GREEDY, "domain": "math", "num_return_sequences": 2}
    one_less = {**case.batch, "pixel_values": case.batch["pixel_values"][1:]}
    with pytest.raises(ValueError, match=r"have \[16, 0, 32\] placeholders of images, but the images, of the sizes"):
        case.model.generate(**one_less, **arguments)
    other = copy.copy(case.model)
    other.config = copy.deepcopy(case.model.config)
    other.config.base_config.model_type = "llava_next"
    with pytest.raises(ValueError, match="not known for several prompts of 'llava_next' with images"):
        other.generate(**case.batch, **arguments)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "smolvlm"])
def test_ways_of_decoding(family):
    case = case_of(family)
    model, batch = case.model, case.batch
    prefix = {"latent": CODES, "num_prefix_tokens": LENGTH}
    plain = model.generate(**batch, **GREEDY, **prefix)
    latents = model.latents_from_codes(CODES, LENGTH)
    assert torch.equal(model.generate(**batch, **GREEDY, latent=latents), plain)
    beams = model.generate(**batch, max_new_tokens=6, num_beams=3, **prefix)
    again = model.generate(**batch, max_new_tokens=6, num_beams=3, latent=latents)
    assert torch.equal(beams, again)
    domains = model.generate(**batch, **GREEDY, domain=["math"] * 3, latent_seed=1, return_dict_in_generate=True)
    assert torch.equal(domains.latent_codes >> 20, torch.ones(3, dtype=torch.int64))
    torch.manual_seed(0)
    sampled = model.generate(**batch, do_sample=True, max_new_tokens=6, **prefix)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**batch, do_sample=True, max_new_tokens=6, latent=latents), sampled)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "smolvlm"])
@pytest.mark.parametrize(
    "settings",
    [{"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 4}, {"cache_implementation": "static"}],
    ids=lambda settings: next(iter(settings)),
)
def test_other_ways_to_the_same_tokens(family, settings):
    case = case_of(family)
    prefix = {"latent": DOMAIN, "num_prefix_tokens": LENGTH}
    expected = case.model.generate(**case.rows[2], **GREEDY, **prefix)
    assert torch.equal(case.model.generate(**case.rows[2], **GREEDY, **prefix, **settings, **UNCOMPILED), expected)


@torch.no_grad()
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_returned_cache_goes_on(family):
    case = case_of(family)
    model, batch = case.model, case.batch
    prefix = {"latent": CODES, "num_prefix_tokens": LENGTH}
    whole, _ = greedy(case, model, **prefix)
    first = model.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, **prefix)
    cache = getattr(first, "cache", None) if hasattr(first, "cache") else first.past_key_values
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 3, dtype=torch.int64)], 1)
    name = "cache" if hasattr(first, "cache") else "past_key_values"
    rest = model.generate(
        input_ids=first.sequences, attention_mask=mask, max_new_tokens=3, do_sample=False, **{name: cache}
    )
    assert rest[:, -6:].tolist() == whole


@torch.no_grad()
def test_behind_bos():
    case = case_of("llava")
    model = PaletteForVision2Seq.from_base(copy.deepcopy(case.base), case.model.palette, prefix_position="after_bos")
    ids = torch.cat([torch.ones(1, 1, dtype=torch.int64), case.rows[0]["input_ids"]], 1)
    inputs = {"pixel_values": case.rows[0]["pixel_values"], "attention_mask": torch.ones_like(ids)}
    output = model.generate(
        ids,
        **inputs,
        max_new_tokens=1,
        latent=5,
        num_prefix_tokens=2,
        output_logits=True,
        return_dict_in_generate=True,
    )
    latent_ids = model.latent_ids(torch.tensor([5]), 2)
    by_hand = torch.cat([ids[:, :1], latent_ids, ids[:, 1:]], 1)
    logits = model(by_hand, pixel_values=inputs["pixel_values"]).logits[:, -1]
    torch.testing.assert_close(output.logits[0], logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "gemma4"])
def test_videos(family):
    """Two videos of different lengths, and a prompt without; against a stock base whose embeddings are replaced."""
    case = case_of(family)
    model, base = case.model, case.base
    video = VIDEO if family != "qwen2_5_vl" else QWEN_IMAGE.replace(IMAGE, VIDEO)
    shapes = [(2, 3, 16, 16), (4, 3, 16, 24)]
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(256, shape, generator=generator, dtype=torch.uint8) for shape in shapes)
    batch = dict(
        model.processor(
            text=[f"w1 {video} w2", "w5 w6", f"{video} w8"],
            videos=[[first], [], [second]],
            size={"shortest_edge": 64, "longest_edge": 4096},
            do_sample_frames=False,
            padding=True,
            return_tensors="pt",
        )
    )
    inputs = case.with_prefix(batch, [0, 1, 2])
    is_latent = inputs["input_ids"] >= model.config.latent_id_base
    vectors = model.palette.decode(model.latents_from_codes(CODES, LENGTH)).reshape(-1, 32)
    hook = base.get_input_embeddings().register_forward_hook(
        lambda module, args, rows: rows.index_put((is_latent,), vectors) if rows.shape[:2] == is_latent.shape else rows
    )
    pads = {**inputs, "input_ids": inputs["input_ids"].masked_fill(is_latent, 0)}
    try:
        expected = base(**pads, use_cache=False).logits
    finally:
        hook.remove()
    is_real = inputs["attention_mask"].bool()
    found = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(found[is_real], expected[is_real], atol=1e-5, rtol=0)
    drawn = {"domain": "math", "latent_seed": 1, "num_return_sequences": 2, "return_dict_in_generate": True}
    output = model.generate(**batch, **GREEDY, **drawn)
    for draw in range(2):
        replayed = model.generate(**batch, **GREEDY, latent=output.latent_codes[draw::2])
        assert torch.equal(replayed, output.sequences[draw::2])
    if "second_per_grid_ts" in batch:  # of one prompt, and as a list
        alone = {name: value[:1] for name, value in batch.items() if name != "pixel_values_videos"}
        alone |= {"second_per_grid_ts": [0.5], "pixel_values_videos": batch["pixel_values_videos"][:16]}
        again = model.generate(**alone, **GREEDY, latent=CODES[[0, 0]], num_return_sequences=2)
        assert torch.equal(again, model.generate(**alone, **GREEDY, latent=77).expand(2, -1))
        # 300 seconds between frames: many positions, though few tokens
        slow = {name: value[-1:] for name, value in batch.items()}
        slow |= {"second_per_grid_ts": [300.0], "pixel_values_videos": batch["pixel_values_videos"][16:]}
        with pytest.raises(ValueError, match="positions of the prompt .* 400 new tokens are .* this model has 512"):
            model.generate(**slow, max_new_tokens=400, latent=5, num_prefix_tokens=4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3_5", "gemma4"])  # some of whose parameters stay float32
def test_in_half_precision(family, tmp_path):
    case = case_of(family)
    case.base.save_pretrained(tmp_path / "base")
    case.model.save_pretrained(tmp_path / "palette")
    base, model = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name, dtype=torch.bfloat16)
        for name in ("base", "palette")
    )
    row = {
        name: tensor.to(base.dtype) if tensor.is_floating_point() else tensor for name, tensor in case.rows[2].items()
    }
    half = Case(family, base, model, [row] * 3, case.batch)
    found = model(**half.with_prefix(row, [2]), use_cache=False).logits[0, LENGTH:]
    assert found.dtype == torch.bfloat16
    assert model.palette.embedding_mean.dtype == torch.float32
    torch.testing.assert_close(found, half.by_hand(2), atol=1e-2, rtol=0)


def test_positions_are_counted_as_the_base_does():
    """An image of 6 tokens, 3 by 2, takes 3 positions under M-RoPE: 4 words, 2 marks and it are 9."""
    case = case_of("qwen3_vl")
    model = copy.copy(case.model)
    model.config = copy.deepcopy(case.model.config)
    model.config.base_config.text_config.max_position_embeddings = 9 + LENGTH + 2
    prefix = {"latent": 5, "num_prefix_tokens": LENGTH, "do_sample": False}
    found = model.generate(**case.rows[0], **prefix, max_new_tokens=2)
    assert torch.equal(found, case.model.generate(**case.rows[0], **prefix, max_new_tokens=2))
    with pytest.raises(ValueError, match="9 positions of the prompt .* are 16 positions, but this model has 15"):
        model.generate(**case.rows[0], **prefix, max_new_tokens=3)


def test_without_a_palette_prefixes_are_refused():
    model = PaletteForVision2Seq.from_base(tiny_base("llava"))
    with pytest.raises(ValueError, match=r"Give one to `PaletteForVision2Seq.from_base\(base, palette=...\)`"):
        model.generate(**case_of("llava").rows[0], num_prefix_tokens=2)
    with pytest.raises(ValueError, match=r"Give one to `PaletteForVision2Seq.from_base\(base, palette=...\)`"):
        model.latent_ids(CODES, 2)


def test_exports_of_text_models_are_refused(case, tmp_path):
    for name in ("export_strategy_tokens", "export_prompt_tuning"):
        with pytest.raises(ValueError, match=f"`{name}` is for text models: .*custom_generate"):
            getattr(case.model, name)(tmp_path, {"a": 5})
    assert not any(tmp_path.iterdir())


def test_models_are_pickled(case):
    ids = case.with_prefix(case.rows[0], [0])
    again = pickle.loads(pickle.dumps(case.model))
    assert isinstance(again, PaletteForVision2Seq)
    assert torch.equal(again(**ids).logits, case.model(**ids).logits)


@pytest.mark.parametrize("kind", ["full", "palette"])
def test_the_stock_pipeline_hands_palette_arguments_on(folder, kind):
    piped = pipeline("image-text-to-text", model=str(folder / kind))
    model, processor = piped.model, piped.processor
    assert isinstance(model, PaletteForVision2Seq)
    inputs = processor.apply_chat_template(
        MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )

    def answer(**arguments):
        output = model.generate(**inputs, **GREEDY, **arguments)
        return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def of_pipeline(*given, **arguments):
        settings = {"generate_kwargs": {"do_sample": False}, "max_new_tokens": 6, "return_full_text": False}
        return piped(*given, **{**settings, **arguments})[0]["generated_text"].strip()

    math = {"domain": "math", "latent_seed": 1}
    plain, drawn = answer(), answer(**math)
    assert plain != drawn
    assert of_pipeline(text=MESSAGES) == plain
    assert of_pipeline(text=MESSAGES, **math) == drawn
    assert of_pipeline(text=MESSAGES, generate_kwargs={"do_sample": False, **math}) == drawn
    text = "<start_of_image> <image> <end_of_image> w1 w2"
    assert of_pipeline(picture(16, 24), text=text, **math) == drawn
    assert of_pipeline(text=MESSAGES, latent=DOMAIN, num_prefix_tokens=3) == answer(latent=DOMAIN, num_prefix_tokens=3)
    with pytest.raises(ValueError, match="`domain` is given twice, in `generate_kwargs` and as an argument"):
        of_pipeline(text=MESSAGES, domain="math", generate_kwargs={"domain": "math"})
    with pytest.raises(ValueError, match="`domain`='maths' is unknown"):
        of_pipeline(text=MESSAGES, domain="maths")

    made = pipeline("image-text-to-text", model=model, processor=processor, **math)
    for arguments in ({}, {"max_new_tokens": 6}, {"generate_kwargs": {"max_new_tokens": 6}}):
        found = made(text=MESSAGES, return_full_text=False, **arguments)[0]["generated_text"]
        assert found.strip().startswith(drawn)


def test_the_pipeline_of_another_model_is_what_it_was(folder):
    piped = pipeline("image-text-to-text", model=str(folder / "base"))
    preprocessing, forward, _ = piped._sanitize_parameters(domain="math", max_new_tokens=3)
    assert preprocessing == {"domain": "math"}
    assert forward == {"generate_kwargs": {"max_new_tokens": 3}}


@torch.no_grad()
def test_an_unmodified_base_through_custom_generate(folder, case):
    base = AutoModelForImageTextToText.from_pretrained(folder / "base")
    palette = {"custom_generate": str(folder / "palette"), "trust_remote_code": True}
    plain = base.generate(**case.batch, **GREEDY)
    for arguments in ({"latent": CODES, "num_prefix_tokens": LENGTH}, {"domain": "math", "latent_seed": 2}):
        served = base.generate(**case.batch, **palette, **GREEDY, **arguments)
        assert torch.equal(served, case.model.generate(**case.batch, **GREEDY, **arguments))
    assert not isinstance(base, PaletteForVision2Seq)
    assert torch.equal(base.generate(**case.batch, **GREEDY), plain)


def test_processors_and_tokenizers_that_are_kept(case, folder, tmp_path):
    loaded = AutoModelForImageTextToText.from_pretrained(folder / "palette")
    assert type(loaded.processor).__name__ == "Qwen3VLProcessor"
    assert loaded.tokenizer is loaded.processor.tokenizer
    assert type(AutoProcessor.from_pretrained(folder / "palette")).__name__ == "Qwen3VLProcessor"
    # of a base that has a tokenizer alone, that one; of a base that has neither, none, and not an empty one
    case.base.save_pretrained(tmp_path / "base")
    assert PaletteForVision2Seq.from_base(tmp_path / "base", copy.deepcopy(case.model.palette)).processor is None
    case.model.tokenizer.save_pretrained(tmp_path / "base")
    model = PaletteForVision2Seq.from_base(tmp_path / "base", copy.deepcopy(case.model.palette))
    assert len(model.processor) == len(model.tokenizer) == len(case.model.tokenizer)
    model.save_pretrained(tmp_path / "saved")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")) == len(model.tokenizer)


def test_a_domain_is_added_and_saved(case, folder, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(folder / "palette")
    source = model.add_domain("grounding", [f"w{number} w{number + 1} w3" for number in range(16)])
    model.save_pretrained(tmp_path, palette_only=True)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.domains["grounding"] == {"source": source, "count": 16}
    output = [each.generate(**case.batch, **GREEDY, domain="grounding", latent_seed=4) for each in (model, again)]
    assert torch.equal(*output)


def test_the_card(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder / "palette")
    model.config.base_model_name_or_path = "org/base"
    card = new_card(model, "org/palette", palette_only=True, revision="0" * 40)
    assert ModelCard(str(card)).data.pipeline_tag == "image-text-to-text"
    for text in (
        "AutoModelForImageTextToText, AutoProcessor",
        'pipeline("image-text-to-text"',
        "What is in this image?",
    ):
        assert text in card.text
    assert "AutoModelForCausalLM" not in card.text
    snippets = card.text.split("```python\n")[1:]
    for snippet in snippets:
        compile(snippet.split("```")[0], "snippet", "exec")
    own, piped, custom = (snippet.split("```")[0] for snippet in snippets[:3])
    picture(24, 16).save(folder / "image.png")
    for snippet in (own, piped, custom):
        local = snippet.replace('"org/palette"', json.dumps(str(folder / "palette"))).replace("0" * 40, "main")
        local = local.replace('"org/base"', json.dumps(str(folder / "base"))).replace(
            "What is in this image?", "w1 w2"
        )
        lines = [
            f"image = {json.dumps(str(folder / 'image.png'))}" if line.startswith("image = ") else line
            for line in local.splitlines()
        ]
        exec(compile("\n".join(lines), "snippet", "exec"), {})


SCRIPT = """
import importlib.util, json, sys
assert importlib.util.find_spec("reasoning_palette") is None
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, pipeline
from PIL import Image

folder, image = sys.argv[1:]
trust = {"trust_remote_code": True}
messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "w1 w2"}]}]
found = {}
for auto in (AutoModelForImageTextToText, AutoModel):
    model, info = auto.from_pretrained(folder, output_loading_info=True, **trust)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    found[auto.__name__] = type(model).__name__
piped = pipeline("image-text-to-text", model=folder, **trust)
settings = {"max_new_tokens": 8, "return_full_text": False, "generate_kwargs": {"do_sample": False}}
for arguments in ({}, {"domain": "math", "latent_seed": 1}):
    found[str(len(arguments))] = piped(text=messages, **settings, **arguments)[0]["generated_text"]
try:
    AutoModelForCausalLM.from_pretrained(folder, **trust)
except ValueError as error:
    found["causal"] = str(error).splitlines()[0]
print(json.dumps(found))
"""


def test_a_full_checkpoint_works_without_the_package(folder, tmp_path):
    picture(16, 24).save(tmp_path / "image.png")
    done = run_without_the_package(SCRIPT, tmp_path, folder / "full", tmp_path / "image.png")
    assert done.returncode == 0, done.stderr
    assert "not supported for image-text-to-text" not in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    name = "PaletteQwen3VLForConditionalGeneration"
    assert found["AutoModelForImageTextToText"] == found["AutoModel"] == name
    assert found["0"] != found["2"]
    assert "AutoModelForCausalLM" in found["causal"]


PUBLISH = """
import sys
from reasoning_palette.modeling_palette import PaletteForVision2Seq, PaletteVAE

model = PaletteForVision2Seq.from_base("alice/base", palette=sys.argv[1])
model.push_to_hub("alice/palette", palette_only=True)
"""


def test_a_palette_through_the_hub_works_without_the_package(folder, tmp_path):
    picture(16, 24).save(tmp_path / "image.png")
    site = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if any((Path(packages) / "reasoning_palette").is_dir() for packages in site):
        pytest.skip("the package is installed in site-packages itself, where it cannot be hidden from a process")

    def run(*command, **variables):
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, **hub.environment(tmp_path / "home", "alice-token"), **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with HubStandIn({"alice-token": "alice"}, text_errors) as hub:
        hub.put("alice/base", folder / "base")
        run("-c", PUBLISH, folder / "palette")
        files = hub.files("alice/palette")
        card = ModelCard(files["README.md"].decode())
        assert card.data.pipeline_tag == "image-text-to-text"
        assert card.data.base_model == "alice/base"
        assert {"processor_config.json", "palette.safetensors", "custom_generate/generate.py"} <= files.keys()
        assert "model.safetensors" not in files
        # without the package: `-S` skips the `.pth` files of editable installs
        output = run("-S", "-c", SCRIPT, "alice/palette", "image.png", PYTHONPATH=os.pathsep.join(dict.fromkeys(site)))
    found = json.loads(output.splitlines()[-1])
    assert found["AutoModel"] == "PaletteQwen3VLForConditionalGeneration"
    assert found["0"] != found["2"]

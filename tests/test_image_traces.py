"""Mean embeddings of traces with images: of their text alone, or of what stands in for the images too."""

import warnings

import pytest

pytest.importorskip("torchvision")

import torch
import transformers
from trainer_testing import tiny_base as text_base
from trainer_testing import tiny_palette
from vision_families import FAMILIES, ID, IMAGE, WORDS, is_known, picture, tiny_base
from vision_trainers import make_trainer, processor_of

from reasoning_palette.modeling_palette import PaletteForVision2Seq, PaletteVAE
from reasoning_palette.modeling_palette.trace_images import ImageFeatures, placeholder_ids, trace_images
from reasoning_palette.modeling_palette.trace_pooling import pool_traces
from reasoning_palette.trainers.palette_vae_config import PaletteVAEConfig
from reasoning_palette.trainers.palette_vae_trainer import PaletteVAETrainer
from reasoning_palette.trainers.traces import load_traces

WORD_IDS = {ID[word] for word in WORDS}


def conversation(question, answer, images=()):
    parts = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": question}]
    answer = [{"type": "text", "text": answer}]
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]}


ROWS = [
    conversation("w1 w2", "w3", [picture(16, 32)]),
    conversation("w4", "w5 w4 w6", [picture(32, 16), picture(48, 48)]),
    conversation("w7 w8", "w9"),
    {"prompt": "w1", "completion": " w2 w3", "images": [picture(16, 16)]},
]
TEXTS = ["w1 w2 w3", "w4 w5 w4 w6", "w7 w8 w9", "w1 w2 w3"]


@torch.no_grad()
def means_by_hand(family, base, processor):
    """Means over the language model's input, as a stock forward pass hands it on: words and images, and no marks."""
    means, seen = [], {}

    def note(module, args, kwargs):
        seen["embeds"] = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else args[0]

    hook = base.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    for row, text in zip(ROWS, TEXTS, strict=True):
        images = trace_images(row)
        prompt = " ".join([FAMILIES[family].image] * len(images) + [text])
        inputs = processor(text=[prompt], images=[images] if images else None, return_tensors="pt")
        base(**inputs)
        counted = [token in WORD_IDS or token == ID[IMAGE] for token in inputs["input_ids"][0].tolist()]
        assert sum(counted) > len(text.split()) or not images
        means.append(seen["embeds"][0][torch.tensor(counted)].mean(dim=0))
    hook.remove()
    return torch.stack(means)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_embeddings_are_those_of_a_forward_pass(family):
    if not is_known(family):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    base, processor = tiny_base(family), FAMILIES[family].processor()
    expected = means_by_hand(family, base, processor)
    pooled = pool_traces(ROWS, base.get_input_embeddings(), processor, image_features=ImageFeatures(base, processor))
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)
    # by default, and in any family, the text alone
    words = [torch.tensor([[ID[word] for word in text.split()]]) for text in TEXTS]
    with torch.no_grad():
        text = torch.cat([base.get_input_embeddings()(ids).mean(dim=1) for ids in words])
    torch.testing.assert_close(pool_traces(ROWS, base.get_input_embeddings(), processor), text, atol=1e-6, rtol=0)
    assert (pooled - text)[[0, 1, 3]].abs().amax(dim=1).min() > 1e-3


def test_placeholders_do_not_count():
    base, processor = tiny_base("gemma3"), FAMILIES["gemma3"].processor()
    ignored = placeholder_ids(base.config)
    assert ignored == {ID[IMAGE], ID["<start_of_image>"], ID["<end_of_image>"]}
    ids = [ID["<start_of_image>"], *[ID[IMAGE]] * 4, ID["<end_of_image>"], ID["w1"], ID["w2"]]
    rows = [ids, f"{IMAGE} w1 w2", {"prompt": f"<start_of_image> w1 {IMAGE}", "completion": " w2"}]
    pooled = pool_traces(rows, base.get_input_embeddings(), processor, ignored_ids=ignored)
    scaled = base.get_input_embeddings().weight[[ID["w1"], ID["w2"]]].mean(dim=0) * 32**0.5  # Gemma's scale
    torch.testing.assert_close(pooled, scaled.detach().expand(3, -1), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="1 traces have no tokens to pool: row 0"):
        pool_traces([[ID[IMAGE]]], base.get_input_embeddings(), processor, ignored_ids=ignored)


class TestImagesOfRows:
    def test_where_they_are(self, tmp_path):
        small, large = picture(8, 8), picture(16, 16)
        small.save(tmp_path / "small.png")
        bare = [{"role": "user", "content": [{"type": "image"}, {"type": "image", "text": None}]}]
        for row in (
            {"messages": bare, "images": [small, large]},
            {"prompt": "w1", "completion": "w2", "images": [small, large]},
            conversation("w1", "w2", [str(tmp_path / "small.png"), large]),
            conversation("w1", "w2", [{"path": f"file://{tmp_path}/small.png"}, large]),
        ):
            assert [image.size for image in trace_images(row)] == [(8, 8), (16, 16)]
        assert [image.size for image in trace_images({"prompt": "w1", "image": small})] == [(8, 8)]
        assert trace_images({"question": "w1", "answer": "w2", "images": None}) == []

    @pytest.mark.parametrize(
        ("content", "images", "message"),
        [
            ([{"type": "image"}], [1, 2], "row 3 has 2 `images` for 1 image parts"),
            ([{"type": "image"}], None, "row 3 has 1 image parts in its messages, but no `images`"),
            ([{"type": "image", "image": 1}], [1], "names 1 images in 1 image parts of its messages and has 1 in"),
            ([{"type": "image", "image": 1}, {"type": "image"}], None, "names 1 images in 2 image parts"),
            (
                [{"type": "image", "image": 1, "max_pixels": 9}],
                None,
                r"row 3 has \['max_pixels'\].*load_message_images",
            ),
        ],
    )
    def test_refusals(self, content, images, message):
        with pytest.raises(ValueError, match=message):
            trace_images({"messages": [{"role": "user", "content": content}], "images": images}, "row 3")

    def test_what_cannot_merge_images(self):
        base, processor = tiny_base("llava"), FAMILIES["llava"].processor()
        with pytest.raises(ValueError, match="`merge_images`=True merges images, but Qwen3ForCausalLM reads none"):
            ImageFeatures(text_base(), processor)
        with pytest.raises(ValueError, match="needs the base's processor, got .*Tokenizer"):
            ImageFeatures(base, processor.tokenizer)
        with pytest.raises(ValueError, match="`num_segments`=2 cuts the text of traces"):
            pool_traces(ROWS, base.get_input_embeddings(), processor, 8, (), ImageFeatures(base, processor), 2)
        with pytest.raises(ValueError, match="`merge_images`=True, but a 'qwen3' base reads no images"):
            PaletteForVision2Seq.config_class(base_config=text_base().config, merge_images=True)
        with pytest.raises(ValueError, match="`merge_images`=True takes whole traces, but `num_segments`=8"):
            PaletteVAEConfig("out", decoder_type="gpt", merge_images=True)


def image_traces():
    """Two kinds of pictures and of words."""
    return [
        {**conversation(f"w{kind * 10} w{number % 9}", f"w{kind * 10 + number % 9}", [picture(16 + 16 * kind, 16)])}
        | {"domain": f"kind{kind}"}
        for number in range(12)
        for kind in (0, 1)
    ]


@pytest.mark.parametrize("settings", [{}, {"merge_images": True}, {"decoder_type": "gpt", "latent_dim": 64}], ids=str)
def test_training_on_image_traces(tmp_path, settings):
    processor = FAMILIES["qwen2_5_vl"].processor()
    tiny_base("qwen2_5_vl").save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    args = PaletteVAEConfig(
        str(tmp_path / "out"),
        **{"latent_dim": 4, **settings},
        max_steps=4,
        per_device_train_batch_size=8,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = image_traces()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four steps leave the latent empty
        trainer = PaletteVAETrainer(str(tmp_path / "base"), args, rows)
        trainer.train()
        trainer.save_model()
    model = PaletteForVision2Seq.from_pretrained(tmp_path / "out")
    assert model.config.merge_images is settings.get("merge_images", False)
    assert set(model.palette.domains) == {"kind0", "kind1"}
    pooled = model.pool_traces(rows)
    torch.testing.assert_close(torch.cat(list(trainer.train_dataset.chunks())), pooled)
    assert pooled.shape[1:] == ((8, 32) if model.palette.num_slots else (32,))
    with torch.no_grad():
        latents, _ = model.palette.encode(pooled[::2])
    source = model.add_domain("again", rows[::2])
    torch.testing.assert_close(model.palette.domain_means[source - 1], latents.mean(dim=0), atol=1e-5, rtol=0)


def test_columns_of_images_are_kept_where_they_are_asked_for():
    rows = [{"prompt": "w1", "completion": "w2", "images": [picture(8, 8)], "extra": 1}] * 2
    assert set(load_traces(rows).column_names) == {"prompt", "completion"}
    kept = load_traces(rows, keep_images=True)
    assert set(kept.column_names) == {"prompt", "completion", "images"}
    assert kept[0]["images"][0].size == (8, 8)


def test_a_palette_keeps_how_it_pools(tmp_path):
    base = tiny_base("llava")
    model = PaletteForVision2Seq.from_base(
        base, PaletteVAE(32, 4, (8,)), tokenizer=FAMILIES["llava"].processor(), merge_images=True
    )
    pooled = model.pool_traces(ROWS)
    expected = means_by_hand("llava", base, model.processor)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)


def test_posterior_pairing_refuses_a_palette_of_merged_images(tmp_path):
    model = PaletteForVision2Seq.from_base(
        tiny_base("llava"), tiny_palette(), processor_of("llava"), merge_images=True
    )
    with pytest.raises(
        ValueError, match=r"trained with the traces' images \(`merge_images`\). Use `latent_pairing='pri"
    ):
        make_trainer(tmp_path, "sft", "llava", model, latent_pairing="posterior")

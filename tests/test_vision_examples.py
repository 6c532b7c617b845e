"""The numbered examples on rows with images: what they hand to the trainers, and what they refuse."""

import importlib
import json

import pytest
from PIL import Image

pytest.importorskip("torchvision")

from vision_trainers import processor_of

from reasoning_palette.evaluation.shapes_processor import build_processor

train_vae, train_sft, train_grpo = (
    importlib.import_module(name) for name in ("02_train_vae", "04_train_sft", "05_train_grpo")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A processor, an image, and rows that name it in each of the ways."""
    folder = tmp_path_factory.mktemp("examples")
    build_processor().save_pretrained(folder / "model")
    picture = str(folder / "picture.png")
    Image.new("RGB", (48, 32), (200, 30, 30)).save(picture)
    rows = {
        "column": {"question": "Which colour?", "reasoning": "I look.", "answer": "red", "image": picture},
        "named": {
            "prompt": [
                {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Hue?"}]}
            ],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": "red"}]}],
        },
        "text": {"question": "One and one?", "reasoning": None, "answer": "two"},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    return folder


def pixels(image):
    """Of an image as it is in a row: decoded, or by its path."""
    return (Image.open(image) if isinstance(image, str) else image).convert("RGB").getpixel((5, 5))


def sft_rows(folder, *names):
    sources = [str(folder / f"{name}.jsonl") for name in names]
    return train_sft.training_set(train_sft.SFTArguments(model=str(folder / "model"), traces=sources))


def test_questions_with_an_image_become_messages(folder):
    rows = sft_rows(folder, "column")
    assert sorted(rows.column_names) == ["completion", "image", "prompt"]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Which colour?"}]
    assert rows[0]["completion"] == [{"role": "assistant", "content": "I look.\nred"}]
    assert pixels(rows[0]["image"]) == (200, 30, 30)
    prompts, (reward,) = train_grpo.question_task(train_grpo.GRPOArguments(), [str(folder / "column.jsonl")])
    assert prompts[0]["prompt"] == rows[0]["prompt"] and pixels(prompts[0]["image"]) == (200, 30, 30)
    completions = [[{"role": "assistant", "content": text}] for text in ("I think it is\nred", "blue")]
    assert reward(completions=completions, answer=prompts["answer"]) == [1.0, 0.0]


def test_questions_without_one_stay_text(folder):
    rows = sft_rows(folder, "text")
    assert rows[0] == {"prompt": "One and one?", "completion": "\ntwo"}
    prompts, (reward,) = train_grpo.question_task(train_grpo.GRPOArguments(), [str(folder / "text.jsonl")])
    assert prompts[0]["prompt"] == "One and one?"
    assert reward(completions=["So it is\n two ", "three"], answer=prompts["answer"]) == [1.0, 0.0]


def test_images_that_messages_name_go_into_a_column(folder):
    rows = sft_rows(folder, "named")
    assert pixels(rows[0]["images"][0]) == (200, 30, 30)
    parts = rows[0]["prompt"][0]["content"]
    assert [{key: value for key, value in part.items() if value is not None} for part in parts] == [
        {"type": "image"},
        {"type": "text", "text": "Hue?"},
    ]


def test_how_many_questions(folder):
    source = str(folder / "text.jsonl")
    prompts, _ = train_grpo.question_task(train_grpo.GRPOArguments(traces_per_source=1), [source, source])
    assert len(prompts) == 2


def test_a_limit_is_in_the_processor(folder):
    processor = train_vae.load_processor(train_vae.VAEArguments(base=str(folder / "model"), max_pixels=4096))
    assert processor.image_processor.size["longest_edge"] == 4096
    assert train_vae.load_processor(train_vae.VAEArguments(base=str(folder / "model"))) is None  # the trainer's own


def test_refusals(folder, tmp_path):
    text = str(train_grpo.__file__).replace("05_train_grpo.py", "countdown_base")
    for limits in ({"max_pixels": 4096}, {"task": "grounding"}):
        with pytest.raises(ValueError, match=r"but the base .*countdown_base' reads no images"):
            train_vae.load_processor(train_vae.VAEArguments(base=text, **limits))
    processor_of("gemma3").save_pretrained(tmp_path / "gemma")
    with pytest.raises(ValueError, match=r"`max_pixels` is 4096, but Gemma3Processor has no such limit"):
        train_vae.load_processor(train_vae.VAEArguments(base=str(tmp_path / "gemma"), max_pixels=4096))
    nothing = "`traces` is None, and for `task`='grounding' there are none to generate"
    with pytest.raises(ValueError, match=nothing):
        train_vae.main(
            train_vae.VAEArguments(task="grounding"), train_vae.PaletteVAEConfig(str(tmp_path), use_cpu=True)
        )
    with pytest.raises(ValueError, match=nothing):
        train_sft.training_set(train_sft.SFTArguments(task="grounding"))
    with pytest.raises(ValueError, match=nothing):
        train_grpo.main(
            train_grpo.GRPOArguments(task="grounding"), train_grpo.PaletteGRPOConfig(str(tmp_path), use_cpu=True)
        )

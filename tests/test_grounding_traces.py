"""Referring expressions as training data: answers that the readers take for the target, images as they were stored."""

import json
from io import BytesIO

import pytest
from datasets import Dataset, Image
from PIL import Image as Pillow

from reasoning_palette.evaluation import BOX_FORMATS, GroundingProblem, box_iou, iou_reward, load_grounding
from reasoning_palette.evaluation.box_parsing import AS_ASKED, ONE_BOX, parse_lenient, parse_strict
from reasoning_palette.evaluation.box_writing import write_box
from reasoning_palette.evaluation.grounding import VLM_R1_PROMPT
from reasoning_palette.evaluation.grounding_traces import grounding_traces

QWEN3 = BOX_FORMATS["qwen3_vl"]


def jpeg(width=640, height=480):
    buffer = BytesIO()
    Pillow.effect_noise((width, height), 40).convert("RGB").save(buffer, "JPEG", quality=35)
    return buffer.getvalue()


@pytest.mark.parametrize("box_format", BOX_FORMATS.values(), ids=BOX_FORMATS)
def test_what_is_written_is_read_strictly_and_is_the_box(box_format):
    size, target = (640, 480), (64.0, 120.0, 320.0, 361.0)
    seen = (644, 476) if box_format.scale is None else None
    text = write_box(box_format.from_pixels(target, size, seen), box_format, "the cat")
    strict, lenient = parse_strict(text, box_format), parse_lenient(text, box_format)
    assert (strict.reading, lenient.reading) == (AS_ASKED, ONE_BOX) and strict.box == lenient.box
    assert box_iou(box_format.to_pixels(strict.box, size, seen), target) > 0.97  # rounding, at worst to hundredths


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3_vl", '[{"bbox_2d": [100, 250, 500, 752], "label": "the \\"red\\" café"}]'),
        ("gemma4", '[{"box_2d": [250, 100, 752, 500], "label": "the \\"red\\" café"}]'),
        ("internvl", '<ref>the "red" café</ref><box>[[100, 250, 500, 752]]</box>'),
        ("llava", "[0.1, 0.31, 0.5, 0.69]"),
        ("paligemma", '<loc0256><loc0102><loc0770><loc0512> the "red" café'),
    ],
)
def test_answers_written_by_hand(name, expected):
    box_format = BOX_FORMATS[name]
    target = (64.0, 120.0, 320.0, 361.0)
    assert write_box(box_format.from_pixels(target, (640, 480)), box_format, 'the "red" café') == expected


def test_places_at_the_edge_are_places():
    text = write_box((-3.0, 0.0, 1024.0, 1024.0), BOX_FORMATS["paligemma"], "all")
    assert text == "<loc0000><loc0000><loc1023><loc1023> all"


def test_rows_of_a_hub_set(tmp_path):
    stored = [jpeg(), jpeg(400, 300)]
    rows = {
        "question_id": ["a", "b"],
        "image": [{"bytes": data, "path": None} for data in stored],
        "answer": [["the cat", "a cat asleep"], ["the dog"]],
        "bbox": [[64.0, 120.0, 256.0, 240.0], [0.0, 0.0, 200.0, 300.0]],
    }
    Dataset.from_dict(rows).cast_column("image", Image()).save_to_disk(tmp_path / "set")
    traces = grounding_traces(load_grounding(tmp_path / "set"), QWEN3)
    assert traces["prompt"][1] == [{"role": "user", "content": QWEN3.prompt.format(expression="a cat asleep")}]
    answers = [json.loads(completion[0]["content"]) for completion in traces["completion"]]
    assert answers[2] == [{"bbox_2d": [0, 0, 500, 1000], "label": "the dog"}]
    assert traces["bbox_xyxy"] == [[64, 120, 320, 360], [64, 120, 320, 360], [0, 0, 200, 300]]
    encoded = traces.cast_column("image", Image(decode=False))["image"]
    assert [image["bytes"] for image in encoded] == [stored[0], stored[0], stored[1]]  # not decoded and written anew
    assert traces[2]["image"].size == (400, 300)
    rewards = iou_reward(QWEN3)(**traces[:], completions=traces["completion"])
    assert rewards == pytest.approx([1.0, 1.0, 1.0], abs=0.01)


def test_rows_of_files_with_named_images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(jpeg())
    row = {"expression": "the cat", "bbox_xyxy": [64, 120, 320, 360], "image": "1.jpg"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    problems = load_grounding(path, image_folder=tmp_path / "images")
    traces = grounding_traces(problems, QWEN3, protocol="vlm-r1")
    assert traces.column_names == ["image", "prompt", "bbox_xyxy"]  # the data have no thoughts to answer with
    assert traces[0]["prompt"][0]["content"] == VLM_R1_PROMPT.format(expression="the cat")
    assert traces[0]["image"].size == (640, 480)
    (tmp_path / "images" / "1.jpg").rename(tmp_path / "1.jpg")
    rows = [{**row, "width": 640, "height": 480}]
    with pytest.raises(ValueError, match=r"The image of problem '0' is '1.jpg', which is no file"):
        grounding_traces(load_grounding(rows), QWEN3)


def test_problems_of_ones_own():
    problem = GroundingProblem("the cat", (0.0, 0.0, 320.0, 480.0), (640, 480), Pillow.new("RGB", (640, 480)))
    traces = grounding_traces([problem], QWEN3)
    assert traces[0]["completion"][0]["content"] == '[{"bbox_2d": [0, 0, 500, 1000], "label": "the cat"}]'
    assert traces[0]["image"].size == (640, 480)


def test_what_cannot_be_written_is_refused():
    problem = GroundingProblem("the cat", (0.0, 0.0, 320.0, 480.0), (640, 480), Pillow.new("RGB", (640, 480)))
    with pytest.raises(ValueError, match=r"`processor` is None, but boxes of 'qwen2_5_vl' are in pixels"):
        grounding_traces([problem], BOX_FORMATS["qwen2_5_vl"])
    with pytest.raises(ValueError, match=r"`protocol` is 'r1'; choose 'native' or 'vlm-r1'"):
        grounding_traces([problem], QWEN3, protocol="r1")

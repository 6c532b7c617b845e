"""Boxes: overlap against torchvision, coordinates of every family, published answers and malformed ones."""

import random
import time
from pathlib import Path

import pytest

from reasoning_palette.evaluation.box_parsing import parse_lenient, parse_strict
from reasoning_palette.evaluation.boxes import BOX_FORMATS, BoxFormat, box_format_of, box_iou, seen_size

QWEN2_5, QWEN3, GEMMA = BOX_FORMATS["qwen2_5_vl"], BOX_FORMATS["qwen3_vl"], BOX_FORMATS["gemma4"]
INTERNVL, LLAVA, PALIGEMMA = BOX_FORMATS["internvl"], BOX_FORMATS["llava"], BOX_FORMATS["paligemma"]

# An image of 640 x 480 pixels with its target at (64, 120, 320, 360), as every family publishes that answer.
TARGET, SIZE = (64, 120, 320, 360), (640, 480)
PUBLISHED = [
    (QWEN2_5, '```json\n[\n\t{"bbox_2d": [63, 119, 315, 357], "label": "the cat"}\n]\n```'),  # seen as 630 x 476
    (QWEN3, '```json\n[\n\t{"bbox_2d": [100, 250, 500, 750], "label": "the cat"}\n]\n```'),
    (BOX_FORMATS["qwen3_5"], '[{"bbox_2d": [100, 250, 500, 750], "label": "the cat"}]'),
    (BOX_FORMATS["qwen3_vl_moe"], '{"bbox_2d": [100, 250, 500, 750]}'),
    (GEMMA, '```json\n[\n  {"box_2d": [250, 100, 750, 500], "label": "the cat"}\n]\n```'),
    (BOX_FORMATS["gemma3"], '[{"box_2d": [250, 100, 750, 500], "label": "the cat"}]'),
    (PALIGEMMA, "<loc0256><loc0102><loc0768><loc0512> the cat"),
    (INTERNVL, "<ref>the cat</ref><box>[[100, 250, 500, 750]]</box>"),
    (INTERNVL, "the cat[[100, 250, 500, 750]]"),  # decoded without special tokens
    (LLAVA, "[0.1, 0.31, 0.5, 0.69]"),  # of the image with 80 pixels above and below
]


@pytest.mark.parametrize(
    ("box_format", "text"), PUBLISHED, ids=[f"{b.name}-{i}" for i, (b, _) in enumerate(PUBLISHED)]
)
def test_published_answers(box_format, text):
    strict, lenient = parse_strict(text, box_format), parse_lenient(text, box_format)
    assert strict.reading == "as asked" and lenient.reading == "one box" and strict.box == lenient.box
    seen = (630, 476) if box_format is QWEN2_5 else None
    # to the rounding of the answer's numbers
    assert box_format.to_pixels(strict.box, SIZE, seen) == pytest.approx(TARGET, abs=3)
    assert box_iou(box_format.to_pixels(strict.box, SIZE, seen), TARGET) > 0.97


# text, strict reading in the protocol of VLM-R1, lenient reading, lenient box
MALFORMED = {
    "as asked": ('<think> a </think><answer>{"bbox_2d": [1, 2, 3, 4]}</answer>', "as asked", "one box", (1, 2, 3, 4)),
    "a bare list": ("<think></think>\n<answer>[1, 2, 3, 4]</answer>", "as asked", "one box", (1, 2, 3, 4)),
    "a fence": (
        "<think>x</think><answer>\n```json\n[{'bbox_2d': [1, 2, 3, 4]}]\n```</answer>".replace("'", '"'),
        "as asked",
        "one box",
        (1, 2, 3, 4),
    ),
    "python's quotes": (
        "<think>x</think><answer>{'b': [1, 2, 3, 4]}</answer>",
        "another form",
        "one box",
        (1, 2, 3, 4),
    ),
    "no thoughts": ("<answer>[1, 2, 3, 4]</answer>", "no <think> and <answer>", "one box", (1, 2, 3, 4)),
    "answer in the thoughts": (
        "<think><answer>[1, 2, 3, 4]</answer></think>",
        "no <think> and <answer>",
        "one box",
        (1, 2, 3, 4),
    ),
    "text behind": (
        "<think></think><answer>[1, 2, 3, 4]</answer>.",
        "no <think> and <answer>",
        "one box",
        (1, 2, 3, 4),
    ),
    "two answers": (
        "<think></think><answer>[1, 2, 3, 4]</answer><answer>[5, 6, 7, 8]</answer>",
        "no <think> and <answer>",
        "one box",
        (5, 6, 7, 8),
    ),
    "a box in the thoughts": (
        "<think>[9, 9, 10, 10]?</think><answer>[1, 2, 3, 4]</answer>",
        "as asked",
        "one box",
        (1, 2, 3, 4),
    ),
    "text alone": ("The cat is on the left.", "no <think> and <answer>", "no box", None),
    "nothing": ("", "no <think> and <answer>", "no box", None),
    "blanks": (" \n\t ", "no <think> and <answer>", "no box", None),
    "an empty answer": ("<think></think><answer></answer>", "another form", "no box", None),
    "null": ("<think></think><answer>null</answer>", "another form", "no box", None),
    "no box in JSON": ('<think></think><answer>{"label": "cat"}</answer>', "no box", "no box", None),
    "truths": ("<think></think><answer>[true, false, true, false]</answer>", "no box", "no box", None),
    "three numbers": ("<think></think><answer>[1, 2, 3]</answer>", "no box", "no box", None),
    "five numbers": ("<think></think><answer>[1, 2, 3, 4, 0.9]</answer>", "no box", "no box", None),
    "two boxes": (
        "<think></think><answer>[[1, 2, 3, 4], [5, 6, 7, 8]]</answer>",
        "several boxes",
        "first of several boxes",
        (1, 2, 3, 4),
    ),
    "the same box twice": (
        "<think></think><answer>[[1, 2, 3, 4], [1, 2, 3, 4]]</answer>",
        "several boxes",
        "one box",
        (1, 2, 3, 4),
    ),
    "the same key twice": (
        '<think></think><answer>{"b": [1, 2, 3, 4], "b": [5, 6, 7, 8]}</answer>',
        "several boxes",
        "first of several boxes",
        (1, 2, 3, 4),
    ),
    "reversed": ("<think></think><answer>[3, 4, 1, 2]</answer>", "corners swapped", "corners swapped", (1, 2, 3, 4)),
    "reversed in one axis": (
        "<think></think><answer>[3, 2, 1, 4]</answer>",
        "corners swapped",
        "corners swapped",
        (1, 2, 3, 4),
    ),
    "a point": ("<think></think><answer>[5, 5, 5, 5]</answer>", "as asked", "one box", (5, 5, 5, 5)),
    "a line": ("<think></think><answer>[5, 2, 5, 9]</answer>", "as asked", "one box", (5, 2, 5, 9)),
    "negative": ("<think></think><answer>[-5, 2, 5, 9]</answer>", "as asked", "one box", (-5, 2, 5, 9)),
    "outside": ("<think></think><answer>[0, 0, 4000, 9]</answer>", "as asked", "one box", (0, 0, 4000, 9)),
    "decimals": ("<think></think><answer>[0.5, 2.25, 5.0, 9]</answer>", "as asked", "one box", (0.5, 2.25, 5, 9)),
    "text": (
        '<think></think><answer>["1", "2", "3", "4"]</answer>',
        "numbers as text",
        "numbers as text",
        (1, 2, 3, 4),
    ),
    "text, reversed, twice": (
        '<think></think><answer>[["3", "2", "1", "4"], [5, 6, 7, 8]]</answer>',
        "several boxes",
        "first of several boxes, corners swapped, numbers as text",
        (1, 2, 3, 4),
    ),
    "nan": ("<think></think><answer>[1, NaN, 3, 4]</answer>", "not finite", "not finite", None),
    "infinity": ("<think></think><answer>[1, 2, 3, Infinity]</answer>", "not finite", "not finite", None),
    "1e400": ("<think></think><answer>[1, 2, 3, 1e400]</answer>", "not finite", "not finite", None),
    "5,000 digits": (f"<think></think><answer>[1, 2, 3, {'9' * 5000}]</answer>", "not finite", "not finite", None),
    "cut in the list": ('<think></think><answer>{"bbox_2d": [1, 2, 3, 4', "no <think> and <answer>", "cut off", None),
    "cut behind it": (
        '<think></think><answer>[{"bbox_2d": [1, 2, 3, 4], "la',
        "no <think> and <answer>",
        "one box",
        (1, 2, 3, 4),
    ),
    "cut in the thoughts": ("<think>first [1, 2, 3, 4] then", "no <think> and <answer>", "cut off", None),
    "trailing comma": ("<think></think><answer>[1, 2, 3, 4,]</answer>", "another form", "one box", (1, 2, 3, 4)),
    "blanks between": ("<think></think><answer>[1 2 3 4]</answer>", "another form", "one box", (1, 2, 3, 4)),
    "Chinese commas": (
        "<think></think><answer>[1\uff0c2\uff0c3\uff0c4]</answer>",
        "another form",
        "one box",
        (1, 2, 3, 4),
    ),
    "no brackets": ("<think></think><answer>1, 2, 3, 4</answer>", "another form", "one box", (1, 2, 3, 4)),
    "parentheses": ("It is at (1, 2, 3, 4).", "no <think> and <answer>", "one box", (1, 2, 3, 4)),
    "two points": ("the cat(1,2),(3,4)", "no <think> and <answer>", "one box", (1, 2, 3, 4)),
    "two points in a list": ("<think></think><answer>[[1, 2], [3, 4]]</answer>", "no box", "one box", (1, 2, 3, 4)),
    "named corners": (
        '<think></think><answer>{"x1": 1, "y1": 2, "x2": 3, "y2": 4}</answer>',
        "no box",
        "one box",
        (1, 2, 3, 4),
    ),
    "another family's tokens": ("<loc0001><loc0002><loc0003><loc0004>", "no <think> and <answer>", "no box", None),
    "deep nesting": (f"<think></think><answer>{'[' * 100_000}</answer>", "another form", "cut off", None),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_answers(case):
    text, strict, lenient, box = MALFORMED[case]
    read = parse_strict(text, QWEN3, "vlm-r1")
    assert read.reading == strict and (read.box is not None) == (strict == "as asked")
    read = parse_lenient(text, QWEN3)
    assert (read.reading, read.box) == (lenient, box)


@pytest.mark.parametrize(
    ("box_format", "text", "reading"),
    [
        (QWEN3, "[1, 2, 3, 4]", "another form"),
        (QWEN3, '[{"box_2d": [1, 2, 3, 4]}]', "another form"),
        (QWEN3, 'Here it is: [{"bbox_2d": [1, 2, 3, 4]}]', "another form"),
        (QWEN3, '[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [1, 2, 3, 4]}]', "several boxes"),
        (QWEN3, '[{"bbox_2d": [[1, 2, 3, 4]]}]', "another form"),
        (QWEN3, '[{"bbox_2d": [1, 2, "3", 4]}]', "numbers as text"),
        (QWEN3, '{"bbox_2d": [1, 2, 3, NaN]}', "not finite"),
        (QWEN3, "[]", "another form"),
        (QWEN3, "7", "another form"),
        (GEMMA, '[{"box_2d": [3, 1, 2, 4]}]', "corners swapped"),
        (LLAVA, "[0.1, 0.2, 0.3]", "no box"),
        (LLAVA, "```json\n[0.1, 0.2, 0.3, 0.4]\n```", "another form"),
        (LLAVA, "The box is [0.1, 0.2, 0.3, 0.4].", "another form"),
        (INTERNVL, "[1, 2, 3, 4]", "another form"),
        (INTERNVL, "the cat[[1, 2, 3, 4], [5, 6, 7, 8]]", "several boxes"),
        (INTERNVL, "a <b> cat[[1, 2, 3, 4]]", "another form"),
        (PALIGEMMA, "<loc0001><loc0002><loc0003>", "another form"),
        (PALIGEMMA, "<loc0001><loc0002><loc0003><loc0004> a ; <loc0001><loc0002><loc0003><loc0004> b", "another form"),
        (PALIGEMMA, "<loc0003><loc0002><loc0001><loc0004> cat", "corners swapped"),
    ],
)
def test_other_forms_than_the_published_one(box_format, text, reading):
    assert parse_strict(text, box_format).reading == reading and parse_strict(text, box_format).box is None


def test_order_is_the_formats_and_names_overrule_it():
    assert parse_lenient("[1, 2, 3, 4]", GEMMA).box == (2, 1, 4, 3)
    assert parse_lenient('{"y_min": 1}', GEMMA).reading == "no box"
    assert parse_lenient('{"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}', GEMMA).box == (1, 2, 3, 4)
    for box_format in (GEMMA, QWEN3):
        assert parse_lenient('{"ymin": 2, "xmin": 1, "ymax": 4, "xmax": 3}', box_format).box == (1, 2, 3, 4)
        assert parse_lenient("y1=2, x1=1, y2=4, x2=3", box_format).box == (1, 2, 3, 4)
    assert parse_lenient("<loc0001><loc0002><loc0003><loc0004>", PALIGEMMA).box == (2, 1, 4, 3)


@pytest.mark.parametrize(
    "unit",
    ["[", "(", "[1,", "[1 ", "[1, 2, 3, ", "[[1,2],", "x1: 1 y1: 2 x2: ", "1 ", "1", ".", "'", "<answer>", "</think>"]
    + ["<think>", "[1,2] ", "\n", "[ ", "{", '{"a":', "```", "<loc0001>", "[[", "[1,2,3,4]", "x1=1,   ", "-", "1e"],
)
def test_time_is_linear_in_the_length(unit):
    def seconds(length):
        text = unit * (length // len(unit))
        started = time.process_time()
        for box_format in (QWEN3, INTERNVL, PALIGEMMA, LLAVA):
            parse_lenient(text, box_format)
            parse_strict(text, box_format)
            parse_strict(f"<think></think><answer>{text}</answer>", box_format, "vlm-r1")
        return time.process_time() - started

    # quadratic time would make it 400 times as long, and minutes
    assert seconds(60_000) < 60 * max(seconds(3_000), 0.01)


def test_random_text_is_read_without_an_error():
    generator = random.Random(0)
    pieces = ["[", "]", "(", ")", ",", " ", "1", "23", "4.5", "-", "e9", "nan", '"', "'", "{", "}", ":", "bbox_2d"]
    pieces += ["<think>", "</think>", "<answer>", "</answer>", "```json", "```", "<loc0001>", "x1", "y_max", "\n", "é"]
    for _ in range(1000):
        text = "".join(generator.choices(pieces, k=generator.randint(0, 25)))
        for box_format in BOX_FORMATS.values():
            for answer in (
                parse_lenient(text, box_format),
                parse_strict(text, box_format),
                parse_strict(text, box_format, "vlm-r1"),
            ):
                assert answer.reading
                if answer.box is not None:
                    assert len(answer.box) == 4 and answer.box[0] <= answer.box[2] and answer.box[1] <= answer.box[3]


def test_overlap_is_torchvisions():
    pytest.importorskip("torchvision")
    import torch
    from torchvision import ops

    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(80, 2, 2, generator=generator, dtype=torch.float64) * 100
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    boxes[::10, 2] = boxes[::10, 0]  # some without an area
    expected = ops.box_iou(boxes, boxes)
    for i, first in enumerate(boxes.tolist()):
        for j, second in enumerate(boxes.tolist()):
            reference = expected[i, j].item()
            assert box_iou(first, second) == pytest.approx(0.0 if reference != reference else reference, abs=1e-12)


@pytest.mark.parametrize("box_format", BOX_FORMATS.values(), ids=BOX_FORMATS)
def test_pixels_and_back(box_format):
    for size in ((640, 480), (480, 640), (77, 77)):
        seen = (616, 476) if box_format.scale is None else None
        box = (3.0, 10.0, 70.0, 77.0)
        written = box_format.from_pixels(box, size, seen)
        assert box_format.to_pixels(written, size, seen) == pytest.approx(box)
        # the image's own corners
        corners = box_format.from_pixels((0, 0, *size), size, seen)
        if not box_format.padded_to_square:
            assert corners == pytest.approx((0, 0, *([box_format.scale] * 2 if box_format.scale else seen)))
    if box_format.padded_to_square:
        assert box_format.from_pixels((0, 0, 640, 480), (640, 480)) == pytest.approx((0, 0.125, 1, 0.875))
        assert box_format.from_pixels((0, 0, 480, 640), (480, 640)) == pytest.approx((0.125, 0, 0.875, 1))


@pytest.mark.parametrize(("width", "height"), [(640, 480), (37, 900), (28, 28), (1999, 20), (9, 11)])
@pytest.mark.parametrize("patch_size", [14, 16])
def test_the_size_that_a_model_sees_is_its_patches(width, height, patch_size):
    pytest.importorskip("torchvision")
    from PIL import Image
    from transformers import Qwen2VLImageProcessor

    image_processor = Qwen2VLImageProcessor(patch_size=patch_size)
    processor = type("Processor", (), {"image_processor": image_processor})()
    seen = seen_size(processor, width, height)
    batch = image_processor(Image.new("RGB", (width, height)), return_tensors="pt")
    grid = batch["image_grid_thw"][0].tolist()
    assert seen == (grid[2] * patch_size, grid[1] * patch_size)
    assert batch["pixel_values"].shape[0] * patch_size**2 == seen[0] * seen[1]
    if max(width, height) / min(width, height) < 20:
        smaller = seen_size(processor, width, height, min_pixels=1024, max_pixels=4096)
        assert smaller[0] * smaller[1] <= 4096


def test_families_without_a_format_are_named():
    with pytest.raises(ValueError, match="no box format for 'smolvlm': nothing about boxes is published for it. Say"):
        box_format_of("smolvlm")
    with pytest.raises(ValueError, match=r"no box format for 'bert': there are \['gemma3', 'gemma4', 'internvl'"):
        box_format_of("bert")
    config = type("Config", (), {"model_type": "qwen3_vl"})()
    palette_config = type("Config", (), {"model_type": "palette", "base_config": config})()
    for model in ("qwen3_vl", config, palette_config, type("Model", (), {"config": palette_config})()):
        assert box_format_of(model) is QWEN3


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"prompt": "Where?"}, "`prompt` is 'Where\\?'; it must contain '{expression}'"),
        ({"syntax": "xml"}, "`syntax` is 'xml'; choose 'json', 'list'"),
        ({"key": None}, "`key` is None with `syntax='json'`"),
        ({"order": "xywh"}, "`order` is 'xywh'; choose 'xyxy' or 'yxyx'"),
        ({"scale": 0}, "`scale` is 0; it must be above 0"),
        ({"scale": None, "padded_to_square": True}, "`padded_to_square` needs a `scale`"),
    ],
)
def test_formats_refuse(changed, error):
    arguments = {"name": "mine", "prompt": "{expression}", "syntax": "json", "scale": 100, "key": "box", **changed}
    with pytest.raises(ValueError, match=error):
        BoxFormat(**arguments)


def test_pixels_of_the_resized_image_need_its_size():
    with pytest.raises(ValueError, match="`seen` is None, but boxes of 'qwen2_5_vl' are in pixels of the resized"):
        QWEN2_5.to_pixels((1, 2, 3, 4), (640, 480))
    with pytest.raises(ValueError, match="a NoneType, which does not say how large a model sees an image"):
        seen_size(object(), 640, 480)
    with pytest.raises(ValueError, match="`protocol` is 'r1'; choose 'native' or 'vlm-r1'"):
        parse_strict("", QWEN3, "r1")


def test_the_page_has_every_format():
    page = (Path(__file__).parents[1] / "docs" / "grounding.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 5]
    for box_format in BOX_FORMATS.values():
        [row] = [row for row in rows if f"`{box_format.name}`" in row]
        scale = "pixels of the resized image" if box_format.scale is None else f"0 to {box_format.scale}"
        assert scale in row and ("y1 x1" if box_format.order == "yxyx" else "x1 y1 x2") in row.split("|")[-2]
        assert ("padded to a square" in row) == box_format.padded_to_square
        assert box_format.key is None or f'"{box_format.key}"' in row

"""The coloured shapes: pictures and boxes, questions and their only answer, searches, splits, and the processor."""

import itertools
import json
import random
import re
from collections import Counter
from math import prod

import numpy as np
import pytest

from reasoning_palette.evaluation.shapes import (
    BACKGROUND,
    COLOURS,
    SHAPES,
    STRATEGIES,
    Scene,
    SceneObject,
    draw_context,
    draw_scene,
    generate_scenes,
    generate_traces,
    label_strategy,
    split_of,
    write_trace,
)


def painted_box(image, colour):
    """Left, top, right and bottom edge of all pixels of a colour, found by looking at them."""
    rows, columns = np.nonzero((np.asarray(image) == COLOURS[colour]).all(-1))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_every_shape_fills_its_box_to_the_pixel():
    sides = (2, 3)
    for shape, colour, width, height in itertools.product(SHAPES, ("red", "white"), sides, sides):
        item = SceneObject(colour, shape, (1, 4, 1 + width, 4 + height))
        image = Scene((item,), 0, item.row).render()
        assert image.size == (64, 64) and image.mode == "RGB"
        assert painted_box(image, colour) == item.bbox_xyxy == [8, 32, 8 * (1 + width), 8 * (4 + height)]


def test_shapes_of_one_box_differ_in_many_pixels():
    pictures = [np.asarray(Scene((SceneObject("red", s, (4, 4, 6, 6)),), 0, "bottom").render()) for s in SHAPES]
    for a, b in itertools.combinations(pictures, 2):
        assert (a != b).any(-1).sum() >= 30  # of 256


def test_objects_of_a_scene_do_not_touch():
    for scene in generate_scenes("train", 100):
        painted = (np.asarray(scene.render()) != BACKGROUND).any(-1)
        covered = np.zeros_like(painted, dtype=int)
        for item in scene.objects:
            left, top, right, bottom = item.bbox_xyxy
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1 and not (painted & (covered == 0)).any()


def test_every_question_has_one_answer():
    for scene in generate_scenes("validation", 100):
        colour, shape, place = re.fullmatch(r"locate the (\w+) (\w+) at the (\w+)", scene.question).groups()
        meant = []
        for item in scene.objects:
            left, top, right, bottom = item.bbox_xyxy
            halves = {"left": left + right < 64, "right": left + right > 64}
            halves |= {"top": top + bottom < 64, "bottom": top + bottom > 64}
            assert sum(halves.values()) == 2  # no object lies between two halves
            if item.colour == colour and item.shape == shape and halves[place]:
                meant.append(item)
        assert meant == [scene.target]


def test_a_strategy_looks_at_what_shares_its_attribute():
    red = SceneObject("red", "circle", (0, 0, 2, 2))
    objects = (
        red,
        SceneObject("red", "cross", (4, 0, 6, 3)),
        SceneObject("blue", "circle", (0, 5, 2, 7)),
        SceneObject("blue", "square", (5, 5, 8, 8)),
    )
    scene = Scene(objects, 0, "left")
    assert scene.question == "locate the red circle at the left"
    assert scene.candidates("colour") == [red, objects[1]]
    assert scene.candidates("shape") == [red, objects[2]]
    assert scene.candidates("place") == [red, objects[2]]
    assert [red.describe(name) for name in STRATEGIES] == [
        "red circle top left",
        "circle red top left",
        "top left red circle",
    ]
    assert red.box_text == '{"bbox_2d": [0,0,250,250]}'


def test_a_trace_answers_with_the_box_of_what_it_looked_at():
    generator = random.Random(0)
    for scene in generate_scenes("train", 100):
        for name in STRATEGIES:
            row = write_trace(scene, name, generator)
            word, *description, verdict = row["reasoning"].removeprefix("<think> ").removesuffix("</think>").split()
            assert word == STRATEGIES[name].word and label_strategy(row["reasoning"]) == row["domain"] == name
            box = json.loads(row["answer"].removeprefix("<answer> ").removesuffix("</answer>"))["bbox_2d"]
            in_pixels = [0.064 * edge for edge in box]
            assert (in_pixels == pytest.approx(row["bbox_xyxy"])) == (verdict == "yes")
            (item,) = [item for item in scene.objects if item.bbox_xyxy == pytest.approx(in_pixels)]
            assert description == item.describe(name).split() and item in scene.candidates(name)


def test_each_strategy_finds_some_targets_and_the_three_together_nearly_all():
    scenes = generate_scenes("test", 200)
    chances = [[1 / len(scene.candidates(name)) for name in STRATEGIES] for scene in scenes]
    generator = random.Random(0)
    for name, column in zip(STRATEGIES, zip(*chances, strict=True), strict=True):
        assert 0.55 <= sum(column) / len(scenes) <= 0.75
        found = [" yes" in write_trace(scene, name, generator)["reasoning"] for scene in scenes for _ in range(3)]
        assert sum(found) / len(found) == pytest.approx(sum(column) / len(scenes), abs=0.06)
    assert sum(prod(1 - chance for chance in row) for row in chances) / len(scenes) < 0.06


def test_splits_are_disjoint_frozen_and_of_the_scene_alone():
    scenes = {split: generate_scenes(split, 60) for split in ("train", "validation", "test")}
    keys = {split: {scene.objects for scene in rows} for split, rows in scenes.items()}
    assert all(not keys[a] & keys[b] for a, b in itertools.combinations(keys, 2))
    assert generate_scenes("test", 20) == scenes["test"][:20] != generate_scenes("test", 20, seed=1)
    for scene in scenes["test"]:
        assert {split_of(Scene(scene.objects, index, "top")) for index in range(len(scene.objects))} == {"test"}
    # Frozen: published figures are on these very scenes.
    assert [(scene.question, scene.target.bbox_xyxy) for scene in scenes["test"][:3]] == FIRST_TEST_SCENES


FIRST_TEST_SCENES = [
    ("locate the green circle at the top", [32, 8, 48, 32]),
    ("locate the red circle at the right", [32, 48, 48, 64]),
    ("locate the blue square at the left", [0, 40, 16, 56]),
]


def test_wrong_splits_and_numbers_of_objects_are_refused():
    with pytest.raises(ValueError, match="`split` is 'dev'; choose one of train, validation, test"):
        generate_scenes("dev", 1)
    with pytest.raises(ValueError, match="`num_objects` is 4; it must lie between 1 and 3"):
        draw_scene(random.Random(0), num_objects=4)


def test_traces_follow_the_mix_and_repeat_with_the_seed():
    rows, again = generate_traces("train", 400), generate_traces("train", 400)
    assert [{**row, "image": None} for row in rows] == [{**row, "image": None} for row in again]
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(rows, again, strict=True))
    shares = Counter(row["domain"] for row in rows)
    for name, strategy in STRATEGIES.items():
        assert shares[name] / len(rows) == pytest.approx(strategy.trace_weight, abs=0.07)


def test_contexts_keep_their_picture_and_style_and_ask_for_each_object_once():
    generator = random.Random(0)
    stray, asked = 0, Counter()
    for _ in range(60):
        context = draw_context(generator)
        (domain,) = {row["domain"] for row in context.traces}
        assert set(context.stray_words) <= {STRATEGIES[domain].word} and len(context.stray_words) <= 8
        stray += bool(context.stray_words)
        assert len({row["image"].tobytes() for row in context.traces}) == 1
        boxes = {tuple(row["bbox_xyxy"]) for row in context.traces}
        assert len(boxes) == len(context.traces)
        asked[len(boxes)] += 1
    assert 0.15 <= stray / 60 <= 0.45
    assert asked[3] > 30 and set(asked) <= {1, 2, 3}  # objects that nothing tells apart are not asked for
    for _ in range(10):
        (row,) = draw_context(generator, num_objects=1).traces
        assert row["reasoning"].endswith(" yes</think>")


@pytest.mark.parametrize(
    "completion, label",
    [
        ("<think> hue red circle top left no hue red cross top right yes</think>", "colour"),
        ("form circle red top left yes", "shape"),
        ("spot top left red circle yes", "place"),
        ("hue red circle top left no form circle red top left yes", "unlabelled"),
        ("hue circle red top left yes", "unlabelled"),
        ("<answer> {}</answer>", "unlabelled"),
    ],
)
def test_labels_by_what_a_completion_does(completion, label):
    assert label_strategy(completion) == label


@pytest.fixture(scope="module")
def processor():
    pytest.importorskip("torchvision")
    from reasoning_palette.evaluation.shapes_processor import build_processor

    return build_processor()


def messages(row, answer=True):
    user = {"role": "user", "content": [{"type": "image", "image": row["image"]}, {"type": "text", "text": ""}]}
    user["content"][1]["text"] = row["question"]
    assistant = {"role": "assistant", "content": [{"type": "text", "text": row["reasoning"] + row["answer"]}]}
    return [user, assistant] if answer else [user]


def test_texts_survive_the_tokenizer_and_no_word_is_unknown(processor):
    tokenizer = processor.tokenizer
    for row in generate_traces("train", 100):
        for text in (row["question"], row["reasoning"], row["answer"], row["reasoning"] + row["answer"]):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
        parts = tokenizer(row["reasoning"]).input_ids + tokenizer(row["answer"]).input_ids
        assert parts == tokenizer(row["reasoning"] + row["answer"]).input_ids
    for broken in ("<think>\n hue red ", "<think>hue  red"):  # layout is no token
        assert tokenizer(broken).input_ids == tokenizer("<think> hue red").input_ids


def test_a_chat_holds_the_picture_and_its_prompt_is_the_beginning_of_it(processor):
    row = generate_traces("train", 1)[0]
    chat = processor.apply_chat_template(messages(row), tokenize=True, return_dict=True, return_tensors="pt")
    prompt = processor.apply_chat_template(
        messages(row, answer=False), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = chat["input_ids"][0].tolist()
    assert ids[: prompt["input_ids"].shape[1]] == prompt["input_ids"][0].tolist()
    assert ids[-1] == processor.tokenizer.eos_token_id and processor.tokenizer.unk_token_id not in ids
    assert ids.count(processor.image_token_id) == 16 and chat["image_grid_thw"].tolist() == [[1, 8, 8]]
    # The patches are the picture: put back together by hand, they are its pixels.
    patches = chat["pixel_values"].reshape(4, 4, 2, 2, 3, 2, 8, 8)[:, :, :, :, :, 0]
    picture = patches.permute(0, 2, 5, 1, 3, 6, 4).reshape(64, 64, 3)
    assert np.abs((picture.numpy() + 1) * 127.5 - np.asarray(row["image"])).max() < 0.01


def test_a_saved_processor_is_the_same(processor, tmp_path):
    from transformers import AutoProcessor

    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor)
    row = generate_traces("validation", 1)[0]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    first, second = (p.apply_chat_template(messages(row), **options) for p in (processor, loaded))
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)

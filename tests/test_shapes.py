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
    MAX_LOOKS,
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
    sides = (4, 5, 6)
    for shape, colour, width, height in itertools.product(SHAPES, ("red", "white"), sides, sides):
        item = SceneObject(colour, shape, (3, 7, 3 + width, 7 + height))
        image = Scene((item,), 0, item.row).render()
        assert image.size == (80, 80) and image.mode == "RGB"
        assert painted_box(image, colour) == item.bbox_xyxy == [12, 28, 4 * (3 + width), 4 * (7 + height)]


def test_shapes_of_one_box_differ_in_many_pixels():
    pictures = [np.asarray(Scene((SceneObject("red", s, (8, 8, 12, 12)),), 0, "top").render()) for s in SHAPES]
    for a, b in itertools.combinations(pictures, 2):
        assert (a != b).any(-1).sum() >= 30  # of 256


def test_objects_of_a_scene_do_not_touch():
    for scene in generate_scenes("train", 100):
        painted = (np.asarray(scene.render()) != BACKGROUND).any(-1)
        covered = np.zeros_like(painted, dtype=int)
        for item in scene.objects:
            left, top, right, bottom = item.bbox_xyxy
            assert 0 <= left < right <= 80 and 0 <= top < bottom <= 80
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1 and not (painted & (covered == 0)).any()


def test_every_question_has_one_answer():
    for scene in generate_scenes("validation", 100):
        colour, shape, place = re.fullmatch(r"locate the (\w+) (\w+) at the (\w+)", scene.question).groups()
        meant = []
        for item in scene.objects:
            left, top, right, bottom = item.bbox_xyxy
            halves = {"left": left + right < 80, "right": left + right > 80}
            halves |= {"top": top + bottom < 80, "bottom": top + bottom > 80}
            assert sum(halves.values()) == 2  # no object lies between two halves
            if item.colour == colour and item.shape == shape and halves[place]:
                meant.append(item)
        assert meant == [scene.target]


def test_a_strategy_looks_at_what_shares_its_attribute():
    red = SceneObject("red", "circle", (1, 1, 5, 5))
    objects = (
        red,
        SceneObject("red", "cross", (9, 1, 13, 6)),
        SceneObject("blue", "circle", (1, 12, 5, 17)),
        SceneObject("blue", "square", (12, 12, 18, 18)),
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
    assert red.box_text == '{"bbox_2d": [50,50,250,250]}'


def test_a_trace_stops_at_the_target_and_answers_with_what_it_looked_at_last():
    generator = random.Random(0)
    found = 0
    for scene in generate_scenes("train", 200):
        for name in STRATEGIES:
            row = write_trace(scene, name, generator)
            looks = row["reasoning"].removeprefix("<think> ").removesuffix("</think>").split(STRATEGIES[name].word)[1:]
            verdicts = [look.split()[-1] for look in looks]
            assert 1 <= len(looks) <= MAX_LOOKS and "yes" not in verdicts[:-1]
            assert label_strategy(row["reasoning"]) == row["domain"] == name
            box = json.loads(row["answer"].removeprefix("<answer> ").removesuffix("</answer>"))["bbox_2d"]
            in_pixels = [0.08 * edge for edge in box]
            assert (in_pixels == pytest.approx(row["bbox_xyxy"])) == (verdicts[-1] == "yes")
            (last,) = [item for item in scene.objects if item.bbox_xyxy == pytest.approx(in_pixels)]
            assert looks[-1].split()[:-1] == last.describe(name).split()
            found += verdicts[-1] == "yes"
            if verdicts[-1] == "no":
                assert len(scene.candidates(name)) > MAX_LOOKS
    assert found / 600 == pytest.approx(0.75, abs=0.06)


def test_each_strategy_finds_most_targets_and_the_three_together_nearly_all():
    scenes = generate_scenes("test", 200)
    chances = [[min(1, MAX_LOOKS / len(scene.candidates(name))) for name in STRATEGIES] for scene in scenes]
    for column in zip(*chances, strict=True):
        assert 0.66 <= sum(column) / len(scenes) <= 0.82
    assert sum(prod(1 - chance for chance in row) for row in chances) / len(scenes) < 0.03


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
    ("locate the green circle at the top", [8, 20, 24, 44]),
    ("locate the blue triangle at the top", [44, 0, 68, 24]),
    ("locate the blue square at the top", [20, 28, 44, 44]),
]


def test_wrong_splits_and_numbers_of_objects_are_refused():
    with pytest.raises(ValueError, match="`split` is 'dev'; choose one of train, validation, test"):
        generate_scenes("dev", 1)
    with pytest.raises(ValueError, match="`num_objects` is 7; it must lie between 1 and 6"):
        draw_scene(random.Random(0), num_objects=7)


def test_traces_follow_the_mix_and_repeat_with_the_seed():
    rows, again = generate_traces("train", 400), generate_traces("train", 400)
    assert [{**row, "image": None} for row in rows] == [{**row, "image": None} for row in again]
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(rows, again, strict=True))
    shares = Counter(row["domain"] for row in rows)
    for name, strategy in STRATEGIES.items():
        assert shares[name] / len(rows) == pytest.approx(strategy.trace_weight, abs=0.07)


def test_contexts_keep_their_style_and_open_with_its_word():
    generator = random.Random(0)
    stray = 0
    for _ in range(60):
        context = draw_context(generator, num_traces=3)
        (domain,) = {row["domain"] for row in context.traces}
        assert set(context.stray_words) <= {STRATEGIES[domain].word} and len(context.stray_words) <= 8
        stray += bool(context.stray_words)
    assert 0.15 <= stray / 60 <= 0.45
    lone = [draw_context(generator, 1, most_objects=1).traces[0] for _ in range(10)]
    assert all(row["reasoning"].count("yes") == 1 and "no" not in row["reasoning"].split() for row in lone)


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
    assert ids.count(processor.image_token_id) == 25 and chat["image_grid_thw"].tolist() == [[1, 10, 10]]
    # The patches are the picture: put back together by hand, they are its pixels.
    patches = chat["pixel_values"].reshape(5, 5, 2, 2, 3, 2, 8, 8)[:, :, :, :, :, 0]
    picture = patches.permute(0, 2, 5, 1, 3, 6, 4).reshape(80, 80, 3)
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

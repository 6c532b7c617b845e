"""Grounding: loaders on the documented columns, figures by hand, rewards, evaluation of tiny models with images."""

import copy
import functools
import json
import runpy
import sys
import warnings
from io import BytesIO
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow
from transformers.image_utils import load_image

from reasoning_palette.evaluation import (
    BOX_FORMATS,
    Benchmark,
    GroundingProblem,
    Method,
    box_format_reward,
    draw_results,
    evaluate_palette,
    grounding_benchmark,
    iou_reward,
    load_grounding,
    table_2_methods,
)
from reasoning_palette.evaluation.accuracy_tables import accuracy_table
from reasoning_palette.evaluation.draw_boxes import COLOURS, draw_boxes
from reasoning_palette.evaluation.grounding import BoxReader
from reasoning_palette.evaluation.method import complete
from reasoning_palette.evaluation.prompt_encoding import encode_prompts
from reasoning_palette.evaluation.random_soft_prompt import draw_soft_prompts, place_soft_prompts
from reasoning_palette.evaluation.result import EvaluationResult
from reasoning_palette.evaluation.scoring import score_samples

REAL_DATA = Path(__file__).parents[1].parent / "shared" / "data" / "refcocos_a.jsonl.gz"
QWEN2_5, QWEN3, GEMMA = BOX_FORMATS["qwen2_5_vl"], BOX_FORMATS["qwen3_vl"], BOX_FORMATS["gemma4"]


def blank(width=640, height=480):
    return Pillow.new("RGB", (width, height), (90, 120, 40))


def encoded(image):
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


# The columns of lmms-lab/RefCOCO, RefCOCOplus and RefCOCOg, as their cards have them
HUB_FEATURES = Features(
    {
        "question_id": Value("string"),
        "image": Image(),
        "question": Value("string"),
        "answer": List(Value("string")),
        "segmentation": List(Value("float32")),
        "bbox": List(Value("float32")),
        "iscrowd": Value("int8"),
        "file_name": Value("string"),
    }
)


@pytest.fixture(scope="module")
def hub_set(tmp_path_factory):
    """A folder with the layout of such a set: `data/<split>-*.parquet`."""
    folder = tmp_path_factory.mktemp("RefCOCO")
    (folder / "data").mkdir()
    for split, answers in (("val", [["man on left", "the tall man"], ["dog"]]), ("testA", [["a", "b", "c"]])):
        rows = [
            {
                "question_id": str(row),
                "image": encoded(blank(640, 480 + row)),
                "question": "Please carefully observe the area circled in the image and come up with a caption.",
                "answer": expressions,
                "segmentation": [1.0, 2.0],
                "bbox": [10.0, 20.0, 100.0 + row, 50.5],
                "iscrowd": 0,
                "file_name": f"COCO_train2014_{row}.jpg",
            }
            for row, expressions in enumerate(answers)
        ]
        Dataset.from_list(rows, features=HUB_FEATURES).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_every_expression_of_a_hub_row_is_a_problem(hub_set):
    problems = load_grounding(hub_set)
    assert [problem.expression for problem in problems] == ["man on left", "the tall man", "dog"]
    assert [problem.name for problem in problems] == ["0", "0", "1"]
    assert problems[0].bbox_xyxy == (10, 20, 110, 70.5) and problems[2].bbox_xyxy == (10, 20, 111, 70.5)
    assert problems[2].size == problems[2].image.size == (640, 481) and problems[2].question is None
    assert len(problems[1:]) == 2 and problems[1:][0].expression == "the tall man" and problems[-1].expression == "dog"
    assert [problem.expression for problem in load_grounding(hub_set, split="testA")] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="[Uu]nknown split"):
        load_grounding(hub_set, split="testB")


def test_a_draw_of_problems_is_its_seeds(hub_set):
    drawn = [load_grounding(hub_set, num_problems=2, seed=seed).expressions for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len({tuple(map(tuple, draw)) for draw in drawn}) > 1
    with pytest.raises(ValueError, match="`num_problems` is 4, but `source` has 3 problems"):
        load_grounding(hub_set, num_problems=4)


ROW = {"expression": "a cat", "bbox_xyxy": [1, 2, 30, 40], "image": "cats/a.png", "width": 64, "height": 48}


@pytest.mark.parametrize("kind", ["rows", "dataset", "jsonl", "jsonl.gz", "parquet", "saved"])
def test_files_and_rows(kind, tmp_path):
    (tmp_path / "cats").mkdir()
    blank(64, 48).save(tmp_path / "cats" / "a.png")
    dataset = Dataset.from_list([ROW, {**ROW, "expression": "no such cat", "bbox_xyxy": None}])
    source = tmp_path / f"boxes.{kind}"
    if kind == "rows":
        source = dataset.to_list()
    elif kind == "dataset":
        source = dataset
    elif kind == "parquet":
        dataset.to_parquet(source)
    elif kind == "saved":
        dataset.save_to_disk(source)
    else:
        dataset.to_json(source, compression="gzip" if kind.endswith("gz") else None)
    with pytest.warns(UserWarning, match="1 of 2 rows of `source` have no box and are left out"):
        problems = load_grounding(source, image_folder=tmp_path)
    [problem] = problems
    assert problem == GroundingProblem("a cat", (1, 2, 30, 40), (64, 48), str(tmp_path / "cats" / "a.png"), name="0")
    with pytest.raises(ValueError, match="`split` is 'val', but `source` is"):
        load_grounding(source, split="val")


def test_photographs_that_lie_on_their_side_are_measured_as_they_are_seen(tmp_path):
    """Models and `datasets` see what EXIF says is upright; boxes are in pixels of that."""
    photograph, file = blank(40, 20), tmp_path / "photograph.jpg"
    exif = photograph.getexif()
    exif[0x0112] = 6
    photograph.save(file, exif=exif)
    row = {"image": str(file), "bbox_xyxy": [1, 2, 10, 39], "expression": "a cat"}
    stored = Dataset.from_list([{**row, "image": {"path": None, "bytes": file.read_bytes()}}])
    for source in ([row], [{**row, "image": Pillow.open(file)}], stored.cast_column("image", Image())):
        [problem] = load_grounding(source)
        assert problem.size == load_image(problem.image).size == (20, 40)


def test_a_question_is_put_as_it_is():
    image = blank(64, 48)
    [problem] = load_grounding([{"question": "locate the red circle", "bbox_xyxy": [1, 2, 3, 4], "image": image}])
    assert problem.question == "locate the red circle" and problem.size == (64, 48) and problem.image is image


@pytest.mark.skipif(not REAL_DATA.is_file(), reason="the real traces are not beside the checkout")
def test_the_real_file():
    with pytest.warns(UserWarning, match="17 of 347 rows"):
        problems = load_grounding(REAL_DATA)
    assert len(problems) == 330 and problems[0].expression == "person not holding anything"
    rows = Dataset.from_json(str(REAL_DATA)).filter(lambda row: row["bbox_xyxy"] is not None)
    for problem, row in zip(problems, rows, strict=True):
        # its own coordinates in thousandths, which were rounded
        written = QWEN3.from_pixels(problem.bbox_xyxy, problem.size)
        assert written == pytest.approx(tuple(row["bbox_norm1000"]), abs=1.01)
        assert QWEN3.to_pixels(written, problem.size) == pytest.approx(problem.bbox_xyxy)
    with pytest.raises(
        ValueError, match="problem .* is 'val2017/.*.jpg', which is no file; load the problems with `image_folder`"
    ):
        grounding_benchmark(problems, QWEN3).prompt(problems[0])


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("no/such.jsonl", {}, FileNotFoundError, "no such file"),
        (__file__ + ".gz", {}, FileNotFoundError, "no such file"),
        ([ROW], {"image_folder": "no/such"}, FileNotFoundError, "`image_folder` is 'no/such', but there is no such"),
        ([{"question": "2 + 2?", "answer": "4"}], {}, ValueError, r"found the columns \['answer', 'question'\]"),
        ([{**ROW, "bbox_xyxy": None}], {}, ValueError, "no row with a box and an expression"),
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 1 rows")
def test_loaders_refuse(source, options, error, message):
    with pytest.raises(error, match=message):
        load_grounding(source, **options)


def test_rows_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=r"Row 0 of `source` has the box \[30, 2, 1, 40\], which holds no area"):
        list(load_grounding([{**ROW, "bbox_xyxy": [30, 2, 1, 40]}]))
    with pytest.raises(ValueError, match="no `width` and `height`, and its image .*cats/a.png.* is no file"):
        list(load_grounding([{"expression": "a cat", "bbox_xyxy": [1, 2, 30, 40], "image": "cats/a.png"}]))


# Four answers to one problem of 640 x 480 pixels, whose target is [100, 250, 500, 750] in thousandths
PROBLEM = GroundingProblem("the cat", (64, 120, 320, 360), (640, 480), blank())
ANSWERS = [
    '<think>a</think><answer>{"bbox_2d": [100, 250, 500, 750]}</answer>',  # IoU 1
    "It is at [100, 250, 300, 750].",  # IoU 1/2, lenient alone
    '<think>a</think><answer>{"bbox_2d": [100, 250, 299, 750]}</answer>',  # just below
    "I cannot see a cat.",
]


def test_figures_by_hand():
    benchmark = grounding_benchmark([PROBLEM], QWEN3, protocol="vlm-r1")
    figures = score_samples(benchmark, Method("m", temperature=1.0), [ANSWERS], None, 0, 0.0, keep_completions=True)
    assert figures.num_correct == [2] and figures.grades == {"correct": 2, "wrong": 1, "ungradable": 1}
    assert figures.pass_at_k == {1: 0.5, 2: pytest.approx(5 / 6), 4: 1.0}
    strict = figures.other_graders["strict"]
    assert strict.grades == {"correct": 1, "wrong": 1, "ungradable": 2} and strict.num_correct == [1]
    assert strict.mean_at_1 == 0.25 and strict.pass_at_k == {1: 0.25, 2: 0.5, 4: 1.0}
    assert figures.scores["IoU"].num_samples == 3
    assert figures.scores["IoU"].mean == pytest.approx((1 + 1 / 2 + 199 / 400) / 3)
    assert figures.strategies["one box"] == 0.75 and figures.strategies["no box"] == 0.25
    assert figures.ungradable_completions == ["I cannot see a cat."] and figures.completions == [ANSWERS]
    assert figures.distinct_answers == 3


def test_brackets_of_completions_are_saved_as_they_were(tmp_path):
    benchmark = grounding_benchmark([PROBLEM], QWEN3, protocol="vlm-r1")
    answers = ["[,125,250]", "[1,2,\n3]", "[]", "bbox [0]"]  # broken lists of numbers, as untrained models write them
    figures = score_samples(benchmark, Method("m", temperature=1.0), [answers], None, 0, 0.0, keep_completions=True)
    result = EvaluationResult(
        model="m",
        benchmark="b",
        num_problems=1,
        num_samples=4,
        max_new_tokens=8,
        seed=0,
        methods=[figures],
        environment={},
    )
    result.save(tmp_path / "result.json")
    saved = json.loads((tmp_path / "result.json").read_text())["methods"][0]
    assert saved["completions"] == [answers] and saved["num_correct"] == figures.num_correct


def test_prompts_are_the_published_ones():
    [message] = grounding_benchmark([PROBLEM], QWEN3).prompt(PROBLEM)
    assert message["content"][0] == {"type": "image", "image": PROBLEM.image}
    text = "Locate the cat in this image and output the bbox coordinates in JSON format."
    assert message["content"][1] == {"type": "text", "text": text}
    [message] = grounding_benchmark([PROBLEM], QWEN3, protocol="vlm-r1", image_limits={"max_pixels": 50176}).prompt(
        PROBLEM
    )
    assert message["content"][0]["max_pixels"] == 50176
    assert message["content"][1]["text"].startswith("Please provide the bounding box coordinate of the region this")
    assert (
        "describes: the cat. First output the thinking process in <think> </think> tags"
        in message["content"][1]["text"]
    )
    own = GroundingProblem("", (0, 0, 1, 1), (64, 48), blank(64, 48), question="locate {it}")
    assert grounding_benchmark([own], QWEN3).prompt(own)[0]["content"][1]["text"] == "locate {it}"


def test_pixels_of_the_resized_image():
    pytest.importorskip("torchvision")
    from transformers import Qwen2VLImageProcessor

    processor = type("Processor", (), {"image_processor": Qwen2VLImageProcessor(patch_size=14)})()
    # 640 x 480 is seen as 644 x 476
    reader = BoxReader(QWEN2_5, processor)
    assert reader.to_pixels((0, 0, 644, 476), (640, 480)) == pytest.approx((0, 0, 640, 480))
    with pytest.raises(ValueError, match="`processor` is None, but boxes of 'qwen2_5_vl' are in pixels"):
        grounding_benchmark([PROBLEM], QWEN2_5)
    pytest.importorskip("qwen_vl_utils")
    smaller = BoxReader(QWEN2_5, processor, {"max_pixels": 64 * 28 * 28})
    assert smaller.to_pixels((0, 0, 252, 168), (640, 480)) == pytest.approx((0, 0, 640, 480))


def test_a_frame_that_the_processor_does_not_show_is_told_of():
    def processor(**settings):
        return type("Processor", (), {"image_processor": type("ImageProcessor", (), settings)()})()

    with pytest.warns(UserWarning, match="`processor` does not pad: the model sees another frame"):
        BoxReader(BOX_FORMATS["llava"], processor(do_center_crop=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BoxReader(BOX_FORMATS["llava"], processor(do_pad=True))
        BoxReader(QWEN3, processor())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "`threshold` is 0; an overlap"),
        ({"protocol": "r1"}, "`protocol` is 'r1'"),
        ({"label": str}, "`label` and `labels` go together"),
    ],
)
def test_benchmarks_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        grounding_benchmark([PROBLEM], QWEN3, **options)


def test_rewards():
    columns = {"bbox_xyxy": [list(PROBLEM.bbox_xyxy)] * 4, "image": [PROBLEM.image] * 4, "expression": ["the cat"] * 4}
    logged = {}
    rewards = iou_reward(QWEN3)(completions=ANSWERS, prompts=[], log_metric=logged.__setitem__, **columns)
    assert rewards == pytest.approx([1, 0.5, 199 / 400, 0]) and logged == {"grounding/unreadable": 0.25}
    messages = [[{"role": "assistant", "content": text}] for text in ANSWERS]
    sizes = {"bbox_xyxy": columns["bbox_xyxy"], "width": [640] * 4, "height": [480] * 4}
    assert iou_reward(QWEN3, threshold=0.5)(messages, **sizes) == [1, 1, 0, 0]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in ANSWERS]
    images = {"bbox_xyxy": columns["bbox_xyxy"], "images": [[PROBLEM.image]] * 4}
    assert iou_reward(QWEN3, threshold=0.5)(parts, **images) == [1, 1, 0, 0]
    assert box_format_reward(QWEN3)(completions=messages, **columns) == [1, 0, 1, 0]
    assert box_format_reward(QWEN3, "native")(completions=['{"bbox_2d": [1, 2, 3, 4]}', "[1, 2, 3, 4]"]) == [1, 0]
    with pytest.raises(ValueError, match="no `image` or `images` and no `width` and `height`"):
        iou_reward(QWEN3)(ANSWERS, columns["bbox_xyxy"])
    with pytest.raises(ValueError, match=r"of 4 of 4 rows are no decoded images \(str\)"):
        iou_reward(QWEN3)(ANSWERS, columns["bbox_xyxy"], image=["a.png"] * 4)


def test_boxes_are_drawn_where_they_are(tmp_path):
    image = Pillow.new("RGB", (60, 40), (10, 10, 10))
    boxes = {"a": [(5, 5, 20, 30), None], "b": [(30, 10, 55, 35), (-1e300, 2, 1e300, 3)]}
    drawn = draw_boxes(image, (40, 20, 50, 30), boxes, "a very small thing")
    assert drawn.width == 480 and drawn.height > 320 and image.getpixel((5, 5)) == (10, 10, 10)
    for box, colour in ((boxes["a"][0], COLOURS[0]), (boxes["b"][0], COLOURS[1]), ((40, 20, 50, 30), (255, 255, 255))):
        x1, y1, x2, y2 = (8 * edge for edge in box)
        middle = ((x1 + x2) // 2, (y1 + y2) // 2)
        for point in ((x1, middle[1]), (x2, middle[1]), (middle[0], y1), (middle[0], y2)):
            assert drawn.getpixel(point) == colour, (box, point)
    assert drawn.getpixel((8 * 12, 8 * 17)) == (10, 10, 10)  # a frame is not filled
    same = draw_boxes(image, (40, 20, 50, 30), {"a": [(5, 5, 20, 30)], "b": [(5, 5, 20, 30)]})
    assert {same.getpixel((8 * 5 + inside, 8 * 17)) for inside in range(4)} >= set(COLOURS[:2])
    with pytest.raises(ValueError, match="`boxes` has 8 methods, but there are 7 colours"):
        draw_boxes(image, (1, 1, 2, 2), {str(number): [] for number in range(8)})


# --- tiny models with images ---

FAMILIES = ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "gemma4", "llava", "idefics3", "smolvlm", "internvl"]


@pytest.fixture(scope="module")
def models():
    pytest.importorskip("torchvision")
    from vision_trainers import palette_vlm, processor_of

    @functools.cache
    def build(family):
        return palette_vlm(family).eval(), processor_of(family)

    return build


def conversation(text, *images):
    parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*untrained")
def test_batches_answer_as_single_prompts(family, models):
    from vision_families import picture

    model, processor = models(family)
    prompts = [
        conversation("w1 w2 w3", picture(16, 24)),
        conversation("w4", picture(32, 16)),
        conversation("w5 w6 w7 w8 w9 w10"),
        conversation("w2", picture(16, 16), picture(24, 16)),
    ]
    together = complete(model, processor, prompts, Method("greedy"), 1, 6, seed=0)
    for prompt, text in zip(prompts, together.texts, strict=True):
        assert complete(model, processor, [prompt], Method("greedy"), 1, 6, seed=0).texts == [text]
    # draws: the second image of a row must not become another row's, and every draw can be replayed alone
    method = Method("latent", prefix="palette", num_prefix_tokens=2)
    drawn = complete(model, processor, prompts, method, 3, 6, seed=0)
    assert len(drawn.texts) == 12 and len(set(drawn.latent_codes)) == 12
    for row in (0, 3):
        inputs = encode_prompts(processor, [prompts[row]])
        for sample in (3 * row, 3 * row + 2):
            alone = model.generate(
                **inputs,
                latent=drawn.latent_codes[sample],
                num_prefix_tokens=2,
                max_new_tokens=6,
                do_sample=False,
            )
            text = processor.batch_decode(alone[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
            assert text == drawn.texts[sample]


def with_words_of_its_own(base, soft_prompts):
    """A stock base in whose vocabulary the vectors are words, and their ids (N, L)."""
    embedding = base.get_input_embeddings()
    size = len(embedding.weight)
    rows = soft_prompts.flatten(0, 1) / getattr(embedding, "embed_scale", 1.0)  # Gemma scales what it looks up
    embedding.weight = torch.nn.Parameter(torch.cat([embedding.weight.detach(), rows]))
    if base.config.model_type == "gemma4":  # a soft prompt takes the per-layer embeddings of a pad
        table = base.model.language_model.embed_tokens_per_layer
        table.weight = torch.nn.Parameter(torch.cat([table.weight.detach(), table.weight[:1].expand(len(rows), -1)]))
    return size + torch.arange(len(rows)).view(soft_prompts.shape[:2])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "gemma3", "gemma4", "smolvlm"])
@torch.no_grad()
def test_random_soft_prompts_stand_before_images(family, models):
    from vision_families import picture, tiny_base

    _, processor = models(family)
    base = tiny_base(family)
    prompts = [
        conversation("w1 w2 w3", picture(16, 24)),
        conversation("w5 w6 w7 w8 w9 w10"),
        conversation("w2", picture(16, 16), picture(24, 16)),
    ]
    method = Method("random", prefix="random", num_prefix_tokens=3)
    drawn = complete(base, processor, prompts, method, 2, 6, seed=0)
    soft_prompts = draw_soft_prompts(base, 6, 3, torch.Generator().manual_seed(0))
    inputs = encode_prompts(processor, [prompt for prompt in prompts for _ in range(2)])
    with place_soft_prompts(base, inputs, soft_prompts, token_id=0) as widened:
        logits = base(**widened).logits[:, -1]
    twin = copy.deepcopy(base)
    words = with_words_of_its_own(twin, soft_prompts)
    for row in range(6):
        alone = dict(encode_prompts(processor, [prompts[row // 2]]))
        alone["input_ids"] = torch.cat([words[row : row + 1], alone["input_ids"]], dim=1)
        alone["attention_mask"] = torch.ones_like(alone["input_ids"])
        for name in {"token_type_ids", "mm_token_type_ids"} & set(alone):
            alone[name] = torch.cat([torch.zeros(1, 3, dtype=alone[name].dtype), alone[name]], dim=1)
        torch.testing.assert_close(twin(**alone).logits[0, -1, : logits.shape[1]], logits[row], atol=1e-5, rtol=1e-5)
        generated = twin.generate(**alone, max_new_tokens=6, do_sample=False)[:, alone["input_ids"].shape[1] :]
        assert processor.batch_decode(generated, skip_special_tokens=True) == [drawn.texts[row]]
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # two draws of one prompt
    embedding = base.get_input_embeddings()
    assert not embedding._forward_hooks  # nothing stays behind
    with (
        pytest.raises(RuntimeError, match="has read no whole prompt"),
        place_soft_prompts(base, inputs, soft_prompts, 0),
    ):
        pass


@pytest.mark.filterwarnings("ignore:.*untrained")
def test_table_2_from_problems_to_json_and_pictures(models, tmp_path):
    from vision_families import picture

    model, processor = models("qwen2_5_vl")
    problems = [
        GroundingProblem("", (2, 3, 12, 13), (24, 16), picture(16, 24), question="w1 w2"),
        GroundingProblem("", (2, 3, 12, 13), (16, 32), picture(32, 16), question="w3 w4 w5"),
        GroundingProblem("", (0, 0, 8, 8), (16, 16), picture(16, 16), question="w3"),
    ]
    benchmark = grounding_benchmark(problems, QWEN2_5, processor, name="tiny")
    methods = table_2_methods(num_prefix_tokens=2)
    options = {"num_samples": 4, "max_new_tokens": 5, "batch_size": 8, "disable_progress_bar": True}
    result = evaluate_palette(model, processor, benchmark, methods, keep_completions=True, **options)
    again = evaluate_palette(model, processor, benchmark, methods, keep_completions=True, **options)
    for one, other in zip(result.methods, again.methods, strict=True):
        assert one.completions == other.completions and one.latent_codes == other.latent_codes
        # equal budgets, and nothing that was not read is a silent zero
        assert all(len(samples) == 4 for samples in one.completions) and sum(one.grades.values()) == 12
        assert one.grades["ungradable"] == 12 and one.scores["IoU"].mean is None
    assert result["greedy"].distinct_completions == 1 and result["latent, greedy"].distinct_completions > 1
    result.save(tmp_path / "result.json")
    saved = json.loads((tmp_path / "result.json").read_text())
    assert [entry["method"]["temperature"] for entry in saved["methods"]] == [0.0, 0.7, 0.0, 0.7]
    assert saved["methods"][2]["other_graders"]["strict"]["pass_at_k"]["4"] == 0
    head, _, *rows = accuracy_table([saved]).splitlines()
    assert head.endswith(" ungradable | strict pass@1 | strict pass@4 | strict ungradable |") and len(rows) == 4
    assert all(row.endswith(" 12 | 0.000 | 0.000 | 12 |") and row.count("|") == head.count("|") for row in rows)
    header, _, *rows = result.to_table().splitlines()
    assert header.split()[-6:] == ["ungradable", "strict", "pass@1", "strict", "pass@4", "IoU"] and len(rows) == 4
    paths = draw_results(problems, result.methods, BoxReader(QWEN2_5, processor), tmp_path / "pictures", num_images=2)
    assert [path.name for path in paths] == ["0000.png", "0001.png"]
    assert all(Pillow.open(path).format == "PNG" for path in paths)
    with pytest.raises(ValueError, match=r"The results of \['greedy'\] have no completions"):
        draw_results(
            problems,
            evaluate_palette(model, processor, benchmark, [Method("greedy")], **options).methods,
            BoxReader(QWEN2_5, processor),
            tmp_path,
        )


@pytest.mark.filterwarnings("ignore:.*untrained")
def test_the_example_on_a_set_of_the_hub(models, hub_set, tmp_path, monkeypatch, capsys):
    model, processor = models("qwen2_5_vl")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    script = Path(__file__).parents[1] / "examples" / "grounding" / "06_evaluate_refcoco.py"
    arguments = {
        "model": tmp_path / "model",
        "dataset": hub_set,
        "output_dir": tmp_path / "out",
        "num_problems": 2,
        "num_samples": 2,
        "num_prefix_tokens": 2,
        "max_new_tokens": 4,
        "max_pixels": 1024,
        "device_map": "cpu",
        "num_images": 1,
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [str(script), *flags])
    runpy.run_path(str(script), run_name="__main__")
    assert "latent + sampling" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "result-seed0.json").read_text())
    assert saved["num_problems"] == 2 and len(saved["methods"]) == 4 and saved["num_samples"] == 2
    assert Pillow.open(tmp_path / "out" / "images" / "0000.png").width == 640


def test_prompts_that_do_not_fit_are_refused(models):
    model, processor = models("qwen3_vl")
    greedy = Method("greedy")
    with pytest.raises(ValueError, match="Of 2 prompts, 1 are conversations and the others texts"):
        complete(model, processor, [conversation("w1"), "w2"], greedy, 1, 4, seed=0)
    with pytest.raises(ValueError, match=r"has no chat template, which conversations need"):
        complete(model, processor.tokenizer, [conversation("w1")], greedy, 1, 4, seed=0)
    texts = Benchmark("texts", ["w1 w2"], str, lambda *_: "wrong", str, str, ())
    result = evaluate_palette(model, processor, texts, [greedy], 2, 4, disable_progress_bar=True)
    assert result["greedy"].grades["wrong"] == 2


def test_grpo_trains_on_the_rewards(tmp_path):
    pytest.importorskip("torchvision")
    from trainer_testing import common_arguments
    from vision_trainers import LATENTS, ROLLOUTS, palette_vlm, vision_dataset

    from reasoning_palette.trainers import PaletteGRPOConfig, PaletteGRPOTrainer

    def read_as_boxes(completions, **columns):
        """The tiny model knows no digits: its number of different words stands for the right edge."""
        words = [completion[0]["content"].split() for completion in completions]
        texts = [f"[0, 0, {150 * len(set(found))}, 900]" if len(set(found)) > 3 else "none" for found in words]
        return iou_reward(QWEN3)(completions=texts, **columns)

    settings = {**ROLLOUTS, **LATENTS, "gradient_accumulation_steps": 4, "max_steps": 1, "logging_steps": 1}
    trainer = PaletteGRPOTrainer(
        model=palette_vlm("qwen3_vl"),
        args=PaletteGRPOConfig(**common_arguments(tmp_path, **settings)),
        train_dataset=vision_dataset((1, 1, 1, 1), bbox_xyxy=lambda row: [1, 2, 9, 9]),
        reward_funcs=[read_as_boxes, box_format_reward(QWEN3)],
    )
    trainer.train()
    logs = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert 0 < logs["grounding/unreadable"] < 1 and logs["rewards/read_as_boxes/mean"] > 0
    assert logs["rewards/grounding_format/mean"] == 0
    assert torch.isfinite(torch.tensor(logs["loss"]))

"""Images of chat messages: every way to name one, limits against qwen-vl-utils itself, and what is refused."""

import base64
import http.server
import threading
from io import BytesIO

import numpy as np
import pytest

pytest.importorskip("torchvision")
from datasets import Dataset
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import Qwen2VLImageProcessor, SiglipImageProcessor
from trl import prepare_multimodal_messages

from reasoning_palette.trainers import images_to_column, load_message_images, message_images
from reasoning_palette.trainers.message_images import row_with_images


class Processor:
    """All that is asked of a processor here."""

    def __init__(self, image_processor):
        self.image_processor = image_processor


QWEN2_5_VL = Processor(Qwen2VLImageProcessor(patch_size=14))
QWEN3_VL = Processor(Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216}))
GEMMA = Processor(SiglipImageProcessor())


def picture(width=90, height=61):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def encoded(image):
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def message(*entries):
    return [{"role": "user", "content": [*entries, {"type": "text", "text": "Where is it?"}]}]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder with a picture and the URL under which a server of this machine has it."""
    folder = tmp_path_factory.mktemp("pictures with spaces")
    picture().save(folder / "a cat.png")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def named(served):
    """Every way to name the same picture."""
    folder, url = served
    path = folder / "a cat.png"
    data = base64.b64encode(encoded(picture())).decode()
    return [
        {"type": "image", "image": picture()},
        {"type": "image", "image": path},
        {"type": "image", "image": str(path)},
        {"type": "image", "image": f"file://{path}"},
        {"type": "image", "image": path.as_uri()},  # spaces as %20
        {"type": "image", "image": f"{url}/a%20cat.png"},
        {"type": "image", "image": f"data:image/png;base64,{data}"},
        {"type": "image", "image": {"bytes": encoded(picture()), "path": None}},  # a column of `datasets`, not decoded
        {"type": "image_url", "image_url": f"{url}/a%20cat.png"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "image", "url": f"{url}/a%20cat.png"},
        {"type": "image", "path": str(path)},
        {"type": "image", "base64": data},
        {"image": str(path)},
        {"type": "image", "image": str(path), "text": None, "image_url": None, "max_pixels": None},
    ]


@pytest.mark.parametrize("processor", [QWEN2_5_VL, GEMMA], ids=["qwen", "gemma"])
def test_every_way_to_name_an_image(served, processor):
    entries = named(served)
    loaded = load_message_images([message(*entries), [{"role": "user", "content": "Hi"}]], processor)
    assert loaded.conversations[0] == message(*[{"type": "image"}] * len(entries))
    assert loaded.conversations[1] == [{"role": "user", "content": "Hi"}]
    assert [len(images) for images in loaded.images] == [len(entries), 0]
    for image in loaded.images[0]:
        assert np.array_equal(np.asarray(image), np.asarray(picture()))
    assert loaded.processor_kwargs == {}


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize(
    "limits",
    [
        {"max_pixels": 64 * 64},
        {"min_pixels": 300 * 300, "max_pixels": 400 * 400},
        {"resized_height": 90, "resized_width": 120},
    ],
)
def test_limits_are_those_of_process_vision_info(served, patch_size, limits):
    processor = Processor(
        Qwen2VLImageProcessor(patch_size=patch_size, size={"shortest_edge": 1024, "longest_edge": 2**24})
    )
    entries = [{**entry, **limits} for entry in named(served)]
    loaded = load_message_images([message(*entries)], processor)
    # the forms that qwen-vl-utils reads itself
    folder, url = served
    for source in (picture(), str(folder / "a cat.png"), f"file://{folder}/a cat.png", f"{url}/a%20cat.png"):
        content = [{"type": "image", "image": source, **{"min_pixels": 1024, **limits}}]
        [expected], _ = process_vision_info([{"role": "user", "content": content}], image_patch_size=patch_size)
        for image in loaded.images[0]:
            assert image.size == expected.size and np.array_equal(np.asarray(image), np.asarray(expected))
    encoded = processor.image_processor(loaded.images[0], **loaded.processor_kwargs)
    width, height = loaded.images[0][0].size
    assert (encoded["image_grid_thw"][:, 1:] * patch_size).tolist() == [[height, width]] * len(entries)


def test_photographs_with_limits_stand_upright(tmp_path):
    """As those without limits do; qwen-vl-utils leaves them on their side."""
    exif = picture().getexif()
    exif[0x0112] = 6
    picture().save(tmp_path / "photograph.png", exif=exif)
    for source in (str(tmp_path / "photograph.png"), Image.open(tmp_path / "photograph.png")):
        entry = {"image": source, "min_pixels": 1024, "max_pixels": 64 * 64}
        [[limited]] = load_message_images([message(entry)], QWEN3_VL).images
        [[upright]] = load_message_images(
            [message({**entry, "image": picture().transpose(Image.Transpose.ROTATE_270)})], QWEN3_VL
        ).images
        assert np.array_equal(np.asarray(limited), np.asarray(upright))


def test_an_image_without_limits_gets_the_processors_own_beside_one_with():
    # 90 x 61 lies below the smallest image of this processor: alone it is resized by it, here in the same call
    loaded = load_message_images(
        [message({"image": picture(), "max_pixels": 64 * 64, "min_pixels": 1024}, {"image": picture()})], QWEN3_VL
    )
    alone = QWEN3_VL.image_processor([picture()])["image_grid_thw"][0, 1:] * 16
    first, second = loaded.images[0]
    assert [second.height, second.width] == alone.tolist() and first.width * first.height <= 64 * 64
    grid = QWEN3_VL.image_processor([first, second], **loaded.processor_kwargs)["image_grid_thw"]
    assert (grid[:, 1:] * 16).tolist() == [[first.height, first.width], alone.tolist()]


def test_transparency_is_white_as_in_qwen_vl_utils():
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    loaded = load_message_images([message({"image": clear, "max_pixels": 64 * 64})], QWEN2_5_VL)
    assert loaded.images[0][0].getpixel((3, 3)) == (255, 255, 255)


def named_rows(served, **limits):
    """Rows whose prompts name two images, one and none."""
    folder, url = served
    first = {"type": "image", "image": f"file://{folder}/a cat.png", **limits}
    second = {"type": "image_url", "image_url": {"url": f"{url}/a%20cat.png"}}
    return [
        {"prompt": message(*entries), "completion": [{"role": "assistant", "content": "w1 w2"}]}
        for entries in ([first, second], [first], [])
    ]


def test_rows_in_trls_form(served):
    limits = {"min_pixels": 120 * 120, "max_pixels": 200 * 200}
    dataset = Dataset.from_list(named_rows(served, **limits))
    assert "image_url" in dataset[2]["prompt"][0]["content"][0]  # as None: Arrow gives every part the keys of all
    moved = images_to_column(dataset, QWEN2_5_VL)
    [limited], _ = process_vision_info([message({"image": picture(), **limits})])
    sizes = [[limited.size, (84, 56)], [limited.size], []]
    assert [[image.size for image in row["images"]] for row in moved] == sizes
    for row, count in zip(moved, (2, 1, 0), strict=True):
        filled = prepare_multimodal_messages(row["prompt"], images=row["images"])
        assert [part["type"] for part in filled[0]["content"]] == ["image"] * count + ["text"]
        if count:  # the processor leaves what has been resized as it is
            grid = QWEN2_5_VL.image_processor(row["images"])["image_grid_thw"][:, 1:] * 14
            assert grid.tolist() == [[image.height, image.width] for image in row["images"]]
    streamed = list(images_to_column(dataset.to_iterable_dataset(), QWEN2_5_VL))
    assert [[image.size for image in row["images"]] for row in streamed] == sizes
    assert [part["type"] for part in streamed[0]["prompt"][0]["content"]] == ["image", "image", "text"]
    with pytest.raises(ValueError, match="The column `images` of a row has images already"):
        images_to_column(moved, QWEN2_5_VL)
    small = named_rows(served, min_pixels=1024, max_pixels=64 * 48)[1]
    with pytest.raises(ValueError, match="pixels, but the processor's own are 65536 to 16777216 pixels: TRL's"):
        row_with_images(small, QWEN3_VL)


@pytest.mark.parametrize("method", ["sft", "grpo"])
@pytest.mark.filterwarnings("ignore:.*untrained")
def test_trainers_take_them(served, method, tmp_path):
    """The pixels that a model is trained on are those of images that were resized by hand."""
    from vision_trainers import make_trainer, processor_of

    processor = processor_of("qwen2_5_vl")
    rows = named_rows(served, max_pixels=512)
    for row in rows:
        row["prompt"][0]["content"][-1]["text"] = "w3 w4"
    dataset = Dataset.from_list(rows if method == "sft" else [{"prompt": row["prompt"]} for row in rows])
    dataset = images_to_column(dataset, processor)
    steps = {} if method == "sft" else {"gradient_accumulation_steps": 3}
    trainer = make_trainer(tmp_path, method, "qwen2_5_vl", train_dataset=dataset, max_steps=1, **steps)
    seen = []
    trainer.palette_model.model.visual.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("grid_thw", args[1] if len(args) > 1 else None)),
        with_kwargs=True,
    )
    trainer.train()
    grids = {tuple(grid[1:]) for found in seen for grid in found.tolist()}
    sizes = {image.size for row in dataset for image in row["images"]}
    assert grids == {(height // 4, width // 4) for width, height in sizes} and all(w * h <= 1024 for w, h in sizes)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"type": "image"}, "exactly one of image, image_url, url, path, base64, got none of them"),
        ({"image": picture(), "path": "a.png"}, r"got \['image', 'path'\]"),
        ({"image": "no/such.png"}, "'no/such.png' is no file; give a path"),
        ({"image": "file:///no/such.png"}, "'file:///no/such.png' is no file"),
        ({"image": "data:image/png;base64,!!"}, "is not base64 data"),
        ({"image": "data:image/png;base64," + base64.b64encode(b"text" * 99).decode()}, "could not be loaded"),
        ({"image": __file__}, "test_message_images.py' could not be loaded"),
        ({"image": "http://127.0.0.1:9/a.png"}, "'http://127.0.0.1:9/a.png' could not be loaded"),
        ({"image": 7}, "The image 'int' could not be loaded"),
        ({"type": "video", "video": "a.mp4"}, "has a video"),
        ({"image": picture(), "resized_height": 56}, "give `resized_height` and `resized_width` together"),
        ({"image": picture(), "max_pixels": 9}, "`min_pixels` 3136 above `max_pixels` 9"),
        ({"image": picture(900, 2), "max_pixels": 50176}, "could not be loaded with {'min_pixels': 3136"),
    ],
)
def test_refused(entry, error):
    with pytest.raises(ValueError, match=error):
        load_message_images([message(entry)], QWEN2_5_VL)


def test_a_missing_url_is_named(served):
    for limits in ({}, {"max_pixels": 50176}):
        with pytest.raises(ValueError, match=r"/none.png' could not be loaded"):
            load_message_images([message({"image": f"{served[1]}/none.png", **limits})], QWEN2_5_VL)


def test_limits_need_qwen_and_its_package(monkeypatch):
    limited = [message({"image": picture(), "max_pixels": 50176})]
    with pytest.raises(ValueError, match="SiglipImageProcessor does not. Resize such images yourself"):
        load_message_images(limited, GEMMA)
    monkeypatch.setattr(message_images, "process_vision_info", None)
    with pytest.raises(ImportError, match=r"pip install 'reasoning-palette\[vision\]'"):
        load_message_images(limited, QWEN2_5_VL)
    assert load_message_images([message({"image": picture()})], QWEN2_5_VL).images[0][0].size == (90, 61)


def test_one_conversation_alone_is_refused():
    with pytest.raises(TypeError, match=r"put one conversation into a list: \[messages\]"):
        load_message_images(message({"image": picture()}), QWEN2_5_VL)

"""Images of chat messages: every way to name one, limits against qwen-vl-utils itself, and what is refused."""

import base64
import http.server
import threading
from io import BytesIO

import numpy as np
import pytest

pytest.importorskip("torchvision")
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import Qwen2VLImageProcessor, SiglipImageProcessor

from reasoning_palette.trainers import message_images
from reasoning_palette.trainers.message_images import load_message_images


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

"""Coloured shapes: a generated grounding task whose targets can be searched in several styles.

A scene is a small picture of coloured shapes that do not overlap. A question names colour, shape and place of one of
them, and no other object of the scene has all three. A *trace* searches for it in one of three strategies: it looks
at an object of that colour, of that shape, or in that place, picked at random from those there are, says whether it
is the target, and answers with its box. Each strategy announces what it looks at with a word of its own, and
describes it in its own order:

    locate the red circle at the left
    <think> hue red square top left no</think>
    <answer> {"bbox_2d": [0,125,250,500]}</answer>

Boxes are written in thousandths of the picture (Qwen3-VL's convention) and kept in pixels. A strategy finds 6 or 7
targets of 10, whereas nearly every target is found by one of the three, so that a model that always decodes the same
one has something to gain from a second. The looks are not chosen for their result: a model that imitates them has
something left to learn from reinforcement.

Everything is a function of a seed. The splits are a function of the scene alone ([`split_of`]). Nothing here depends
on the rest of the package; pictures need Pillow.
"""

import hashlib
import random
import re
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, ImageDraw

Split = Literal["train", "validation", "test"]
Box = tuple[int, int, int, int]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SPLIT_PERCENT = {"test": 15, "validation": 10}  # the rest is train
UNLABELLED = "unlabelled"

NUM_UNITS = 8  # sides of a picture, in the unit that all corners are multiples of
UNIT_PIXELS = 8
UNIT_THOUSANDTHS = 1000 // NUM_UNITS
SMALLEST_SIDE, LARGEST_SIDE = 2, 3  # of an object, in units
NUM_OBJECTS = 3
SHARED_COLOUR, SHARED_SHAPE = 0.4, 0.35  # chance that a distractor is given the target's, on top of coincidence

BACKGROUND = (128, 128, 128)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 50, 47),
    "green": (60, 180, 75),
    "blue": (50, 90, 230),
    "yellow": (240, 220, 60),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
ROWS = ("top", "bottom")
COLUMNS = ("left", "right")


@dataclass(frozen=True)
class Strategy:
    """A search order.

    Args:
        word (`str`): The word that announces every look.
        attribute (`str`): What the objects that it looks at share with the target.
        trace_weight (`float`): Share of the traces that follow this strategy.
    """

    word: str
    attribute: Literal["colour", "shape", "place"]
    trace_weight: float


STRATEGIES: dict[str, Strategy] = {
    "colour": Strategy(word="hue", attribute="colour", trace_weight=0.55),
    "shape": Strategy(word="form", attribute="shape", trace_weight=0.30),
    "place": Strategy(word="spot", attribute="place", trace_weight=0.15),
}


@dataclass(frozen=True)
class SceneObject:
    """A shape that fills its box.

    Args:
        colour (`str`): One of `COLOURS`.
        shape (`str`): One of `SHAPES`.
        box (`tuple[int, int, int, int]`): Left, top, right and bottom edge, in units from the top left corner.
    """

    colour: str
    shape: str
    box: Box

    @property
    def row(self) -> str:
        """The half of the picture that the centre lies in."""
        return ROWS[self.box[1] + self.box[3] > NUM_UNITS]

    @property
    def column(self) -> str:
        """The half of the picture that the centre lies in."""
        return COLUMNS[self.box[0] + self.box[2] > NUM_UNITS]

    @property
    def box_text(self) -> str:
        """The box as an answer writes it, in thousandths of the picture."""
        return f'{{"bbox_2d": [{",".join(str(UNIT_THOUSANDTHS * edge) for edge in self.box)}]}}'

    @property
    def bbox_xyxy(self) -> list[int]:
        """The box in pixels."""
        return [UNIT_PIXELS * edge for edge in self.box]

    def describe(self, strategy: str) -> str:
        """Colour, shape and place, in the order of a strategy."""
        place = f"{self.row} {self.column}"
        if strategy == "colour":
            return f"{self.colour} {self.shape} {place}"
        return f"{self.shape} {self.colour} {place}" if strategy == "shape" else f"{place} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects in reading order, which of them is asked for, and the word (of `ROWS` or `COLUMNS`) for its place."""

    objects: tuple[SceneObject, ...]
    target_index: int
    place: str

    @property
    def target(self) -> SceneObject:
        """The object that the question refers to."""
        return self.objects[self.target_index]

    @property
    def question(self) -> str:
        """The referring expression, as the prompt puts it."""
        return f"locate the {self.target.colour} {self.target.shape} at the {self.place}"

    def matches(self, item: SceneObject, *attributes: str) -> bool:
        """Whether an object has the asked-for `"colour"`, `"shape"` and `"place"`, or those of them that are named."""
        fits = {
            "colour": item.colour == self.target.colour,
            "shape": item.shape == self.target.shape,
            "place": self.place in (item.row, item.column),
        }
        return all(fits[attribute] for attribute in attributes or fits)

    def candidates(self, strategy: str) -> list[SceneObject]:
        """The objects that a strategy picks from."""
        return [item for item in self.objects if self.matches(item, STRATEGIES[strategy].attribute)]

    def render(self) -> Image.Image:
        """The picture, 64 pixels on each side."""
        image = Image.new("RGB", (NUM_UNITS * UNIT_PIXELS,) * 2, BACKGROUND)
        draw = ImageDraw.Draw(image)
        for item in self.objects:
            _draw(draw, item)
        return image


def _draw(draw: ImageDraw.ImageDraw, item: SceneObject) -> None:
    left, top, right, bottom = item.bbox_xyxy
    right, bottom = right - 1, bottom - 1  # Pillow paints the last row and column that it is given
    fill = COLOURS[item.colour]
    if item.shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=fill)
    elif item.shape == "square":
        draw.rectangle((left, top, right, bottom), fill=fill)
    elif item.shape == "triangle":
        draw.polygon([((left + right) // 2, top), (left, bottom), (right, bottom)], fill=fill)
    else:
        inset, drop = (right - left + 1) // 3, (bottom - top + 1) // 3
        draw.rectangle((left + inset, top, right - inset, bottom), fill=fill)
        draw.rectangle((left, top + drop, right, bottom - drop), fill=fill)


def split_of(scene: Scene) -> Split:
    """The split that a scene belongs to, whichever of its objects is asked for."""
    key = ";".join(f"{item.colour},{item.shape},{item.box}" for item in scene.objects)
    percentile = int.from_bytes(hashlib.sha256(f"shapes:{key}".encode()).digest()[:8], "big") % 100
    if percentile < SPLIT_PERCENT["test"]:
        return "test"
    return "validation" if percentile < SPLIT_PERCENT["test"] + SPLIT_PERCENT["validation"] else "train"


def draw_scene(generator: random.Random, split: Split = "train", num_objects: int = NUM_OBJECTS) -> Scene:
    """Draws one scene of a split.

    Args:
        generator (`random.Random`): Source of the draw.
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`.
        num_objects (`int`, *optional*, defaults to 3): Number of objects, from 1 to 3.

    Raises:
        ValueError: If the split is unknown or the number of objects out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; choose one of {', '.join(SPLITS)}.")
    if not 1 <= num_objects <= NUM_OBJECTS:
        raise ValueError(f"`num_objects` is {num_objects}; it must lie between 1 and {NUM_OBJECTS}.")
    while True:
        boxes = _draw_boxes(generator, num_objects)
        colour, shape = generator.choice(list(COLOURS)), generator.choice(SHAPES)
        target = SceneObject(colour, shape, boxes[0])
        distractors = [
            SceneObject(
                colour if generator.random() < SHARED_COLOUR else generator.choice(list(COLOURS)),
                shape if generator.random() < SHARED_SHAPE else generator.choice(SHAPES),
                box,
            )
            for box in boxes[1:]
        ]
        objects = tuple(sorted([target, *distractors], key=lambda item: (item.box[1], item.box[0])))
        scene = Scene(objects, objects.index(target), generator.choice([target.row, target.column]))
        if sum(map(scene.matches, objects)) == 1 and split_of(scene) == split:
            return scene


def _draw_boxes(generator: random.Random, count: int) -> list[Box]:
    """Boxes at least one unit apart, none of them centred between two halves; starts again when there is no room."""
    while True:
        boxes: list[Box] = []
        for _ in range(20 * count):
            width, height = (generator.randint(SMALLEST_SIDE, LARGEST_SIDE) for _ in range(2))
            left, top = generator.randint(0, NUM_UNITS - width), generator.randint(0, NUM_UNITS - height)
            box = (left, top, left + width, top + height)
            if NUM_UNITS in (box[0] + box[2], box[1] + box[3]):
                continue
            if all(box[0] > b[2] or b[0] > box[2] or box[1] > b[3] or b[1] > box[3] for b in boxes):
                boxes.append(box)
                if len(boxes) == count:
                    return boxes


def generate_scenes(split: Split, num_scenes: int, seed: int = 0) -> list[Scene]:
    """Draws scenes of a split, all different. The first scenes of a longer list are the shorter list.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
        num_scenes (`int`): How many.
        seed (`int`, *optional*, defaults to 0): Seed of the draw.

    Returns:
        `list[Scene]`
    """
    generator = random.Random(f"scenes:{split}:{seed}")
    chosen: dict[Scene, None] = {}
    while len(chosen) < num_scenes:
        chosen.setdefault(draw_scene(generator, split))
    return list(chosen)


def draw_strategy(generator: random.Random) -> str:
    """Draws a strategy in the mix of the traces."""
    return generator.choices(list(STRATEGIES), [strategy.trace_weight for strategy in STRATEGIES.values()])[0]


def write_trace(scene: Scene, strategy: str, generator: random.Random) -> dict[str, Any]:
    """Looks for the target of a scene in the style of one strategy.

    Returns:
        `dict`: A row with `image` (a PIL image), `question`, `reasoning`, `answer`, the strategy as `domain`, and the
        target's box in pixels as `bbox_xyxy`. The text of a completion is `reasoning` and `answer`, one after the
        other. A look at another object answers with a wrong box.
    """
    item = generator.choice(scene.candidates(strategy))
    verdict = "yes" if item == scene.target else "no"
    return {
        "image": scene.render(),
        "question": scene.question,
        "reasoning": f"<think> {STRATEGIES[strategy].word} {item.describe(strategy)} {verdict}</think>",
        "answer": f"<answer> {item.box_text}</answer>",
        "domain": strategy,
        "bbox_xyxy": scene.target.bbox_xyxy,
    }


def generate_traces(split: Split, num_traces: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draws traces on scenes of a split, with strategies in the mix of `STRATEGIES`."""
    generator = random.Random(f"traces:{split}:{seed}")
    return [write_trace(draw_scene(generator, split), draw_strategy(generator), generator) for _ in range(num_traces)]


@dataclass(frozen=True)
class Context:
    """A document of worked examples on one picture in one strategy, with stray words of that strategy in front."""

    stray_words: tuple[str, ...]
    traces: tuple[dict[str, Any], ...]


def draw_context(generator: random.Random, num_objects: int = NUM_OBJECTS, stray_share: float = 0.3) -> Context:
    """One document of consistent style, to train a base from nothing. It asks once for each object that can be named.

    A model that has only seen isolated examples ignores what stands before the question. One that has read documents
    which keep their style, as every pretrained model has, lets it choose the strategy.

    Args:
        generator (`random.Random`): Source of the draw.
        num_objects (`int`, *optional*, defaults to 3): Number of objects, from 1 to 3. With one, colour, shape, place
            and box can be learned before there is anything to search for.
        stray_share (`float`, *optional*, defaults to 0.3): Share of the documents that open with one to eight
            repetitions of their strategy's word.
    """
    strategy = draw_strategy(generator)
    stray = generator.randint(1, 8) if generator.random() < stray_share else 0
    objects = draw_scene(generator, num_objects=num_objects).objects
    traces = []
    for index in generator.sample(range(len(objects)), len(objects)):
        scenes = [Scene(objects, index, place) for place in (objects[index].row, objects[index].column)]
        if scenes := [scene for scene in scenes if sum(map(scene.matches, objects)) == 1]:
            traces.append(write_trace(generator.choice(scenes), strategy, generator))
    return Context((STRATEGIES[strategy].word,) * stray, tuple(traces))


_LOOK = re.compile(rf"({'|'.join(s.word for s in STRATEGIES.values())}) (\w+) \w+ (\w+) \w+ (?:yes|no)\b")


def label_strategy(completion: str) -> str:
    """Names the strategy that a completion follows, by what it does.

    Returns:
        `str`: The strategy whose word announces every look and whose attribute opens every description, or
        `"unlabelled"` where there is no look or the looks disagree.
    """
    opens = {"colour": set(COLOURS), "shape": set(SHAPES), "place": set(ROWS)}
    looks = _LOOK.findall(" ".join(completion.split()))
    for name, strategy in STRATEGIES.items():
        if looks and all(word == strategy.word and first in opens[name] for word, first, _ in looks):
            return name
    return UNLABELLED

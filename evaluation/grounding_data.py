"""Referring expressions and their boxes: RefCOCO, RefCOCO+ and RefCOCOg of the Hub, files, and rows."""

import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, Features, Image, load_dataset, load_from_disk

from .boxes import Box
from .grounding import GroundingProblem

GroundingSource: TypeAlias = str | os.PathLike | Dataset | Sequence[Mapping[str, Any]]

_ORIENTATION, _FIRST_ON_ITS_SIDE = 0x0112, 5  # of EXIF
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


class GroundingProblems(Sequence[GroundingProblem]):
    """Problems that are made of their rows when they are asked for: an image is decoded when it is looked at.

    Args:
        rows (`Dataset` or sequence of mappings): Rows, with images undecoded.
        expressions (`list[tuple[int, int | None]]`): For each problem its row and, where a row has several
            expressions, which of them.
        image_folder (`Path`, *optional*): Where images that are named are.
    """

    def __init__(self, rows: Any, expressions: list[tuple[int, int | None]], image_folder: Path | None = None):
        self.rows, self.expressions, self.image_folder = rows, expressions, image_folder

    def __len__(self) -> int:
        return len(self.expressions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return GroundingProblems(self.rows, self.expressions[index], self.image_folder)
        number, which = self.expressions[index]
        row = self.rows[number]
        image = self._image(row.get("image"))
        expression = row["answer"][which] if which is not None else row.get("expression", row.get("question"))
        return GroundingProblem(
            expression=expression,
            bbox_xyxy=_box(row, number),
            size=_size(row, image, number),
            image=image,
            question=row.get("question") if which is None and not row.get("expression") else None,
            name=str(row["question_id"] if which is not None else row.get("id", number)),
        )

    def __iter__(self) -> Iterator[GroundingProblem]:
        return (self[index] for index in range(len(self)))

    def image_column(self) -> Dataset:
        """The images of the problems, as they are stored, under `image`: none is decoded and written anew."""
        numbers = [number for number, _ in self.expressions]
        if isinstance(self.rows, Dataset) and isinstance(self.rows.features["image"], Image):
            return self.rows.select(numbers).select_columns("image").cast_column("image", Image())
        images = [self._path(self.rows[number].get("image")) for number in numbers]
        return Dataset.from_dict({"image": images}, features=Features({"image": Image()}))

    def _image(self, image: Any) -> Any:
        if isinstance(image, Mapping):
            if image.get("bytes") is None:
                return image["path"]
            from PIL import Image as PillowImage

            return PillowImage.open(BytesIO(image["bytes"]))
        return self._path(image)

    def _path(self, image: Any) -> Any:
        """An image that is named, where it is."""
        return str(self.image_folder / image) if isinstance(image, str) and self.image_folder is not None else image


def load_grounding(
    source: GroundingSource,
    split: str | None = None,
    image_folder: str | os.PathLike | None = None,
    num_problems: int | None = None,
    seed: int = 0,
) -> GroundingProblems:
    """Loads problems.

    Args:
        source (`str`, `os.PathLike`, `Dataset` or list of rows): A Hub id such as `"lmms-lab/RefCOCO"`,
            `"lmms-lab/RefCOCOplus"` or `"lmms-lab/RefCOCOg"`, whose rows have `image`, `bbox` (left, top, width and
            height in pixels) and several expressions in `answer`, each of which becomes a problem; a folder with such
            a set's files; a JSON-lines (plain or gzip) or Parquet file, a dataset or rows with `bbox_xyxy`,
            `expression` (or `question`, which is put as it is) and `image`, or its name with `width` and `height`.
        split (`str`, *optional*): Split of a set or folder, `"val"` if not given.
        image_folder (`str` or `os.PathLike`, *optional*): Where the images are that the rows name.
        num_problems (`int`, *optional*): How many, drawn without replacement. All of them if None.
        seed (`int`, *optional*, defaults to 0): Seed of that draw.

    Returns:
        `GroundingProblems`: A sequence of [`GroundingProblem`].

    Raises:
        FileNotFoundError: If `source` looks like a file and is none, or `image_folder` is no folder.
        ValueError: If the columns are others, there is no problem or fewer than `num_problems`, or `split` is given
            for a file, a dataset or rows.

    Warns:
        if rows have no box, because what they refer to is not in their image: they are left out.
    """
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"`image_folder` is {str(image_folder)!r}, but there is no such folder.")
    rows = _load_rows(source, split)
    columns = set(rows.column_names if isinstance(rows, Dataset) else (key for row in rows for key in row))
    several = {"answer", "bbox"} <= columns
    if not several and not ({"bbox_xyxy"} <= columns and columns & {"expression", "question"}):
        raise ValueError(
            f"No referring expressions in `source`: found the columns {sorted(columns)}. They have `bbox_xyxy` and "
            "`expression` or `question`, or, as the RefCOCO sets of the Hub, `bbox` (left, top, width, height) and "
            "`answer` (a list of expressions)."
        )
    if isinstance(rows, Dataset) and isinstance(rows.features.get("image"), Image):
        rows = rows.cast_column("image", Image(decode=False))
    boxes = (
        rows["bbox" if several else "bbox_xyxy"] if isinstance(rows, Dataset) else [r.get("bbox_xyxy") for r in rows]
    )
    expressions: list[tuple[int, int | None]] = []
    without_box = 0
    answers = rows["answer"] if several else [None] * len(rows)
    for number, (box, answer) in enumerate(zip(boxes, answers, strict=True)):
        if box is None:
            without_box += 1
        else:
            expressions += [(number, which) for which in range(len(answer))] if several else [(number, None)]
    if without_box:
        warnings.warn(
            f"{without_box} of {len(rows)} rows of `source` have no box and are left out: nothing in their image fits "
            "their expression.",
            stacklevel=2,
        )
    if not expressions or (num_problems is not None and not 1 <= num_problems <= len(expressions)):
        raise ValueError(
            f"`num_problems` is {num_problems}, but `source` has {len(expressions)} problems."
            if expressions
            else "`source` has no row with a box and an expression."
        )
    if num_problems is not None:
        expressions = random.Random(seed).sample(expressions, num_problems)
    return GroundingProblems(rows, expressions, None if image_folder is None else Path(image_folder))


def _load_rows(source: GroundingSource, split: str | None) -> Any:
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        suffix = os.path.splitext(name.removesuffix(".gz"))[1]
        if not os.path.isdir(name) and (suffix in _BUILDERS or name.endswith(".gz")):
            if not os.path.isfile(name):
                raise FileNotFoundError(f"`source` is {name!r}, but there is no such file.")
            if suffix not in _BUILDERS:
                raise ValueError(f"`source` is {name!r}; files end in {', '.join(_BUILDERS)}, also with .gz behind.")
            _refuse_split(split, "a file")
            return load_dataset(_BUILDERS[suffix], data_files=name, split="train")
        if os.path.isfile(os.path.join(name, "dataset_dict.json")):
            splits = load_from_disk(name)
            if (split or "val") not in splits:
                raise ValueError(f"`split` must be one of {list(splits)} for {name}, got {split or 'val'!r}.")
            return splits[split or "val"]
        if os.path.isfile(os.path.join(name, "dataset_info.json")) and os.path.isfile(
            os.path.join(name, "state.json")
        ):
            _refuse_split(split, "a dataset")
            return load_from_disk(name)
        return load_dataset(name, split=split or "val")
    _refuse_split(split, "loaded already")
    if isinstance(source, DatasetDict):
        raise TypeError(f"`source` has the splits {list(source)}; pass one of them, such as source['val'].")
    return source if isinstance(source, Dataset) else list(source)


def _refuse_split(split: str | None, what: str) -> None:
    if split is not None:
        raise ValueError(f"`split` is {split!r}, but `source` is {what}: select its rows yourself.")


def _box(row: Mapping[str, Any], number: int) -> Box:
    """Edges in pixels, from either of the two ways to write them."""
    if row.get("bbox_xyxy") is not None:
        x1, y1, x2, y2 = row["bbox_xyxy"]
    else:
        x1, y1, width, height = row["bbox"]
        x2, y2 = x1 + width, y1 + height
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"Row {number} of `source` has the box {[x1, y1, x2, y2]}, which holds no area.")
    return (x1, y1, x2, y2)


def _size(row: Mapping[str, Any], image: Any, number: int) -> tuple[int, int]:
    if row.get("width") is not None and row.get("height") is not None:
        return int(row["width"]), int(row["height"])
    if hasattr(image, "getexif"):
        return _upright_size(image)
    if image is None or not os.path.isfile(image):
        raise ValueError(
            f"Row {number} of `source` has no `width` and `height`, and its image ({image!r}) is no file; give "
            "`image_folder`, or these columns."
        )
    from PIL import Image as PillowImage

    with PillowImage.open(image) as opened:
        return _upright_size(opened)


def _upright_size(image: Any) -> tuple[int, int]:
    """Width and height as the image is seen: photographs lie on their side in files that say so (EXIF)."""
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION, 1) >= _FIRST_ON_ITS_SIDE else (width, height)
